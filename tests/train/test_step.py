"""One update: a batch computed in chunks is the batch computed at once."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from flax import nnx

from conftest import DUAL_HEADS, HEADS, random_tokens, tiny
from polyjax import BiConfig, CrossConfig, DualInputs, EncoderConfig, PairInputs, make_scorer
from polyjax.nn.scorers import in_chunks
from polyjax.train.listwise import ListwiseLoss
from polyjax.train.losses import LOSSES, BinaryLoss, SoftmaxLoss, ranking_loss
from polyjax.types import Batch, Listed, Shared, Teacher

HAS_RAX = importlib.util.find_spec("rax") is not None


def batch_of(rng, head, b: int, *, listed: int = 0, hard: int = 0) -> Batch:
    """A batch of b contexts, with ``listed`` candidates of its own each, or shared ones and ``hard`` besides.

    Every two shared candidates are copies of each other, and one place of each context's own is empty.
    """
    label = np.arange(b, dtype=np.int32)
    context = random_tokens(rng, rng.integers(1, 13, b), width=12)
    pairs = head.inputs == "pairs"
    if pairs or listed:
        c = listed or 3
        texts = random_tokens(rng, rng.integers(1, 9, (b, c)), width=8)
        second = texts.mask & (np.arange(8) > 3)
        texts = dataclasses.replace(texts, segments=second.astype(np.int32)) if pairs else texts
        inputs = PairInputs(texts) if pairs else DualInputs(context, listed=Listed(texts))
        return Batch(inputs, label % c, np.ones((b, c), bool))
    shared = Shared(random_tokens(rng, rng.integers(1, 9, b), width=8))
    where = (label[:, None] // 2 != label // 2) | (label[:, None] == label)
    if not hard:
        return Batch(DualInputs(context, shared), label, where)
    own = Listed(random_tokens(rng, rng.integers(1, 7, (b, hard)), width=6))
    real = np.arange(hard) != label[:, None] % hard
    return Batch(DualInputs(context, shared, own), label, np.concatenate([where, real], axis=1))


def loss_and_gradients(scorer, batch: Batch, chunk: int, loss=LOSSES["softmax"]):
    graph, state = nnx.split(scorer)

    def mean(state):
        return ranking_loss(nnx.merge(graph, state), batch, None, chunk=chunk, loss=loss)[0]

    value, gradients = jax.device_get(jax.jit(jax.value_and_grad(mean))(state))
    return float(value), jax.tree.leaves(gradients)


def norm(arrays) -> float:
    return float(np.sqrt(sum((array.astype(float) ** 2).sum() for array in arrays)))


@pytest.mark.parametrize(
    ("name", "kinds", "chunk"),
    [
        *((name, {}, 10) for name in HEADS),  # 10 does not divide 64
        *((name, {"listed": 4}, 8) for name in HEADS),
        *((name, {"hard": 2}, 10) for name in DUAL_HEADS),
        (next(iter(HEADS)), {}, 100),
    ],
)
def test_a_batch_of_64_in_chunks_has_the_same_loss_and_gradients(name, kinds, chunk, rng):
    scorer = make_scorer(tiny(n_layers=1), HEADS[name], rngs=nnx.Rngs(0))
    batch = batch_of(rng, HEADS[name], 64, **kinds)
    loss, gradients = loss_and_gradients(scorer, batch, 0)
    chunked_loss, chunked = loss_and_gradients(scorer, batch, chunk)
    assert abs(chunked_loss - loss) < 1e-5 * loss
    difference = [x - y for x, y in zip(chunked, gradients, strict=True)]
    assert norm(gradients) > 1e-3 and norm(difference) < 1e-5 * norm(gradients)


@pytest.mark.parametrize("name", DUAL_HEADS)
def test_both_kinds_of_candidates_are_what_one_list_of_all_is(name, rng):
    """In-batch negatives and each row's own, against one list a context that holds them all."""
    scorer = make_scorer(tiny(n_layers=1), HEADS[name], rngs=nnx.Rngs(0))
    b, hard = 8, 3
    mixed = batch_of(rng, HEADS[name], b, hard=hard)
    wide = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 0), (0, 2)]), mixed.inputs.listed.tokens)
    everything = jax.tree.map(
        lambda shared, own: np.concatenate([np.broadcast_to(shared, (b, *shared.shape)), own], axis=1),
        mixed.inputs.shared.tokens,
        wide,
    )
    inputs = DualInputs(mixed.inputs.context, listed=Listed(everything))
    dense = dataclasses.replace(mixed, inputs=inputs)
    np.testing.assert_allclose(scorer(mixed.inputs), scorer(inputs), rtol=2e-5, atol=2e-6)
    softmax, binary = SoftmaxLoss(label_smoothing=0.1), BinaryLoss(pos_weight=3.0)

    def both(scores, batch):  # one program instead of two, which are compiled
        return softmax(scores, batch) + binary(scores, batch)

    (value, gradients), (expected, there) = (
        loss_and_gradients(scorer, batch, 0, loss=both) for batch in (mixed, dense)
    )
    assert abs(value - expected) < 1e-5 * expected
    assert norm([x - y for x, y in zip(gradients, there, strict=True)]) < 1e-5 * norm(there)


