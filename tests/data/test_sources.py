"""Where candidates come from, in training and in ranking: batch, inline, sampled, fixed."""

import dataclasses

import jax
import numpy as np
import pytest
from test_text import Letters

from polyjax import DualInputs, Example, InputError, PairInputs
from polyjax.data.batches import BatchConfig, make_loader
from polyjax.data.collate import Collator, PlannedBatch
from polyjax.data.rows import RankConfig, Rows, ranked_among
from polyjax.data.text import TextConfig, TextEncoder

LABELS = ["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh"]


def row(i: int, *candidates: str) -> Example:
    listed = (*candidates, LABELS[i])
    context = "xyz"[i % 3] + "ijklmnop"[i]
    return Example(str(i), (context, "abc"[: 1 + i % 3]), listed, len(candidates), str(i))


@pytest.fixture
def text():
    return TextEncoder(Letters(), TextConfig(context_tokens=16, candidate_tokens=8, buckets=(4, 8, 16, 24)))


def plain(ids, mask) -> str:
    """The letters of a sequence."""
    return "".join(chr(int(i) - 10 + ord("a")) for i in ids[mask] if i >= 10)


def candidates_of(batch, i: int, contexts: list[str]) -> list[str]:
    """The texts that context i is ranked among, by what the model reads."""
    if isinstance(batch.inputs, PairInputs):
        tokens = batch.inputs.pairs
        rows = [(tokens.ids[i, j], tokens.mask[i, j]) for j in range(tokens.ids.shape[1])]
        found = [plain(ids, mask) for ids, mask in rows]
        assert all(one.startswith(contexts[i]) for one in found)
        return [one[len(contexts[i]) :] for one in found]
    assert isinstance(batch.inputs, DualInputs)
    kinds = []
    if batch.inputs.shared is not None:
        kinds.append(batch.inputs.shared.tokens)
    if batch.inputs.listed is not None:
        kinds.append(jax.tree.map(lambda x: x[i], batch.inputs.listed.tokens))
    return [plain(*row) for tokens in kinds for row in zip(tokens.ids, tokens.mask, strict=True)]


def planned(epoch: int, indices: np.ndarray) -> PlannedBatch:
    """A batch whose longest context and label are as long as they may be."""
    return PlannedBatch(epoch, indices, (16, 8))


def hard_row(i: int) -> Example:
    """A row with i % 4 negatives of its own and a teacher's scores, and listed candidates besides."""
    own = tuple(f"{LABELS[i]}{'q' * (j + 1)}" for j in range(i % 4))
    plain_row = row(i, *[f"{LABELS[i]}{'x' * j}" for j in range(1, 2 + i % 3)])
    n = len(plain_row.candidates)
    scores = tuple(float(10 * i + j) for j in range(n + len(own)))
    return dataclasses.replace(plain_row, negatives=own, scores=scores)


@pytest.mark.parametrize("inputs", ["dual", "pairs"])
@pytest.mark.parametrize("source", ["batch", "inline", "sampled", "fixed"])
@pytest.mark.parametrize("n_hard", [0, 2])
def test_parts_of_a_batch_are_the_batch(text, inputs, source, n_hard):
    """What each process of a run loads, put together, is what one would."""
    examples = [hard_row(i) for i in range(8)]
    settings = {"inputs": inputs, "source": source, "seed": 0, "n_negatives": 3, "fixed": LABELS}
    settings["n_hard"] = n_hard
    batch = planned(0, np.array([5, 2, 7, 0, 1, 3]))
    whole = Collator(examples, text, **settings).map(batch)
    parts = [
        Collator(examples, text, **settings, part=part).map(batch) for part in np.arange(6).reshape(3, 2)
    ]
    alone = jax.tree_util.tree_leaves_with_path(whole)
    for (path, expected), *found in zip(alone, *map(jax.tree.leaves, parts), strict=True):
        shared = len(found[0]) == len(expected)  # what all processes have
        together = found[0] if shared else np.concatenate(found)
        np.testing.assert_array_equal(together, expected, err_msg=str(path))
        assert len(found[0]) == (len(expected) if shared else 2)


