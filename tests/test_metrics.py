"""Ranks, recall, MRR and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyjax.errors import InputError
from polyjax.evaluation.metrics import Chance, RankingResult, bootstrap_interval, rank_of_label, recall_at
from polyjax.evaluation.rankings import some
from polyjax.types import Example


def test_a_constant_model_ranks_last():
    assert rank_of_label(np.zeros((2, 20)), np.array([0, 19])).tolist() == [20, 20]


def test_a_nan_score_never_wins():
    scores = np.array([[np.nan, 1.0, 2.0], [1.0, np.nan, 0.5]])
    assert rank_of_label(scores, np.array([0, 0])).tolist() == [3, 2]


def test_masked_candidates_do_not_count():
    scores = np.array([[1.0, 5.0, 0.0]])
    assert rank_of_label(scores, np.array([0]), np.array([[True, False, True]])).tolist() == [1]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.integers(0, 11))
def test_rank_equals_counting(scores, place):
    label = place % len(scores)
    others = [s for i, s in enumerate(scores) if i != label]
    expected = 1 + sum(s >= scores[label] for s in others)
    assert rank_of_label(np.array([scores], float), np.array([label])).tolist() == [expected]


def test_interval_of_groups_is_wider_than_of_rows(rng):
    """50 conversations whose rows all agree carry 50 pieces of information, not 1,000."""
    by_group = rng.random(50) < 0.5
    values = np.repeat(by_group, 20).astype(float)
    groups = [f"g{i // 20}" for i in range(1000)]
    low, high = bootstrap_interval(values, groups, bounds=(0.0, 1.0))
    row_low, row_high = bootstrap_interval(values, [str(i) for i in range(1000)], bounds=(0.0, 1.0))
    assert low < values.mean() < high
    assert 3.5 < (high - low) / (row_high - row_low) < 5.5  # sqrt(20) = 4.5


def test_interval_covers_the_truth_as_often_as_it_says(rng):
    covered = 0
    for i in range(200):
        values = (rng.random(100) < 0.6).astype(float)
        names = [str(j) for j in range(100)]
        low, high = bootstrap_interval(values, names, bounds=(0.0, 1.0), draws=500, seed=i)
        covered += low <= 0.6 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_few_groups_are_no_reason_for_a_narrow_interval(rng):
    """Two sources of about the same recall gave an interval of one point."""
    values = np.array([1.0] * 50 + [0.0] * 50 + [1.0] * 51 + [0.0] * 49)
    two = bootstrap_interval(values, ["a"] * 100 + ["b"] * 100, bounds=(0.0, 1.0))
    rows = bootstrap_interval(values, [str(i) for i in range(200)], bounds=(0.0, 1.0))
    assert two[0] <= rows[0] + 0.01 and two[1] >= rows[1] - 0.01  # draws differ with the order of names
    covered = 0
    for _ in range(300):  # sources differ by .15: what matters is their number
        means = rng.normal(0.5, 0.15, 4)
        values = np.repeat(means, 50) + rng.normal(0, 0.1, 200)
        names = list(np.repeat(list("abcd"), 50))
        low, high = bootstrap_interval(values, names, bounds=(0.0, 1.0), draws=200)
        covered += low <= 0.5 <= high
    assert covered >= 270


def test_summary_names_the_candidate_count():
    result = RankingResult("m", np.array([1, 2, 11, 20]), ("a", "a", "b", "b"), 20)
    summary = result.summary()
    assert summary["recall@1/20"] == 0.25
    assert summary["recall@10/20"] == 0.5
    assert summary["n"] == 4
    assert recall_at(result.ranks, 20) == 1.0
    assert not any(key.startswith("recall@20") for key in summary)


def test_few_rows_that_are_all_right_are_no_certainty():
    """Wilson's interval at 0 and at n successes, and its like for differences; narrower with more groups."""
    all_right = RankingResult("m", np.ones(20, int), tuple("abcdefghij" * 2), 5)
    z = 1.959964
    assert all_right.recall_interval(1) == pytest.approx((10 / (10 + z**2), 1.0))  # ten groups, not twenty
    all_wrong = RankingResult("m", np.full(20, 5), all_right.groups, 5)
    assert all_wrong.recall_interval(1) == pytest.approx((0.0, z**2 / (10 + z**2)))
    low, high = all_right.gain_interval(all_right)
    assert (low, high) == pytest.approx((-(z**2) / (10 + z**2), z**2 / (10 + z**2)))
    assert all_right.gain_interval(all_wrong) == pytest.approx((1 - 2 * high, 1.0))


