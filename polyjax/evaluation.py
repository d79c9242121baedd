"""Ranking figures of a scorer on examples with listed candidates."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyjax.files import write_text
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


def write_examples(folder: Path, examples: Sequence[Example], evaluation: Evaluation) -> None:
    """What was ranked, and how: examples.jsonl, and run.trec and qrels.trec for TREC's tools.

    A candidate's document is called EXAMPLE#PLACE, after its place in the row. Tools of TREC settle equal
    scores by a document's name; here a tie counts against the label.

    Args:
        folder: is made where it is not there.
        examples: the rows, with listed candidates.
        evaluation: of these rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, run, qrels = [], [], []
    for example, rank, scores in zip(examples, evaluation.ranking.ranks, evaluation.scores, strict=True):
        order = np.argsort(-scores, kind="stable").tolist()
        facts = {
            "id": example.id,
            "context": example.context,
            "label": example.label,
            "rank": int(rank),
            "best": [example.candidates[i] for i in order[:3]],
            "candidates": example.candidates,
            "scores": [float(score) for score in scores],
        }
        lines.append(json.dumps(facts, ensure_ascii=False))
        name = "_".join(example.id.split())  # columns are separated by white space
        tag = "_".join(evaluation.ranking.name.split())
        run += [
            f"{name} Q0 {name}#{i} {place} {scores[i]:.9g} {tag}" for place, i in enumerate(order, start=1)
        ]
        qrels.append(f"{name} 0 {name}#{example.label} 1")
    for file, content in (("examples.jsonl", lines), ("run.trec", run), ("qrels.trec", qrels)):
        write_text(folder / file, "\n".join(content) + "\n")
