"""Which sequences share a batch: each once, in shapes that are known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyjax.data.text import TextConfig
from polyjax.inference import batching as module
from polyjax.inference.batching import Batching, column_bucket, column_buckets, filled, real
from polyjax.types import Tokens

LIMIT = 40
sizes = st.tuples(
    st.sampled_from([(8, 16, 32), (16, 40, 64), (3,)]),
    st.sampled_from(["bucket", "longest"]),
    st.sampled_from([1, 16, 64, 100]),
    st.sampled_from([1, 2, 3, 8]),
)
lengths = st.lists(st.integers(0, LIMIT), max_size=60).map(lambda found: np.array(found, int))


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    """A few dozen sequences are many already."""
    monkeypatch.setattr(module, "MANY_BATCHES", 4)


def batching_of(buckets, padding, tokens, devices) -> Batching:
    text = TextConfig(candidate_tokens=LIMIT, buckets=buckets, padding=padding)
    return Batching(text=text, tokens=tokens, devices=devices)


@settings(deadline=None, max_examples=300)
@given(sizes, lengths)
def test_each_sequence_is_in_one_batch_that_has_room_for_it(sizes, lengths):
    batching = batching_of(*sizes)
    found = list(batching.batches(lengths, LIMIT))
    assert sorted(np.concatenate([places for places, _ in found] or [[]])) == list(range(len(lengths)))
    for places, length in found:
        assert lengths[places].max() <= length <= max(LIMIT, 1)
        rows = batching.rows(len(places), length)
        assert len(places) <= rows <= batching.full(length) and rows % batching.devices == 0


@settings(deadline=None, max_examples=300)
@given(sizes, lengths, st.integers(0, 20))
def test_every_batch_has_a_shape_that_is_compiled_ahead(sizes, lengths, more):
    """For so many sequences, and for fewer than were compiled for."""
    batching = batching_of(*sizes)
    ahead = batching.shapes(max(len(lengths), 1) + more, LIMIT)
    assert ahead == sorted(set(ahead))
    for places, length in batching.batches(lengths, LIMIT):
        assert (batching.rows(len(places), length), length) in ahead


def test_shapes_are_few():
    batching = Batching(text=TextConfig(candidate_tokens=48), tokens=1024)
    assert batching.shapes(1, 48) == [(1, 16), (1, 32), (1, 48)]
    assert batching.shapes(20, 48) == [
        (1, 16),
        (1, 32),
        (1, 48),
        (8, 16),
        (8, 32),
        (8, 48),
        (21, 48),
        (32, 32),
        (64, 16),
    ]


def test_many_are_padded_little_and_in_mixed_order():
    batching = Batching(text=TextConfig(buckets=(16, 128)), tokens=256)
    lengths = np.random.default_rng(0).integers(1, 129, 500)
    found = list(batching.batches(lengths, 128))
    assert found and all(length % module.STEP == 0 for _, length in found)
    padded = sum(len(places) * length for places, length in found)
    assert padded < 1.1 * lengths.sum()
    half = len(found) // 2
    first, second = (np.mean([length for _, length in part]) for part in (found[:half], found[half:]))
    assert 0.7 < first / second < 1.4
    again = list(batching.batches(lengths, 128))
    for (a, _), (b, _) in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_columns():
    assert [column_bucket(n) for n in (1, 16, 17, 1000)] == [16, 16, 32, 1024]
    for n in (1, 16, 17, 33, 300):
        assert column_buckets(n) == sorted({column_bucket(i) for i in range(1, n + 1)})
    np.testing.assert_array_equal(real([["a"], ["a", "b", "c"]]), [[True, False, False], [True] * 3])
    tokens = filled(Tokens(*(np.ones((2, 3), kind) for kind in (np.int32, bool, np.int32))), 5)
    assert tokens.ids.shape == (5, 3) and not tokens.mask[2:].any()