def test_a_place_that_does_not_count_has_no_gradient(rng):
    """Neither of the shared candidates nor of those of a row's own."""
    scorer = make_scorer(tiny(), BiConfig(), rngs=nnx.Rngs(0))
    batch = batch_of(rng, BiConfig(), 6, hard=2)
    scores = scorer(batch.inputs)
    known = [loss for loss in LOSSES.values() if HAS_RAX or not isinstance(loss, ListwiseLoss)]
    for loss in known:
        taught = Teacher(np.asarray(rng.normal(size=scores.shape), np.float32), np.ones(scores.shape, bool))
        whole = dataclasses.replace(batch, teacher=taught)
        gradient = jax.grad(lambda s, loss=loss, whole=whole: loss(s, whole).sum())(scores)
        assert (np.asarray(gradient)[~batch.where] == 0).all() and np.abs(gradient).max() > 0, loss


def test_memory_is_that_of_a_chunk(rng):
    """What a step keeps for a moment: a batch of 64 in chunks of 8 is about a batch of 8."""
    shape = EncoderConfig(vocab_size=50, dim=64, n_layers=4, n_heads=4, mlp_dim=256)
    graph, state = nnx.split(make_scorer(shape, BiConfig(), rngs=nnx.Rngs(0)))

    def temporary(b: int, chunk: int) -> int:
        batch = Batch(
            DualInputs(
                random_tokens(rng, [64] * b, width=64), Shared(random_tokens(rng, [32] * b, width=32))
            ),
            np.arange(b, dtype=np.int32),
            np.ones((b, b), bool),
        )

        def loss(state):
            return ranking_loss(nnx.merge(graph, state), batch, None, chunk=chunk)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, chunked, whole = temporary(8, 0), temporary(64, 8), temporary(64, 0)
    assert chunked < 1.3 * small and whole > 5 * small


def test_a_cross_encoder_in_chunks_encodes_each_pair_once(rng):
    """Gradients of chunks are added up: one forward and one backward pass, as of the whole batch."""

    def products(head, chunk: int, loss=LOSSES["softmax"]) -> int:
        graph, state = nnx.split(make_scorer(tiny(n_layers=1), head, rngs=nnx.Rngs(0)))
        batch = batch_of(rng, head, 16)

        def mean(state):
            return ranking_loss(nnx.merge(graph, state), batch, None, chunk=chunk, loss=loss)[0]

        return str(jax.make_jaxpr(jax.grad(mean))(state)).count("dot_general[")

    def own(scores, batch):  # may compare contexts
        return LOSSES["softmax"](scores, batch)

    assert products(CrossConfig(), 4) == products(CrossConfig(), 0) < products(CrossConfig(), 4, own)
    assert products(BiConfig(), 4) > products(BiConfig(), 0)


def test_each_chunk_draws_dropout_of_its_own(rng):
    scorer = make_scorer(tiny(dropout=0.5), BiConfig(), rngs=nnx.Rngs(0))
    same = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), random_tokens(rng, [6], width=6))
    vectors = in_chunks(scorer.encode_candidates, same, jax.random.key(0), 2)
    assert len(np.unique(np.asarray(vectors)[:, 0])) == 4
    again = in_chunks(scorer.encode_candidates, same, jax.random.key(0), 2)
    np.testing.assert_array_equal(vectors, again)


def test_recomputing_saves_memory_and_keeping_products_less(rng):
    def temporary(**changes) -> int:
        shape = EncoderConfig(vocab_size=50, dim=64, n_layers=6, n_heads=4, mlp_dim=256, scan=True, **changes)
        graph, state = nnx.split(make_scorer(shape, BiConfig(), rngs=nnx.Rngs(0)))
        batch = batch_of(rng, BiConfig(), 64)

        def loss(state):
            return ranking_loss(nnx.merge(graph, state), batch, None)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept, products, nothing = (
        temporary(),
        temporary(remat=True, remat_keeps="products"),
        temporary(remat=True),
    )
    assert nothing < 0.8 * products and products < 0.9 * kept
