"""Losses against their formulas in numpy, and what holds for all of them."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import random_tokens, tiny
from polyjax import Batch, BiConfig, DualInputs, InputError, make_scorer
from polyjax.config import from_json, to_json
from polyjax.train.listwise import ListwiseLoss
from polyjax.train.losses import (
    LOSSES,
    BinaryLoss,
    DistillationLoss,
    LogitLoss,
    LossConfig,
    MarginLoss,
    SoftmaxLoss,
    cross_entropy,
    loss_of,
    ranking_loss,
)
from polyjax.types import Listed, Shared, Teacher

B, C = 4, 7
HAS_RAX = importlib.util.find_spec("rax") is not None
KNOWN = {name: loss for name, loss in LOSSES.items() if HAS_RAX or not isinstance(loss, ListwiseLoss)}
"""The losses that can be computed here."""


@pytest.fixture
def problem(rng):
    """Scores, and a batch of listed candidates: some places empty, some not scored by the teacher."""
    scores = jnp.asarray(3 * rng.normal(size=(B, C)), jnp.float32)
    label = np.array([1, 0, 4, 2], np.int32)
    where = np.arange(C) < np.array([[7], [5], [6], [3]])
    scored = where & (rng.random((B, C)) < 0.7)
    scored[np.arange(B), label] = True
    scored[:, 2] = where[:, 2]
    teacher = Teacher(np.where(scored, 5 * rng.normal(size=(B, C)), 0).astype(np.float32), scored)
    inputs = DualInputs(
        random_tokens(rng, [3] * B, width=4), listed=Listed(random_tokens(rng, np.full((B, C), 2), width=3))
    )
    return scores, Batch(inputs, label, where, teacher)


def log_softmax(values):
    values = np.asarray(values, np.float64)
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def softmax_by_hand(scores, label, where, smoothing=0.0):
    """-sum_j target_j log p_j, the target (1 - smoothing) on the label and the rest even on all k."""
    found = []
    for row, right, real in zip(np.asarray(scores, np.float64), label, where, strict=True):
        places = np.flatnonzero(real)
        target = (places == right) * (1 - smoothing) + smoothing / len(places)
        found.append(-(target * log_softmax(row[places])).sum())
    return np.array(found)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_softmax_and_label_smoothing(problem, smoothing):
    scores, batch = problem
    expected = softmax_by_hand(scores, batch.label, batch.where, smoothing)
    np.testing.assert_allclose(SoftmaxLoss(label_smoothing=smoothing)(scores, batch), expected, rtol=1e-6)


@pytest.mark.parametrize("hard", [0, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_both_directions(rng, hard, smoothing):
    """Each label among the contexts of the batch as well; hard negatives belong to the first part only."""
    shared = Shared(random_tokens(rng, [3] * B, width=4))
    listed = Listed(random_tokens(rng, np.full((B, hard), 2), width=3)) if hard else None
    where = rng.random((B, B + hard)) < 0.7
    where[np.arange(B), np.arange(B)] = True
    batch = Batch(
        DualInputs(random_tokens(rng, [3] * B, width=4), shared, listed), np.arange(B, dtype=np.int32), where
    )
    scores = jnp.asarray(3 * rng.normal(size=(B, B + hard)), jnp.float32)
    square, there = np.asarray(scores)[:, :B], where[:, :B]
    forward = softmax_by_hand(scores, range(B), where, smoothing)
    backward = softmax_by_hand(square.T, range(B), there.T, smoothing)
    loss = SoftmaxLoss(both_directions=True, label_smoothing=smoothing)
    np.testing.assert_allclose(loss(scores, batch), (forward + backward) / 2, rtol=1e-6)


@pytest.mark.parametrize("of_rows", [None, False])
def test_both_directions_need_the_labels_of_the_batch(problem, rng, of_rows):
    scores, batch = problem
    if of_rows is not None:
        shared = Shared(random_tokens(rng, [2] * C, width=3), of_rows=of_rows)
        batch = dataclasses.replace(batch, inputs=DualInputs(batch.inputs.context, shared))
    with pytest.raises(InputError) as error:
        SoftmaxLoss(both_directions=True)(scores, batch)
    assert error.value.argument == "loss.both_directions"


@pytest.mark.parametrize("pos_weight", [1.0, 6.0])
def test_binary_cross_entropy(problem, pos_weight):
    scores, batch = problem
    expected = []
    for row, right, real in zip(np.asarray(scores, np.float64), batch.label, batch.where, strict=True):
        parts = [
            -pos_weight * math.log(sigmoid(row[j])) if j == right else -math.log(sigmoid(-row[j]))
            for j in np.flatnonzero(real)
        ]
        expected.append(np.mean(parts))
    np.testing.assert_allclose(BinaryLoss(pos_weight=pos_weight)(scores, batch), expected, rtol=1e-6)


def counted(batch):
    """Places that count and that the teacher scored, of each context."""
    return [np.flatnonzero(row) for row in np.asarray(batch.teacher.where) & batch.where]


def test_margin_mse(problem):
    scores, batch = problem
    s, t = np.asarray(scores, np.float64), np.asarray(batch.teacher.scores, np.float64)
    expected = np.zeros(B)  # of a context without a scored negative
    for i, (y, places) in enumerate(zip(batch.label, counted(batch), strict=True)):
        parts = [((s[i, y] - s[i, j]) - (t[i, y] - t[i, j])) ** 2 for j in places if j != y]
        expected[i] = np.mean(parts) if parts else 0
    assert (expected > 0).sum() >= 3
    np.testing.assert_allclose(MarginLoss()(scores, batch), expected, rtol=1e-6)
    shifted = MarginLoss()(scores + 5.0, batch)
    np.testing.assert_allclose(shifted, expected, rtol=1e-5, err_msg="differences only")


@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(1.0, 1.0), (2.0, 2.0), (0.5, 4.0)])
def test_kl_distillation(problem, temperature, teacher_temperature):
    scores, batch = problem
    expected = []
    for i, places in enumerate(counted(batch)):
        log_q = log_softmax(np.asarray(scores[i], np.float64)[places] / temperature)
        log_p = log_softmax(np.asarray(batch.teacher.scores[i], np.float64)[places] / teacher_temperature)
        expected.append(temperature * teacher_temperature * (np.exp(log_p) * (log_p - log_q)).sum())
    loss = DistillationLoss(temperature=temperature, teacher_temperature=teacher_temperature)
    np.testing.assert_allclose(loss(scores, batch), expected, rtol=1e-5)
    same = dataclasses.replace(batch, teacher=Teacher(np.asarray(scores), batch.teacher.where))
    equal = DistillationLoss(temperature=temperature, teacher_temperature=temperature)(scores, same)
    np.testing.assert_allclose(equal, 0, atol=1e-6, err_msg="a student like its teacher has learnt")


def test_kl_with_the_label_beside_it(problem):
    scores, batch = problem
    both = DistillationLoss(label_weight=0.5)(scores, batch)
    label = softmax_by_hand(scores, batch.label, batch.where)
    np.testing.assert_allclose(both, DistillationLoss()(scores, batch) + 0.5 * label, rtol=1e-6)


def by_hand(kind: str, s: np.ndarray, t: np.ndarray, label: int) -> float:
    """A listwise loss of one context's candidates: their scores, the teacher's, the label's place."""
    others = [j for j in range(len(s)) if j != label]
    match kind:
        case "listmle":
            order = np.argsort(-t)
            return -sum(log_softmax(s[order[i:]])[0] for i in range(len(s)))
        case "ranknet":
            pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if t[i] > t[j]]
            return float(np.mean([np.log1p(np.exp(s[j] - s[i])) for i, j in pairs])) if pairs else 0.0
        case "lambda":
            ranks = np.argsort(np.argsort(-s)) + 1

            def weight(j):
                apart = abs(int(ranks[label]) - int(ranks[j]))
                return abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart))

            return float(np.mean([weight(j) * np.log1p(np.exp(s[j] - s[label])) for j in others]))
        case _:
            return -1 / math.log2(1.5 + sum(sigmoid(s[j] - s[label]) for j in range(len(s))))


