"""Pairs, packed rows, masked tokens."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_store import Counting

from polyjax.data.corpora.corpus import Conversation, Pairs, tokenise
from polyjax.data.corpora.masking import MaskingCollator
from polyjax.data.corpora.packing import PairPlan, PretrainBatchConfig, pack
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError

TEXT = TextConfig(max_turns=3, context_tokens=20, candidate_tokens=10, buckets=(8, 16, 24))
CONFIG = PretrainBatchConfig(tokens=29 * 8)
MASK, END = Counting.mask_id, Counting.end_id


def conversations(n=60, seed=0):
    draw = np.random.default_rng(seed)
    return [
        Conversation(
            str(i),
            tuple("".join(map(chr, draw.integers(10, 90, draw.integers(0, 12)))) for _ in range(2 + i % 5)),
            first_label=1 + (i % 7 == 0),
        )
        for i in range(n)
    ]


def corpus(n=60, seed=0):
    return Pairs(tokenise(conversations(n, seed), Counting()), TEXT, Counting())


def test_pairs_are_those_of_the_conversations():
    pairs, text = corpus(), TextEncoder(Counting(), TEXT)
    expected = [
        (c.turns[max(0, i - 3) : i], c.turns[i])
        for c in conversations()
        for i in range(c.first_label, len(c.turns))
    ]
    assert len(pairs) == len(expected) > 100
    for i, (context, label) in enumerate(expected):
        assert pairs.context(i).tolist() == text.context(context).tolist()
        assert pairs.label_tokens(i).tolist() == text.candidate(label)[1:].tolist()
        assert pairs.context_lengths[i] == len(pairs.context(i))
        assert pairs.label_lengths[i] == len(pairs.label_tokens(i))


def test_a_corpus_without_pairs_is_refused():
    with pytest.raises(InputError, match="no pair"):
        tokenise([Conversation("a", ("alone",)), Conversation("b", ("a", "b"), 2)], Counting())


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=80), st.integers(1, 5))
def test_packing_takes_each_sequence_once_and_none_too_many(lengths, most):
    rows = pack(np.array(lengths, int), 30, most)
    assert sorted(np.concatenate([*rows, np.zeros(0, int)]).tolist()) == list(range(len(lengths)))
    for row in rows:
        assert 1 <= len(row) <= most and sum(lengths[i] for i in row) <= 30


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(8, 100, 5000)
    rows = pack(lengths, 128, 8)
    assert lengths.sum() / (128 * len(rows)) > 0.97


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_takes_each_pair_at_most_once_and_leaves_out_little(packing):
    pairs = corpus(400)
    plan = PairPlan(pairs, dataclasses.replace(CONFIG, packing=packing), seed=0, n_batches=10**6)
    for epoch in range(2):
        start = epoch * plan.batches_in(0)
        batches = [plan[start + i] for i in range(plan.batches_in(epoch))]
        assert {batch.epoch for batch in batches} == {epoch}
        taken = np.concatenate([pair for batch in batches for pair in batch.pairs])
        assert len(set(taken.tolist())) == len(taken) > 0.9 * len(pairs)
    assert plan[0].pairs[0].tolist() != plan[plan.batches_in(0)].pairs[0].tolist()


@pytest.mark.parametrize("packing", [True, False])
def test_what_does_not_fill_a_batch_joins_the_next_group(packing):
    """An epoch of many small groups leaves out no more than the last batch of each length."""
    pairs = corpus(400)
    config = dataclasses.replace(CONFIG, packing=packing, group_batches=1)
    plan = PairPlan(pairs, config, seed=0, n_batches=1)
    batches = [plan[i] for i in range(plan.batches_in(0))]
    taken = sum(len(row) for batch in batches for row in batch.pairs)
    lengths = {batch.length for batch in batches}
    assert len(pairs) - taken < sum(config.tokens // length * plan.most for length in lengths)
    assert len(batches) > 20


def test_pairs_of_a_rare_length_are_learnt_too():
    """One long pair among many short ones joins no batch of its length; it ends an epoch, with short ones."""
    talks = [Conversation(str(i), ("hi", "ho")) for i in range(200)]
    talks.append(Conversation("long", ("x" * 18, "y" * 9)))
    pairs = Pairs(tokenise(talks, Counting()), TEXT, Counting())
    config = dataclasses.replace(CONFIG, packing=False, corrupted=0.0)
    plan = PairPlan(pairs, config, seed=0, n_batches=10**6)
    seen = [
        any(200 in row for i in range(plan.batches_in(epoch)) for row in plan[start + i].pairs)
        for epoch in range(3)
        for start in [sum(plan.batches_in(e) for e in range(epoch))]
    ]
    left_out = 201 - sum(len(row) for i in range(plan.batches_in(0)) for row in plan[i].pairs)
    assert left_out < config.tokens // 24
    assert all(seen) or left_out, "left out by chance of the draw, not always"


def test_a_plan_is_a_few_bytes_for_each_pair():
    pairs = corpus(20_000)
    plan = PairPlan(pairs, dataclasses.replace(CONFIG, tokens=29 * 64), seed=0, n_batches=10)
    epoch = plan._epoch(0)
    size = sum(array.nbytes for array in (epoch.labels, epoch.rows.members, epoch.rows.ends, epoch.batches))
    assert size < 13 * len(pairs)
    size = sum(array.nbytes for array in vars(pairs).values() if isinstance(array, np.ndarray))
    assert size <= 20 * len(pairs)


def test_an_epoch_is_planned_once(monkeypatch):
    plan, made = PairPlan(corpus(400), CONFIG, seed=0, n_batches=10**6), []
    original = PairPlan._make_epoch
    monkeypatch.setattr(
        PairPlan, "_make_epoch", lambda self, epoch: (made.append(epoch), original(self, epoch))[1]
    )
    longer = plan.of_length(10)
    for number in range(plan.batches_in(0) + 3):
        plan[number]
    assert longer[2].pairs[0].tolist() == plan[2].pairs[0].tolist() and len(longer) == 10
    assert made == [1, 0], "the next, and the first again; that was known when the plan was made"


def test_plans_repeat_in_every_process_and_differ_between_seeds():
    make = lambda seed: PairPlan(corpus(), CONFIG, seed=seed, n_batches=100)  # noqa: E731
    plan, again, other = make(0), pickle.loads(pickle.dumps(make(0))), make(1)
    for number in (17, 3, 60):
        for one, two in zip(plan[number].pairs, again[number].pairs, strict=True):
            np.testing.assert_array_equal(one, two)
    assert plan[0].pairs[0].tolist() != other[0].pairs[0].tolist()


def test_half_of_the_pairs_have_a_label_of_another_conversation():
    pairs = corpus(2000)
    plan = PairPlan(pairs, CONFIG, seed=0, n_batches=1)
    labels = plan.labels_of(0)
    corrupted = labels != np.arange(len(pairs))
    assert abs(corrupted.mean() - 0.5) < 4 * 0.5 / len(pairs) ** 0.5
    assert (pairs.conversation[labels[corrupted]] != pairs.conversation[corrupted]).all()
    assert (plan.labels_of(1) != labels).mean() > 0.5
    alone = Pairs(tokenise([Conversation("a", tuple("abcdefgh"))], Counting()), TEXT, Counting())
    few = PairPlan(alone, dataclasses.replace(CONFIG, tokens=29), seed=0, n_batches=1)
    assert (few.labels_of(0) == np.arange(7)).all(), "there is no other conversation"


def batches_of(pairs, config, **arguments):
    plan = PairPlan(pairs, config, seed=0, n_batches=10**6, **arguments)
    collator = MaskingCollator(pairs, config, seed=0, most=plan.most)
    return [(plan[i], collator.map(plan[i])) for i in range(plan.batches_in(0))]


def segments_of(batch, row):
    """The original tokens of each pair of a row, by its place in it."""
    ids = batch.tokens.ids[row].copy()
    there = batch.targets[row] >= 0
    ids[batch.masked[row][there]] = batch.targets[row][there]
    packs = (
        batch.tokens.packs[row] if batch.tokens.packs is not None else np.where(batch.tokens.mask[row], 0, -1)
    )
    return [(ids[packs == i], batch.tokens.segments[row][packs == i]) for i in range(packs.max() + 1)]


@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_their_pairs(packing):
    pairs = corpus()
    for planned, batch in batches_of(pairs, dataclasses.replace(CONFIG, packing=packing)):
        assert batch.tokens.ids.shape[1] == planned.length
        for row, (members, labels) in enumerate(zip(planned.pairs, planned.labels, strict=True)):
            found = segments_of(batch, row)
            assert len(found) == len(members)
            for i, (pair, label) in enumerate(zip(members.tolist(), labels.tolist(), strict=True)):
                context, answer = pairs.context(pair), pairs.label_tokens(label)
                np.testing.assert_array_equal(found[i][0], [*context, *answer])
                np.testing.assert_array_equal(found[i][1], [0] * len(context) + [1] * len(answer))
                assert batch.follows[row, i] == (pair == label)
                assert batch.tokens.ids[row, batch.first[row, i]] == Counting.start_id
            assert (batch.follows[row, len(members) :] == -1).all()
            assert (batch.tokens.ids[row][~batch.tokens.mask[row]] == 0).all()


def test_the_share_of_hidden_tokens_and_what_becomes_of_them():
    pairs = corpus(3000)
    masked = hidden = random = kept = ordinary = 0
    for _, batch in batches_of(pairs, CONFIG):
        ids, special = batch.tokens.ids, (0, 1, 2, 3, MASK)
        rows, slots = np.nonzero(batch.targets >= 0)
        now, was = ids[rows, batch.masked[rows, slots]], batch.targets[rows, slots]
        assert not np.isin(was, special).any(), "special tokens are never hidden"
        hidden += len(was)
        masked += (now == MASK).sum()
        kept += (now == was).sum()
        random += ((now != was) & (now != MASK)).sum()
        ordinary += (~np.isin(ids, (0, 1, 2, 3))).sum()
    assert hidden > 10_000
    assert abs(hidden / ordinary - 0.15) < 0.01, "each pair rounds its share"
    for count, share in ((masked, 0.8), (random, 0.1), (kept, 0.1)):
        assert abs(count / hidden - share) < 4 * (share * (1 - share) / hidden) ** 0.5 + 0.002


def test_hidden_tokens_are_drawn_anew_in_each_epoch_and_whatever_the_batch():
    pairs = corpus()
    collator = MaskingCollator(pairs, CONFIG, seed=0, most=4)
    whole = np.concatenate([pairs.context(5), pairs.label_tokens(5)])
    places = [tuple(collator._hide(whole, 5, epoch)[0]) for epoch in range(20)]
    assert len(set(places)) > 5
    assert places == [tuple(collator._hide(whole, 5, epoch)[0]) for epoch in range(20)]


def test_a_process_takes_its_own_rows():
    pairs = corpus()
    plan = PairPlan(pairs, CONFIG, seed=0, n_batches=100)
    whole = MaskingCollator(pairs, CONFIG, seed=0, most=plan.most).map(plan[3])
    parts = [
        MaskingCollator(pairs, CONFIG, seed=0, most=plan.most, part=(np.array(own), 4)).map(plan[3])
        for own in ([0, 1], [2, 3])
    ]
    for name in ("masked", "targets", "first", "follows"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
        )
    np.testing.assert_array_equal(np.concatenate([part.tokens.ids for part in parts]), whole.tokens.ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 28}, "at least 29, a row's"),
        ({"tokens": 10**6}, "do not fill a batch"),
        ({"masked": 1.5}, r"a share in \[0, 1\]"),
        ({"replaced": 0.8, "random": 0.3}, "more than 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    name, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=message) as caught:
        PairPlan(corpus(), dataclasses.replace(CONFIG, **changes), seed=0, n_batches=1)
    assert (caught.value.argument, caught.value.got) == (f"batch.{name}", value)