def test_the_plan_knows_the_padded_lengths(text):
    examples = [row(i) for i in range(8)]
    loader, plan = make_loader(examples, text, BatchConfig(batch_size=4), inputs="dual", n_batches=4, seed=0)
    for number, batch in enumerate(loader):
        context, label = plan[number].lengths
        assert batch.inputs.context.ids.shape[1] == context
        assert batch.inputs.shared.tokens.ids.shape[1] == label


@pytest.mark.parametrize("inputs", ["dual", "pairs"])
@pytest.mark.parametrize("source", ["batch", "inline", "sampled", "fixed"])
def test_each_source_gives_the_candidates_it_names(text, inputs, source):
    examples = [row(i, f"{LABELS[i]}x", f"{LABELS[i]}y") for i in range(8)]
    fixed = ["zz", *LABELS, "yy"]
    collator = Collator(examples, text, inputs=inputs, source=source, seed=0, n_negatives=3, fixed=fixed)
    chosen = np.array([5, 2, 7])
    batch = collator.map(planned(0, chosen))
    contexts = ["".join(examples[i].context) for i in chosen]
    for place, i in enumerate(chosen):
        found = candidates_of(batch, place, contexts)
        where = batch.where[place]
        assert found[batch.label[place]] == LABELS[i], "the label is in its place"
        assert where.all() and len(set(found)) == len(found)
        expected = {
            "batch": [LABELS[j] for j in chosen],
            "inline": list(examples[i].candidates),
            "fixed": fixed,
        }
        if source == "sampled":
            assert len(found) == 4 and set(found) < set(LABELS)
        else:
            assert found == expected[source]


@pytest.mark.parametrize("inputs", ["dual", "pairs"])
@pytest.mark.parametrize("source", ["batch", "inline", "sampled", "fixed"])
def test_a_rows_own_negatives_and_scores_join_every_source(text, inputs, source):
    """They come last; the teacher's scores are where their texts are, and nowhere else."""
    examples, chosen = [hard_row(i) for i in range(8)], np.array([5, 2, 7, 0])
    collator = Collator(
        examples, text, inputs=inputs, source=source, seed=0, n_negatives=3, fixed=LABELS, n_hard=2
    )
    batch = collator.map(planned(1, chosen))
    if inputs == "dual":
        assert (batch.inputs.shared is None) == (source in ("inline", "sampled"))
    contexts = ["".join(examples[i].context) for i in chosen]
    for place, i in enumerate(chosen):
        example = examples[i]
        found = np.array(candidates_of(batch, place, contexts))
        where, teacher = batch.where[place], jax.tree.map(lambda x, place=place: x[place], batch.teacher)
        assert found[batch.label[place]] == LABELS[i] and where[batch.label[place]]
        own = set(found[where].tolist()) & set(example.negatives)
        assert len(own) == min(i % 4, 2), "as many as there are, two at most"
        texts = example.candidates + example.negatives
        of_text = dict(zip(texts, example.scores, strict=True))
        known = {LABELS[i], *own} | (set(example.candidates) if source == "inline" else set())
        counted = zip(found.tolist(), teacher.scores.tolist(), teacher.where & where, strict=True)
        scored = {text: score for text, score, there in counted if there}
        assert scored == {text: of_text[text] for text in known}
        assert (teacher.scores[~teacher.where] == 0).all()


def test_hard_negatives_are_drawn_anew_in_each_epoch_and_alike_in_each_run(text):
    example = dataclasses.replace(row(0), negatives=tuple("qrstuvwx"))
    collator = lambda seed: Collator(  # noqa: E731
        [example, row(1)], text, inputs="dual", source="batch", seed=seed, n_hard=3
    )

    def drawn(epoch, seed=0):
        return candidates_of(collator(seed).map(planned(epoch, np.array([0, 1]))), 0, [])[2:]

    assert all(len(set(drawn(epoch))) == 3 and set(drawn(epoch)) <= set("qrstuvwx") for epoch in range(4))
    assert drawn(0) == drawn(0) and len({tuple(drawn(epoch)) for epoch in range(4)}) > 1
    assert drawn(0) != drawn(0, seed=1)
    batch = collator(0).map(planned(0, np.array([0, 1])))
    assert batch.where[1].tolist() == [True, True, False, False, False], "the other row has none of its own"


