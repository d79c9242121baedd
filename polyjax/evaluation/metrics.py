"""Rank of the label, recall@k, mean reciprocal rank, and bootstrap intervals."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

from polyjax.errors import InputError, shown

FEW_GROUPS = 10
"""Below so many groups, resampling them alone gives intervals that are far too narrow."""


def rank_of_label(
    scores: Float[np.ndarray, "b c"],
    label: Int[np.ndarray, " b"],
    where: Bool[np.ndarray, "b c"] | None = None,
) -> Int[np.ndarray, " b"]:
    """1-based rank of the labelled candidate, int [b]; a tie counts against it, as does a score of NaN.

    >>> rank_of_label(np.zeros((1, 4)), np.array([0])).tolist()  # a constant model learns nothing
    [4]

    Args:
        scores: [b, c].
        label: index of the right candidate, [b].
        where: True for real candidates; None for all.
    """
    right = np.zeros(scores.shape, bool)
    np.put_along_axis(right, label[:, None], True, axis=1)
    return rank_of_right(scores, right, where)


def rank_of_right(
    scores: Float[np.ndarray, "b c"],
    right: Bool[np.ndarray, "b c"],
    where: Bool[np.ndarray, "b c"] | None = None,
) -> Int[np.ndarray, " b"]:
    """1-based rank of the best right candidate among the wrong ones, int [b]; other right ones do not count.

    A tie with a wrong candidate counts against it, as does a score of NaN.

    >>> rank_of_right(np.array([[3.0, 2.0, 1.0, 1.0]]), np.array([[False, True, True, False]])).tolist()
    [2]

    Args:
        scores: [b, c].
        right: True for right candidates, [b, c].
        where: True for real candidates; None for all.
    """
    real = np.ones(scores.shape, bool) if where is None else where
    # A NaN among the right candidates is ignored; if all are NaN, every wrong candidate is ahead.
    best = np.where(right & real & ~np.isnan(scores), scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ~(scores < best) & real & ~right  # not "scores >= best": a NaN must not win
    return 1 + ahead.sum(axis=1)


def recall_at(ranks: Int[np.ndarray, " b"], k: int) -> float:
    """recall@k: the share of examples whose label is among the best k.

    >>> recall_at(np.array([1, 3]), 2)
    0.5
    """
    return float((ranks <= k).mean())


def mean_reciprocal_rank(ranks: Int[np.ndarray, " b"]) -> float:
    """Mean reciprocal rank (MRR): the mean of 1 / rank.

    >>> mean_reciprocal_rank(np.array([1, 2]))
    0.75
    """
    return float((1.0 / ranks).mean())


def bootstrap_interval(
    values: Float[np.ndarray, " b"],
    groups: Sequence[str],
    *,
    bounds: tuple[float, float],
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``, resampling whole groups (conversations).

    Rows of one conversation are not independent, so resampling rows would give too narrow intervals. If all
    groups have the same mean, every sample has it too, and the interval would have no width. Then the result
    is Wilson's interval (JASA 22, 1927) with the groups as trials. A few groups say little about how groups
    differ: with fewer than 10, the interval includes Student's over groups, and the bootstrap's over rows.

    >>> low, high = bootstrap_interval(np.ones(17), [str(i) for i in range(17)], bounds=(0.0, 1.0))
    >>> f"{low:.3f}, {high:.3f}"  # 17 right of 17
    '0.816, 1.000'

    Args:
        values: one number per example, [b].
        groups: the group of each example.
        bounds: smallest and largest possible value of an example.
        draws: number of bootstrap samples.
        seed: seed of the samples.
        level: confidence level of the interval.

    Raises:
        InputError: there is no example, or not one group for each.
    """
    if not len(values) or len(values) != len(groups):
        got = shown(f"{len(values):,} and {len(groups):,}")
        raise InputError("groups", expected="a number and a group for at least one example", got=got)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(index, weights=values)
    sizes = np.bincount(index).astype(float)
    n = len(sums)
    if np.ptp(sums / sizes) < 1e-12:
        # Wilson's interval for 0 or n successes adds z squared trials with the opposite outcome.
        mean, squared = float(values.mean()), NormalDist().inv_cdf((1 + level) / 2) ** 2
        share = squared / (n + squared)
        return mean + share * (bounds[0] - mean), mean + share * (bounds[1] - mean)
    low, high = _resampled(sums, sizes, draws=draws, seed=seed, level=level)
    if n >= FEW_GROUPS:
        return low, high
    from scipy.special import stdtrit  # a tenth of the time of `import polyjax`, needed for few groups only

    mean = float(values.mean())
    spread = sizes * (sums / sizes - mean) / sizes.mean()
    half = stdtrit(n - 1, (1 + level) / 2) * math.sqrt(float((spread**2).sum()) / (n - 1) / n)
    rows = _resampled(values, np.ones(len(values)), draws=draws, seed=seed, level=level)
    return max(min(low, mean - half, rows[0]), bounds[0]), min(max(high, mean + half, rows[1]), bounds[1])