@pytest.mark.skipif(not HAS_RAX, reason="needs rax (extra listwise)")
@pytest.mark.parametrize("kind", ["listmle", "ranknet", "lambda", "approx-ndcg"])
def test_listwise_losses(kind, problem):
    scores, batch = problem
    loss, expected = ListwiseLoss(kind=kind), []
    for i, places in enumerate(counted(batch)):
        if not loss.needs_teacher:
            places = np.flatnonzero(batch.where[i])
        s, t = (np.asarray(x[i], np.float64)[places] for x in (scores, batch.teacher.scores))
        expected.append(by_hand(kind, s, t, places.tolist().index(batch.label[i])))
    np.testing.assert_allclose(loss(scores, batch), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not HAS_RAX, reason="needs rax (extra listwise)")
def test_the_other_losses_are_those_of_rax_too(problem):
    rax = importlib.import_module("rax")
    scores, batch = problem
    is_label = jnp.asarray(batch.label[:, None] == np.arange(C), jnp.float32)
    taught, scored = batch.teacher.scores, batch.teacher.where & batch.where
    one_by_one = [
        (SoftmaxLoss(), rax.softmax_loss, is_label, batch.where),
        (BinaryLoss(), rax.pointwise_sigmoid_loss, is_label, batch.where),
        (LogitLoss(), rax.pointwise_mse_loss, taught, scored),
    ]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for loss, other, relevance, where in one_by_one:
            expected = [other(scores[i], relevance[i], where=where[i]) for i in range(B)]
            np.testing.assert_allclose(loss(scores, batch), expected, rtol=1e-6, atol=1e-6, err_msg=str(loss))