def test_rows_without_what_a_loss_needs_are_refused_before_anything(text):
    rows = [hard_row(i) for i in range(8)]

    def make(rows, **config):
        settings = BatchConfig(batch_size=2, **config)
        make_loader(rows, text, settings, inputs="dual", n_batches=1, seed=0, needs_teacher=True)

    make(rows, candidates="inline")
    with pytest.raises(InputError) as error:  # with its label alone, the first row has one score
        make(rows)
    assert error.value.argument == "loss" and "row 0" in error.value.got
    with pytest.raises(InputError) as error:
        make([*rows[:5], dataclasses.replace(rows[5], scores=None)], candidates="inline")
    assert error.value.argument == "loss" and "row 5" in error.value.got
    with pytest.raises(InputError) as error:
        make([*rows[:5], dataclasses.replace(row(1, "a"), scores=(1.0,))])
    assert (error.value.argument, error.value.got) == ("scores", 1)


@pytest.mark.parametrize("inputs", ["dual", "pairs"])
def test_copies_of_the_label_are_no_negatives_and_short_lists_are_filled_up(text, inputs):
    examples = [row(0, "aa", "bb", "cc"), row(1, "dd")]
    make = lambda mask: Collator(  # noqa: E731
        examples, text, inputs=inputs, source="inline", seed=0, mask_duplicates=mask
    ).map(planned(0, np.array([0, 1])))
    assert make(True).where.tolist() == [[False, True, True, True], [True, True, False, False]]
    assert make(False).where.tolist() == [[True] * 4, [True, True, False, False]]
    assert make(True).label.tolist() == [3, 1]


def test_fixed_candidates_are_read_from_a_file_and_must_hold_every_label(text, tmp_path):
    path = tmp_path / "fixed.txt"
    path.write_text("\n".join(LABELS[:7]) + "\n")
    config = BatchConfig(batch_size=2, candidates="fixed", fixed_file=path)
    make = lambda examples: make_loader(examples, text, config, inputs="dual", n_batches=3, seed=0)  # noqa: E731
    batch = next(make([row(i) for i in range(7)])[0])
    assert batch.inputs.shared.tokens.ids.shape[0] == 7 and batch.where.all()
    assert not batch.inputs.shared.of_rows
    with pytest.raises(InputError) as error:
        make([row(i) for i in range(8)])
    assert (error.value.argument, error.value.got) == ("batch.fixed_file", "row 7: 'hh' is not")
    for wrong in ({"candidates": "fixed"}, {"fixed_file": path}):
        with pytest.raises(InputError) as error:
            BatchConfig(**wrong)
        assert error.value.argument == "batch.fixed_file"


def test_rows_without_candidates_are_no_inline_rows(text):
    config = BatchConfig(batch_size=2, candidates="inline")
    examples = [row(i, "zz") if i != 3 else row(i) for i in range(8)]
    with pytest.raises(InputError) as error:
        make_loader(examples, text, config, inputs="dual", n_batches=1, seed=0)
    assert error.value.argument == "batch.candidates" and "row 3" in error.value.got


def test_examples_that_are_drawn_anew_differ_by_epoch(text):
    class Drawn(list):
        def at(self, index, epoch):
            return row((index + epoch) % 8)

    collator = Collator(Drawn(row(i) for i in range(8)), text, inputs="dual", source="batch", seed=0)
    first, later = (collator.map(planned(epoch, np.array([0, 1]))) for epoch in (0, 3))
    assert candidates_of(first, 0, [])[0] == "aa" and candidates_of(later, 0, [])[0] == "dd"


