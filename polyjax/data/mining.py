"""Which candidates of a ranked list are hard negatives: pure functions of scores, in numpy.

The rules are those of sentence-transformers' ``mine_hard_negatives``, in its order, so that settings found
with it give the same negatives here. NV-Retriever (arXiv 2407.15831) compares them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from polyjax.errors import InputError

RULES = (
    "right answer",
    "already listed",
    "absolute_margin",
    "relative_margin",
    "max_score",
    "min_score",
    "range_min",
    "range_max",
    "more than n_negatives",
)
"""Why a candidate is no negative, in the order in which it is asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which of the best candidates of a context become its negatives.

    Attributes:
        n_negatives: at most so many for each row.
        range_min: of the candidates that the other rules leave, the best so many are left out.
        range_max: candidates beyond this place are left out; 0 for ``range_min`` + 10 x ``n_negatives``.
        absolute_margin: a negative scores at least so much less than the right answer; None for no such rule.
        relative_margin: likewise, as a share of the size of the right answer's score.
        max_score: a negative scores at most so much.
        min_score: a negative scores at least so much.
        sampling: ``top`` takes the best, ``random`` draws among those that the rules leave.
        seed: of the draw.
    """

    n_negatives: int = 7
    range_min: int = 0
    range_max: int = 0
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    max_score: float | None = None
    min_score: float | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        for name, least in {"n_negatives": 1, "range_min": 0, "range_max": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(name, expected=f"at least {least}", got=getattr(self, name))
        if self.range_max and self.range_max < self.range_min + self.n_negatives:
            expected = f"at least `range_min` + `n_negatives` ({self.range_min + self.n_negatives}), or 0"
            raise InputError("range_max", expected=expected, got=self.range_max)
        for name in ("absolute_margin", "relative_margin"):
            margin = getattr(self, name)
            if margin is not None and not (0 <= margin < math.inf):
                raise InputError(name, expected="a number of at least 0, or None", got=margin)
        for name in ("max_score", "min_score"):
            bound = getattr(self, name)
            if bound is not None and math.isnan(bound):
                raise InputError(name, expected="a number, or None", got=bound)
        low, high = self.min_score, self.max_score
        if low is not None and (low == math.inf or (high is not None and low > high)):
            raise InputError("min_score", expected=f"at most `max_score` ({high}), and finite", got=low)
        if self.sampling not in ("top", "random"):
            raise InputError("sampling", expected="top or random", got=self.sampling)

    @property
    def depth(self) -> int:
        """Wrong candidates of a context that are looked at."""
        return self.range_max or self.range_min + 10 * self.n_negatives


def choose(
    scores: np.ndarray,
    excluded: Mapping[str, np.ndarray],
    label_score: float,
    config: MiningConfig,
    *,
    row: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """The negatives among a context's best candidates.

    Args:
        scores: of the candidates that are looked at, float [k], in any order.
        excluded: True at candidates that are no negatives whatever they score, bool [k], by ``RULES``.
        label_score: of the right answer; the lowest one, where a context has several.
        config: the rules.
        row: number of the row, for the draw.

    Returns:
        Places of the negatives, int [n], best first, and how many candidates each of ``RULES`` left out,
        where it left out any. Each candidate counts for the first rule that it breaks.

    >>> scores = np.array([0.9, 0.88, 0.7, 0.6])
    >>> rules = MiningConfig(n_negatives=1)
    >>> right = np.array([True, False, False, False])
    >>> choose(scores, {"right answer": right}, 0.9, rules, row=0)
    (array([2]), {'right answer': 1, 'relative_margin': 1, 'more than n_negatives': 1})
    """
    exact = scores.astype(np.float64)
    broken = dict(excluded)
    if config.absolute_margin is not None:
        broken["absolute_margin"] = exact + config.absolute_margin > label_score
    if config.relative_margin is not None:
        # Not label_score x (1 - margin), which is above a negative label_score.
        broken["relative_margin"] = exact > label_score - config.relative_margin * abs(label_score)
    if config.max_score is not None:
        broken["max_score"] = exact > config.max_score
    if config.min_score is not None:
        broken["min_score"] = exact < config.min_score
    left, skipped = np.ones(len(scores), bool), {}
    for rule, breaks in broken.items():
        skipped[rule] = int((left & breaks).sum())
        left &= ~breaks
    places = np.flatnonzero(left)
    places = places[np.argsort(-scores[places], kind="stable")]
    skipped["range_min"] = min(config.range_min, len(places))
    skipped["range_max"] = max(len(places) - config.depth, 0)
    places = places[config.range_min : config.depth]
    n = min(config.n_negatives, len(places))
    skipped["more than n_negatives"] = len(places) - n
    if config.sampling == "random":
        draw = np.random.default_rng([config.seed, row])
        places = places[np.sort(draw.choice(len(places), n, replace=False))]
    return places[:n], {rule: count for rule, count in skipped.items() if count}
