"""Plans of batches, collation, exact resumption."""

import dataclasses

import numpy as np
import pytest
from test_text import Letters

from polyjax import DualInputs, Example, InputError, PairInputs
from polyjax.data.batches import BatchConfig, BatchPlan, check_training_rows, make_loader
from polyjax.data.negatives import Negatives
from polyjax.data.text import TextConfig, TextEncoder


def word(i: int) -> str:
    """A different text for each i."""
    return "abcdefgh"[: 1 + i % 8] + "".join(chr(ord("a") + int(d)) for d in str(i))


@pytest.fixture
def examples():
    return [Example(str(i), (word(i + 500), word(i + 900)), (word(i),), 0, str(i // 5)) for i in range(103)]


@pytest.fixture
def text():
    return TextEncoder(Letters(), TextConfig(context_tokens=32, candidate_tokens=16, buckets=(8, 16, 24)))


def shapes(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 5, (n, 2))


@pytest.mark.parametrize("group", [1, 3, 64])
def test_an_epoch_takes_each_example_at_most_once_and_leaves_out_less_than_a_batch(group):
    plan = BatchPlan(shapes(103), BatchConfig(batch_size=8, group_batches=group), seed=0, n_batches=24)
    for epoch in range(2):
        taken = np.concatenate([plan[epoch * 12 + i].indices for i in range(12)])
        assert len(set(taken)) == 96
        assert all(plan[epoch * 12 + i].epoch == epoch for i in range(12))


def test_epochs_and_seeds_differ_and_repeat():
    make = lambda seed: BatchPlan(shapes(103), BatchConfig(batch_size=8), seed=seed, n_batches=24)  # noqa: E731
    plan = make(0)
    np.testing.assert_array_equal(plan[17].indices, make(0)[17].indices)
    assert plan[0].indices.tolist() != plan[12].indices.tolist()
    assert plan[0].indices.tolist() != make(1)[0].indices.tolist()


def test_grouping_pads_less():
    sizes = shapes(4096)

    def padded(group):
        plan = BatchPlan(sizes, BatchConfig(batch_size=32, group_batches=group), seed=0, n_batches=128)
        return sum(sizes[plan[i].indices].max(0).sum() for i in range(128))

    assert padded(64) < 0.8 * padded(1)


def test_in_batch_candidates_are_the_labels(examples, text):
    loader, plan = make_loader(examples, text, BatchConfig(batch_size=8), inputs="dual", n_batches=3, seed=0)
    batch = next(loader)
    assert isinstance(batch.inputs, DualInputs)
    assert batch.label.tolist() == list(range(8))
    for row, i in zip(batch.inputs.shared.tokens.ids, plan[0].indices, strict=True):
        assert [t for t in row if t] == text.candidate(examples[i].label_text).tolist()
    for row, i in zip(batch.inputs.context.ids, plan[0].indices, strict=True):
        assert [t for t in row if t] == text.context(examples[i].context).tolist()
    assert len(list(loader)) == 2


def in_order(rows, text, **settings) -> np.ndarray:
    """``where`` of one batch of all rows, in the rows' order."""
    config = BatchConfig(batch_size=len(rows), **settings)
    loader, plan = make_loader(rows, text, config, inputs="dual", n_batches=1, seed=0)
    order = np.argsort(plan[0].indices)
    return next(loader).where[order][:, order]


def test_copies_of_a_label_are_no_negatives_unless_that_is_switched_off(text):
    labels = ["yes", "yes", "no", "maybe"]
    rows = [Example(str(i), (word(i),), (t,), 0, "g") for i, t in enumerate(labels)]
    copies = [[i != j and labels[i] == labels[j] for j in range(4)] for i in range(4)]
    np.testing.assert_array_equal(in_order(rows, text), ~np.array(copies))
    assert in_order(rows, text, mask_duplicates=False).all()


def test_another_right_answer_of_a_context_is_no_negative(text):
    """Rows of one context are a group: their labels, and what rows name, wherever a candidate comes from."""
    rows = [
        Example("0", ("Hi ",), ("abc",), 0, "0"),
        Example("1", ("hi",), ("def",), 0, "1", answers=("ace",)),
        Example("2", ("other",), ("def",), 0, "2"),
        Example("3", ("else",), ("ace",), 0, "3"),
    ]
    expected = [
        [True, False, False, False],  # def and ace are right as well, whosever label they are
        [False, True, False, False],
        [True, False, True, True],
        [True, True, True, True],
    ]
    assert in_order(rows, text).tolist() == expected
    hard = dataclasses.replace(rows[0], negatives=("DEF", "xyz", "ace", "fed"))
    config = BatchConfig(batch_size=4)
    loader, plan = make_loader([hard, *rows[1:]], text, config, inputs="dual", n_batches=1, seed=0)
    batch, place = next(loader), plan[0].indices.tolist().index(0)
    own = batch.inputs.listed.tokens.ids[place][batch.where[place, 4:]]
    assert [row[row > 0].tolist() for row in own] == [text.candidate(t).tolist() for t in ("xyz", "fed")]
    drawn = BatchConfig(batch_size=4, candidates="sampled", n_negatives=1)
    with pytest.raises(InputError) as error:  # no label is wrong for the first two
        next(make_loader(rows, text, drawn, inputs="pairs", n_batches=1, seed=0)[0])
    assert error.value.argument == "batch.n_negatives"


def test_copies_are_told_by_the_rule_of_identity(text):
    """Composed and decomposed letters are one label; a sign more is another."""
    labels = ["café", "cafe\u0301", "CAFÉ\u200b", "café+", "cafe", "दिन", "दान"]
    rows = [Example(str(i), (word(i),), (label,), 0, str(i)) for i, label in enumerate(labels)]
    where = in_order(rows, text)
    assert [np.flatnonzero(~row).tolist() for row in where] == [[1, 2], [0, 2], [0, 1], [], [], [], []]
    config = BatchConfig(batch_size=7, candidates="sampled", n_negatives=4)
    loader, _ = make_loader(rows, text, config, inputs="dual", n_batches=1, seed=0)
    assert next(loader).where.all(), "four others are drawn, none of them a copy"
    with pytest.raises(InputError):
        more = dataclasses.replace(config, n_negatives=6)
        next(make_loader(rows, text, more, inputs="dual", n_batches=1, seed=0)[0])


def test_a_label_is_found_among_fixed_candidates_by_the_rule(text, tmp_path):
    path = tmp_path / "fixed.txt"
    path.write_text("tea\ncafé\nCafe\u0301\n")
    rows = [Example("0", ("a",), ("  CAFÉ",), 0, ""), Example("1", ("b",), ("Tea ",), 0, "")]
    config = BatchConfig(batch_size=2, candidates="fixed", fixed_file=path)
    loader, plan = make_loader(rows, text, config, inputs="dual", n_batches=1, seed=0)
    batch, order = next(loader), plan[0].indices.tolist()
    assert [batch.label.tolist()[order.index(i)] for i in (0, 1)] == [1, 0]


def test_sampled_negatives_are_others_labels(examples, text):
    config = BatchConfig(batch_size=4, n_negatives=5)
    loader, plan = make_loader(examples, text, config, inputs="pairs", n_batches=30, seed=0)
    texts = {tuple(text.candidate(e.label_text)[1:].tolist()): e.label_text for e in examples}
    for number, batch in enumerate(loader):
        assert isinstance(batch.inputs, PairInputs)
        pairs = batch.inputs.pairs
        assert pairs.ids.shape[:2] == (4, 6)
        assert batch.label.tolist() == [0] * 4
        for i, row in enumerate(plan[number].indices):
            candidates = [
                texts[tuple(pairs.ids[i, j][(pairs.segments[i, j] == 1) & pairs.mask[i, j]].tolist())]
                for j in range(6)
            ]
            assert candidates[0] == examples[row].label_text
            assert len(set(candidates)) == 6


@pytest.mark.parametrize("inputs", ["dual", "pairs"])
def test_an_iterator_from_a_later_batch_gives_the_same_ones(examples, text, inputs):
    make = lambda first: make_loader(  # noqa: E731
        examples,
        text,
        BatchConfig(batch_size=8, n_negatives=3),
        inputs=inputs,
        n_batches=30,
        seed=3,
        first=first,
    )[0]
    ids = lambda b: (b.inputs.context if inputs == "dual" else b.inputs.pairs).ids  # noqa: E731
    rest, resumed = list(make(0))[13:], list(make(13))
    assert len(resumed) == 17
    for one, other in zip(rest, resumed, strict=True):
        np.testing.assert_array_equal(ids(one), ids(other))


def test_worker_processes_give_the_same_batches_and_resume(examples, text):
    make = lambda workers, first: make_loader(  # noqa: E731
        examples,
        text,
        BatchConfig(batch_size=8, workers=workers),
        inputs="dual",
        n_batches=9,
        seed=3,
        first=first,
    )[0]
    alone = [batch.inputs.context.ids for batch in make(0, 0)]
    several = [batch.inputs.context.ids for batch in make(2, 4)]
    assert len(several) == 5
    for one, other in zip(alone[4:], several, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_larger_than_the_split_is_refused(examples, text):
    with pytest.raises(InputError, match="at most the 103 examples"):
        make_loader(examples, text, BatchConfig(batch_size=200), inputs="dual", n_batches=1, seed=0)


def test_more_negatives_than_labels_are_refused(examples, text):
    """Before the first step, with the row and the number that works."""
    config = BatchConfig(batch_size=4, n_negatives=10)
    with pytest.raises(InputError) as error:
        check_training_rows(examples[:5], config, inputs="pairs", needs_teacher=False)
    assert (error.value.argument, error.value.got) == ("batch.n_negatives", 10)
    assert f"row {examples[0].id} has 4 wrong answers among the 5 different labels" in error.value.problem
    assert error.value.fix == "use 4"
    rows = [Example(str(i), (f"q {i}",), (f"answer {i % 12}",), 0, "") for i in range(200)]
    rows.append(
        Example("odd", ("the one",), ("answer 0",), 0, "", answers=tuple(f"answer {i}" for i in range(9)))
    )
    config = BatchConfig(batch_size=4, n_negatives=4)
    with pytest.raises(InputError, match="row odd has 3 wrong answers among the 12 different labels"):
        check_training_rows(rows, config, inputs="pairs", needs_teacher=False)
    check_training_rows(rows[:-1], config, inputs="pairs", needs_teacher=False)


def test_rare_labels_are_sampled_beside_a_frequent_one(text):
    rows = [Example(str(i), (f"q {i}",), ("yes",), 0, "") for i in range(3000)]
    rows += [Example(f"o{i}", (f"other {i}",), (f"rare {i}",), 0, "") for i in range(4)]
    negatives = Negatives(rows, source="sampled", seed=0, n_negatives=4, fixed=(), n_hard=0, mask=True)
    negatives.check(needs_teacher=False)
    for i in (0, 3000):
        (row,) = negatives.rows([i], 0)
        texts = negatives.choice(row, 0, [row], 0).texts
        assert sorted(texts) == ["rare 0", "rare 1", "rare 2", "rare 3", "yes"]
        assert texts == negatives.choice(row, 0, [row], 0).texts