@pytest.mark.skipif(HAS_RAX, reason="rax is installed")
def test_a_listwise_loss_says_what_to_install(problem):
    with pytest.raises(InputError) as error:
        loss_of("lambda")(*problem)
    assert error.value.argument == "loss" and "listwise" in error.value.fix


def test_mse_on_logits(problem):
    scores, batch = problem
    difference = np.asarray(scores, np.float64) - np.asarray(batch.teacher.scores, np.float64)
    expected = [np.square(difference[i, places]).mean() for i, places in enumerate(counted(batch))]
    np.testing.assert_allclose(LogitLoss()(scores, batch), expected, rtol=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_what_does_not_count_changes_nothing(name, problem):
    """Neither value nor gradient, however wild the score; and an absent candidate has no part in it."""
    scores, batch = problem
    loss = LOSSES[name]
    value = loss(scores, batch)
    for wild in (1e30, -1e30):
        other = jnp.where(batch.where, scores, wild)
        np.testing.assert_allclose(loss(other, batch), value, rtol=1e-6)
        gradient = jax.grad(lambda s: loss(s, batch).sum())(other)
        assert np.isfinite(gradient).all() and (np.asarray(gradient)[~batch.where] == 0).all()
    order = np.random.default_rng(1).permutation(C)
    permuted = dataclasses.replace(
        batch,
        label=np.argsort(order)[batch.label].astype(np.int32),
        where=batch.where[:, order],
        teacher=jax.tree.map(lambda x: x[:, order], batch.teacher),
    )
    np.testing.assert_allclose(loss(scores[:, order], permuted), value, rtol=2e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_a_loss_is_least_where_the_student_is_right(name, problem):
    """Descent from the scores makes it smaller; a place that a teacher did not score is not moved by it."""
    scores, batch = problem
    loss = LOSSES[name]
    gradient = jax.grad(lambda s: loss(s, batch).mean())(scores)
    assert loss(scores - 0.1 * gradient, batch).mean() < loss(scores, batch).mean()
    if getattr(loss, "needs_teacher", False):
        assert (np.asarray(gradient)[~batch.teacher.where] == 0).all()


@pytest.mark.parametrize("loss", [loss for loss in KNOWN.values() if getattr(loss, "needs_teacher", False)])
def test_a_loss_that_learns_from_a_teacher_needs_one(loss, problem):
    scores, batch = problem
    with pytest.raises(InputError) as error:
        loss(scores, dataclasses.replace(batch, teacher=None))
    assert error.value.argument == "loss"


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: SoftmaxLoss(label_smoothing=1.0), "loss.label_smoothing"),
        (lambda: SoftmaxLoss(label_smoothing=-0.1), "loss.label_smoothing"),
        (lambda: BinaryLoss(pos_weight=0.0), "loss.pos_weight"),
        (lambda: DistillationLoss(temperature=math.nan), "loss.temperature"),
        (lambda: DistillationLoss(teacher_temperature=-1.0), "loss.teacher_temperature"),
        (lambda: DistillationLoss(label_weight=-1.0), "loss.label_weight"),
        (lambda: loss_of("hinge"), "loss"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, argument):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.argument == argument


@pytest.mark.parametrize("loss", [*LOSSES.values(), SoftmaxLoss(label_smoothing=0.1, both_directions=True)])
def test_settings_survive_json(loss):
    @dataclasses.dataclass(frozen=True)
    class Run:
        loss: LossConfig

    Run.__annotations__["loss"] = LossConfig
    assert from_json(Run, json.loads(json.dumps(to_json(Run(loss)))), source="run") == Run(loss)


@pytest.mark.parametrize("masked", [True, False])
def test_copies_of_a_label_count_only_where_they_are_not_masked(masked, rng, rngs):
    """What the loss of a batch makes of ``where``: mean over contexts, accuracy among what counts."""
    scorer = make_scorer(tiny(), BiConfig(), rngs=rngs)
    inputs = DualInputs(
        random_tokens(rng, [4, 5, 6], width=6), Shared(random_tokens(rng, [3, 3, 3], width=4))
    )
    kept = [[0, 1], [0, 1, 2], [1, 2]] if masked else [[0, 1, 2]] * 3
    where = np.array([[j in row for j in range(3)] for row in kept])
    loss, metrics = ranking_loss(scorer, Batch(inputs, np.arange(3, dtype=np.int32), where), None)
    scores = np.asarray(scorer(inputs), np.float64)
    expected = [np.log(np.exp(scores[i, kept[i]]).sum()) - scores[i, i] for i in range(3)]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    ahead = [scores[i, i] > max(scores[i, j] for j in kept[i] if j != i) for i in range(3)]
    assert metrics["accuracy"] == pytest.approx(np.mean(ahead))


def test_a_function_is_a_loss_and_must_give_a_number_for_each_context(rng, rngs):
    scorer = make_scorer(tiny(), BiConfig(), rngs=rngs)
    inputs = DualInputs(random_tokens(rng, [4, 5], width=6), Shared(random_tokens(rng, [3, 3], width=4)))
    batch = Batch(inputs, np.arange(2, dtype=np.int32), np.ones((2, 2), bool))
    value, _ = ranking_loss(scorer, batch, None, loss=lambda scores, batch: scores[:, 0])
    np.testing.assert_allclose(value, scorer(inputs)[:, 0].mean(), rtol=1e-6)
    with pytest.raises(InputError) as error:
        ranking_loss(scorer, batch, None, loss=lambda scores, batch: scores.mean())
    assert error.value.argument == "loss" and error.value.got == "an array of shape ()"


def test_cross_entropy_of_masked_candidates_is_that_without_them(problem):
    scores, batch = problem
    where = jnp.array([[True, True, False, False, True]])
    label = jnp.array([1, 0, 4])
    kept = cross_entropy(scores[:3, [0, 1, 4]], jnp.array([1, 0, 2]), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(cross_entropy(scores[:3, :5], label, where), kept, rtol=1e-6)