def _resampled(
    sums: np.ndarray, sizes: np.ndarray, *, draws: int, seed: int, level: float
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum over size, resampling units with these sums and sizes."""
    n = len(sums)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=draws).astype(float)
    means = (times @ sums) / (times @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class RankingResult:
    """Ranks of the labels of a set of examples, each among ``n_candidates``.

    Attributes:
        name: name of the model or baseline, for tables.
        ranks: 1-based rank of each example's label, int [b].
        groups: group of each example.
        n_candidates: candidates per example.
    """

    name: str
    ranks: np.ndarray
    groups: tuple[str, ...]
    n_candidates: int

    def hits(self, k: int) -> Float[np.ndarray, " b"]:
        """1 for each example whose label is among the best k, else 0; float [b]."""
        return (self.ranks <= k).astype(float)

    def recall(self, k: int) -> float:
        """recall@k: the share of examples whose label is among the best k of ``n_candidates``."""
        return float(self.hits(k).mean())

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank."""
        return mean_reciprocal_rank(self.ranks)

    def recall_interval(self, k: int) -> tuple[float, float]:
        """95% confidence interval of recall@k, by bootstrap over groups."""
        return bootstrap_interval(self.hits(k), self.groups, bounds=(0.0, 1.0))

    def gain_interval(self, other: "RankingResult", k: int = 1) -> tuple[float, float]:
        """95% confidence interval of the difference of recall@k, this minus other (paired bootstrap).

        Args:
            other: a result on the same examples, in the same order.
            k: number of best candidates.

        Raises:
            InputError: ``other`` is of other examples.
        """
        if list(self.groups) != list(other.groups):
            got = shown(f"{len(other.groups):,} rows of other groups")
            raise InputError("other", expected=f"a result on the same {len(self.groups):,} rows", got=got)
        return bootstrap_interval(self.hits(k) - other.hits(k), self.groups, bounds=(-1.0, 1.0))

    def summary(self, ks: Sequence[int] = (1, 2, 5, 10)) -> dict[str, float | int | list[float]]:
        """The metrics by name, for JSON; the name of a recall has the number of candidates, as recall@1/20.

        Args:
            ks: the k of the recalls; those not below ``n_candidates`` are left out.
        """
        metrics: dict[str, float | int | list[float]] = {
            f"recall@{k}/{self.n_candidates}": self.recall(k) for k in ks if k < self.n_candidates
        }
        metrics["mrr"] = self.mrr
        metrics[f"recall@1/{self.n_candidates} 95% interval"] = list(self.recall_interval(1))
        metrics["n"] = len(self.groups)
        return metrics


class Chance(RankingResult):
    """The expected metrics of random rankings, computed exactly.

    Args:
        groups: group of each example.
        n_candidates: candidates per example.
        n_right: how many of them are right, of which the best placed one counts, int [b]; 1 by default.
    """

    def __init__(
        self, groups: tuple[str, ...], n_candidates: int, n_right: Int[np.ndarray, " b"] | None = None
    ):
        self._n_right = np.ones(len(groups), int) if n_right is None else n_right
        super().__init__("chance", (n_candidates + 1) / (self._n_right + 1), groups, n_candidates)

    def hits(self, k: int) -> Float[np.ndarray, " b"]:
        """The probability that a right candidate of an example is among the best k, float [b]."""
        n = self.n_candidates
        every = math.comb(n, min(k, n))
        found = {r: (every - math.comb(n - r, min(k, n))) / every for r in set(self._n_right.tolist())}
        return np.array([found[r] for r in self._n_right.tolist()])

    @property
    def mrr(self) -> float:
        """Expected reciprocal rank."""
        n, expected = self.n_candidates, {}
        for r in set(self._n_right.tolist()):
            places = range(1, n - r + 2)  # of the best right one
            expected[r] = sum(math.comb(n - k, r - 1) / k for k in places) / math.comb(n, r)
        return float(np.mean([expected[r] for r in self._n_right.tolist()]))

    def recall_interval(self, k: int) -> tuple[float, float]:
        """The exact recall as both bounds: nothing is estimated."""
        return self.recall(k), self.recall(k)
