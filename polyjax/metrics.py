"""Rank of the label, recall@k, mean reciprocal rank, and bootstrap intervals. numpy only."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def rank_of_label(
    scores: Float[np.ndarray, "b c"],
    label: Int[np.ndarray, " b"],
    where: Bool[np.ndarray, "b c"] | None = None,
) -> Int[np.ndarray, " b"]:
    """1-based rank of the labelled candidate; a tie counts against it, as does a score that is NaN.

    >>> rank_of_label(np.zeros((1, 4)), np.array([0])).tolist()  # a constant model learns nothing
    [4]
    """
    real = np.ones(scores.shape, bool) if where is None else where
    right = np.take_along_axis(scores, label[:, None], axis=1)
    ahead = ~(scores < right) & real  # not "scores >= right": a NaN must not win
    np.put_along_axis(ahead, label[:, None], False, axis=1)
    return 1 + ahead.sum(axis=1)


def recall_at(ranks: Int[np.ndarray, " b"], k: int) -> float:
    """Share of examples whose label is among the best k.

    >>> recall_at(np.array([1, 3]), 2)
    0.5
    """
    return float((ranks <= k).mean())


def mean_reciprocal_rank(ranks: Int[np.ndarray, " b"]) -> float:
    """Mean of 1 / rank.

    >>> mean_reciprocal_rank(np.array([1, 2]))
    0.75
    """
    return float((1.0 / ranks).mean())


def bootstrap_interval(
    values: Float[np.ndarray, " b"],
    groups: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values``, resampling whole groups (conversations).

    Rows of one conversation are not independent; drawing rows would give intervals that are too narrow.

    Args:
        values: one number an example.
        groups: the group of each example.
        draws: bootstrap samples.
        seed: of the draws.
        level: share of the draws inside the interval.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(index, weights=values)
    sizes = np.bincount(index).astype(float)
    n = len(sums)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=draws).astype(float)
    means = (times @ sums) / (times @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class RankingResult:
    """Ranks of the labels of a set of examples, each among ``n_candidates``.

    Attributes:
        name: what was measured, for tables.
        ranks: 1-based, int [b].
        groups: group of each example.
        n_candidates: candidates an example.
    """

    name: str
    ranks: np.ndarray
    groups: tuple[str, ...]
    n_candidates: int

    def recall(self, k: int) -> float:
        """recall@k/n_candidates."""
        return recall_at(self.ranks, k)

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank."""
        return mean_reciprocal_rank(self.ranks)

    def recall_interval(self, k: int) -> tuple[float, float]:
        """95% interval of recall@k by bootstrap over groups."""
        return bootstrap_interval((self.ranks <= k).astype(float), self.groups)

    def gain_interval(self, other: "RankingResult", k: int = 1) -> tuple[float, float]:
        """95% interval of this recall@k minus the other's on the same examples (paired bootstrap)."""
        gain = (self.ranks <= k).astype(float) - (other.ranks <= k).astype(float)
        return bootstrap_interval(gain, self.groups)

    def summary(self, ks: Sequence[int] = (1, 2, 5, 10)) -> dict[str, float | int | list[float]]:
        """Plain figures by name; every recall names its candidate count."""
        figures: dict[str, float | int | list[float]] = {
            f"recall@{k}/{self.n_candidates}": self.recall(k) for k in ks if k < self.n_candidates
        }
        figures["mrr"] = self.mrr
        figures[f"recall@1/{self.n_candidates} 95% interval"] = list(self.recall_interval(1))
        figures["n"] = len(self.ranks)
        return figures