def test_ranked_among_the_batch():
    """Each row is ranked among the labels of rows that are thrown together, its own at its place."""
    rows = Rows([row(i) for i in range(8)])
    found = ranked_among(rows, RankConfig(candidates="batch", n=3)).examples
    assert all(e.label_text == LABELS[i] and len(set(e.candidates)) == 3 for i, e in enumerate(found))
    batches = {frozenset(e.candidates) for e in found}
    assert len(batches) == 3 and set().union(*batches) == set(LABELS), "the last batch reaches back"
    assert {tuple(sorted(batch)) for batch in batches} != {
        ("aa", "bb", "cc"),
        ("dd", "ee", "ff"),
        ("ff", "gg", "hh"),
    }
    assert ranked_among(rows, RankConfig(candidates="batch", n=3)).examples == found
    assert ranked_among(rows, RankConfig(candidates="batch", n=3, seed=1)).examples != found
    with pytest.raises(InputError) as error:
        ranked_among(rows, RankConfig(candidates="batch", n=9))
    assert (error.value.argument, error.value.got) == ("rank.n", 9)


def test_ranked_among_sampled_fixed_and_inline(tmp_path):
    rows = Rows([row(i, f"{LABELS[i]}x") for i in range(8)], note="a note")
    sampled = ranked_among(rows, RankConfig(candidates="sampled", n=4, seed=3))
    assert sampled.note == "a note"
    for i, example in enumerate(sampled.examples):
        assert len(set(example.candidates)) == 4 and example.label_text == LABELS[i]
        assert set(example.candidates) <= set(LABELS)
    again = ranked_among(rows, RankConfig(candidates="sampled", n=4, seed=3))
    assert again.examples == sampled.examples
    assert ranked_among(rows, RankConfig(candidates="sampled", n=4)).examples != sampled.examples

    path = tmp_path / "fixed.txt"
    path.write_text("one\ntwo\none\n")
    fixed = ranked_among(rows, RankConfig(candidates="fixed", file=path))
    assert fixed.shared == ["one", "two"] and fixed.examples[2].candidates == ("cc",)

    assert ranked_among(rows, RankConfig()) is rows
    assert ranked_among(rows, RankConfig(candidates="inline")).examples == rows.examples
    with pytest.raises(InputError) as error:
        ranked_among(Rows([row(1)]), RankConfig(candidates="inline"))
    assert error.value.argument == "rank.candidates"
    for wrong in ({"candidates": "fixed"}, {"file": path}):
        with pytest.raises(InputError) as error:
            RankConfig(**wrong)
        assert error.value.argument == "rank.file"


def test_a_drawn_article_is_never_its_own_negative(text):
    """Its label is another text in each epoch, so that only its number tells it apart."""

    class Drawn(list):
        def at(self, index, epoch):
            context = "x" + "ijklmnop"[index]
            return Example(str(index), (context,), (LABELS[index] + "klm"[epoch % 3],), 0, str(index))

    examples = Drawn(row(i) for i in range(8))
    collator = Collator(examples, text, inputs="pairs", source="sampled", seed=0, n_negatives=7)
    for epoch in range(4):
        batch = collator.map(planned(epoch, np.arange(8)))
        for i in range(8):
            found = candidates_of(batch, i, ["x" + letter for letter in "ijklmnop"])
            assert [text[:2] for text in found].count(LABELS[i]) == 1
            assert {text[2:] for text in found} == {"klm"[epoch % 3]}, "as they are in this epoch"


def test_texts_of_other_alphabets_are_different():
    rows = Rows([Example(str(i), (f"как {i}",), (f"ответ номер {i}",), 0, str(i)) for i in range(40)])
    found = ranked_among(rows, RankConfig(candidates="sampled", n=20)).examples
    assert all(len(set(e.candidates)) == 20 for e in found)


def test_a_chunk_is_a_part_of_a_batch():
    assert BatchConfig(batch_size=32, chunk=32).chunk == 32
    with pytest.raises(InputError) as error:
        BatchConfig(batch_size=32, chunk=64)
    assert (error.value.argument, error.value.got) == ("batch.chunk", 64)
