"""Ranking figures of a scorer on examples with listed candidates."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from polyjax.metrics import RankingResult, rank_of_label
from polyjax.scoring import Progress, TextScorer, ignore
from polyjax.types import Example, InputError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Ranks of the labels, the scores they come from, and the mean cross-entropy (nats)."""

    ranking: RankingResult
    scores: np.ndarray
    loss: float


def some(examples: Sequence[Example], n: int) -> list[Example]:
    """At most n of the examples, always the same ones, in their order; all of them where n is 0."""
    if not n:
        return list(examples)
    chosen = np.random.default_rng(0).permutation(len(examples))[:n]
    return [examples[i] for i in sorted(chosen)]


def check_listed(examples: Sequence[Example], *, source: str) -> int:
    """The candidates of each example, the same number for all.

    Raises:
        InputError: there is no example, or their candidates differ in number.
    """
    counts = {len(example.candidates) for example in examples}
    if not counts:
        raise InputError(f"{source}: the split is empty")
    if len(counts) > 1:
        raise InputError(
            f"{source}: expected the same number of candidates in every example, got {sorted(counts)}"
        )
    return counts.pop()


def ranking(name: str, scores: np.ndarray, examples: Sequence[Example]) -> RankingResult:
    """The result of scores [b, c] on the examples."""
    label = np.array([example.label for example in examples])
    groups = tuple(example.group for example in examples)
    return RankingResult(name, rank_of_label(scores, label), groups, scores.shape[1])


def evaluate(
    name: str, scorer: TextScorer, examples: Sequence[Example], *, progress: Progress = ignore
) -> Evaluation:
    """Rank each example's candidates with a scorer.

    Args:
        name: of the result, for tables.
        scorer: the model.
        examples: with listed candidates, the same number each.
        progress: called with the number of examples done.
    """
    check_listed(examples, source=name)
    scores = scorer.score([e.context for e in examples], [e.candidates for e in examples], progress=progress)
    label = np.array([example.label for example in examples])
    wide = scores.astype(np.float64)
    highest = wide.max(axis=1, keepdims=True)
    total = highest[:, 0] + np.log(np.exp(wide - highest).sum(axis=1))
    loss = float((total - np.take_along_axis(wide, label[:, None], axis=1)[:, 0]).mean())
    return Evaluation(ranking(name, scores, examples), scores, loss)