def test_intervals_of_rows_that_agree_are_no_narrower_than_those_with_one_that_differs():
    names = [str(i) for i in range(17)]
    low, _ = bootstrap_interval(np.ones(17), names, bounds=(0.0, 1.0))
    low_of_one_wrong, _ = bootstrap_interval(np.array([0.0] + 16 * [1.0]), names, bounds=(0.0, 1.0))
    assert low_of_one_wrong - 0.02 < low < 0.9


def test_results_of_other_rows_are_not_compared():
    one = RankingResult("m", np.array([1, 2]), ("a", "b"), 20)
    for other in (Chance(("a", "b", "c"), 20), Chance(("b", "a"), 20)):
        with pytest.raises(InputError, match="a result on the same 2 rows"):
            one.gain_interval(other)
    with pytest.raises(InputError, match="for at least one example"):
        bootstrap_interval(np.zeros(0), [], bounds=(0.0, 1.0))


def test_chance_is_known_and_is_what_draws_reach_in_the_mean(rng):
    chance = Chance(("a", "b", "c"), 20)
    assert [chance.recall(k) for k in (1, 10, 20)] == pytest.approx([0.05, 0.5, 1.0])
    assert chance.recall_interval(1) == pytest.approx((0.05, 0.05)) and chance.summary()["n"] == 3
    drawn = RankingResult("drawn", rng.integers(1, 21, 20_000), tuple(map(str, range(20_000))), 20)
    assert drawn.recall(5) == pytest.approx(chance.recall(5), abs=0.01)
    assert drawn.mrr == pytest.approx(chance.mrr, abs=0.01)
    first = RankingResult("m", np.array([1, 20, 20]), ("a", "b", "c"), 20)
    low, high = first.gain_interval(chance)
    assert low < 1 / 3 - 0.05 < high


def test_chance_counts_all_right_candidates(rng):
    """Of which the best placed one counts: rows of 5 candidates with 1, 2, 3 and 4 right ones."""
    n_right = np.array([1, 2, 3, 4])
    chance = Chance(("a", "b", "c", "d"), 5, n_right)
    order = rng.permuted(np.tile(np.arange(5), (40_000, 1)), axis=1)
    for i, r in enumerate(n_right.tolist()):
        ranks = 1 + (order < r).argmax(axis=1)
        for k in (1, 2, 5):
            assert chance.hits(k)[i] == pytest.approx(np.mean(ranks <= k), abs=0.01)
        alone = Chance(("a",), 5, n_right[i : i + 1])
        assert alone.mrr == pytest.approx(np.mean(1 / ranks), abs=0.01)
    assert chance.recall(1) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 3])
def test_recall_grows_with_k(k):
    ranks = np.array([1, 2, 3, 4])
    assert recall_at(ranks, k + 1) >= recall_at(ranks, k)


def test_some_examples_are_always_the_same_in_their_order():
    examples = [Example(str(i), ("a",), ("b",), 0, "g") for i in range(50)]
    chosen = some(examples, 10)
    assert chosen == some(examples, 10) and len(chosen) == 10
    assert [int(e.id) for e in chosen] == sorted({int(e.id) for e in chosen})
    assert some(examples, 0) == some(examples, 99) == examples
