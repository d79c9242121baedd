"""Ranking figures of a scorer, on rows that list their candidates or on rows that share them."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from polyjax.errors import InputError
from polyjax.evaluation.metrics import RankingResult, rank_of_label
from polyjax.inference.scorer import Progress, TextScorer, ignore
from polyjax.runtime.files import write_text
from polyjax.runtime.progress import meter
from polyjax.types import Example

KEPT = 1000
"""Best candidates of a row that are kept where all rows share thousands; TREC's runs have as many."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the candidates of b rows were ranked.

    Attributes:
        ranking: ranks of the labels.
        loss: mean cross-entropy of the labels (nats).
        best: places of the best candidates, best first, int [b, k]: all of a row's where rows list theirs;
            where they share them at most 1,000, and the number of the shared ones stands for the row's label.
        scores: of those, float32 [b, k]; -inf where a row has fewer candidates.
    """

    ranking: RankingResult
    loss: float
    best: np.ndarray
    scores: np.ndarray


def some(examples: Sequence[Example], n: int) -> list[Example]:
    """At most n of the examples, always the same ones, in their order; all of them where n is 0."""
    if not n:
        return list(examples)
    chosen = np.random.default_rng(0).permutation(len(examples))[:n]
    return [examples[i] for i in sorted(chosen.tolist())]


def check_candidates(examples: Sequence[Example], shared: Sequence[str], *, source: str) -> int:
    """The candidates that each example's label is ranked among.

    Raises:
        InputError: they differ in number, or there is nothing to rank.
    """
    if not shared:
        return check_listed(examples, source=source)
    if not examples:
        raise InputError(f"{source}: the split is empty")
    return len(shared) + bool((places_of_labels(examples, shared) == len(shared)).any())


def check_listed(examples: Sequence[Example], *, source: str) -> int:
    """The candidates of each example, the same number for all.

    Raises:
        InputError: there is no example, their candidates differ in number, or there is nothing but the label.
    """
    counts = {len(example.candidates) for example in examples}
    if not counts:
        raise InputError(f"{source}: the split is empty")
    if len(counts) > 1:
        raise InputError(
            f"{source}: expected the same number of candidates in every example, got {sorted(counts)}"
        )
    if counts == {1}:
        raise InputError(
            f"{source}: the rows list no candidates but their label; choose --rank.candidates sampled, "
            "batch or fixed"
        )
    return counts.pop()


def ranking(name: str, scores: np.ndarray, examples: Sequence[Example]) -> RankingResult:
    """The result of scores [b, c] on the examples."""
    label = np.array([example.label for example in examples])
    groups = tuple(example.group for example in examples)
    return RankingResult(name, rank_of_label(scores, label), groups, scores.shape[1])


def evaluate(
    name: str,
    scorer: TextScorer,
    examples: Sequence[Example],
    *,
    shared: Sequence[str] = (),
    title: str = "",
) -> Evaluation:
    """Rank each example's candidates with a scorer.

    Args:
        name: of the result, for tables.
        scorer: the model.
        examples: with listed candidates, the same number each; only their labels count where some are shared.
        shared: different texts that every example's label is ranked among, which it joins where it is not
            one of them; encoded once.
        title: progress is shown under this name; none where it is empty.
    """
    contexts = [e.context for e in examples]
    if not shared:
        check_listed(examples, source=name)
    with shown(title, scorer, len(examples), shared) as progress:
        if shared:
            labels = [e.label_text for e in examples]
            parts = scorer.score_shared(contexts, shared, labels, progress=progress)
            return rank_shared(name, examples, shared, parts)
        scores = scorer.score(contexts, [e.candidates for e in examples], progress=progress)
    return rank_listed(name, examples, scores)


@contextlib.contextmanager
def shown(title: str, scorer: TextScorer, n: int, shared: Sequence[str]) -> Iterator[Progress]:
    """A progress display of the scoring of n contexts; none where the title is empty."""
    if not title:
        yield ignore
    elif shared and scorer.is_dual:  # candidates are encoded first, and count as well
        with meter(title, 2 * n + len(shared), unit="texts") as bar:
            yield bar.add
    else:
        with meter(title, n) as bar:
            yield bar.add


def rank_listed(name: str, examples: Sequence[Example], scores: np.ndarray) -> Evaluation:
    """The evaluation that scores [b, c] of listed candidates give."""
    label = np.array([example.label for example in examples])
    right = np.take_along_axis(scores, label[:, None], axis=1)
    loss = float((_log_sum_exp(scores) - right[:, 0].astype(np.float64)).mean())
    order = np.argsort(-scores, axis=1, kind="stable")
    kept = np.take_along_axis(scores, order, axis=1)
    return Evaluation(ranking(name, scores, examples), loss, order, kept)


SharedScores = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Parts of a ranking: places of p rows, scores of the n shared candidates [p, n], and of the labels [p]."""


def rank_shared(
    name: str, examples: Sequence[Example], shared: Sequence[str], parts: SharedScores
) -> Evaluation:
    """The evaluation that scores of shared candidates give; of all scores only the best are kept.

    A row's label joins the candidates where it is not among them; a row whose label is has one less then.
    """
    n = len(shared)
    place = places_of_labels(examples, shared)
    joins = bool((place == n).any())
    k = min(KEPT, n + joins)
    b = len(examples)
    ranks, losses = np.empty(b, int), np.empty(b)
    best, kept = np.empty((b, k), np.int32), np.empty((b, k), np.float32)
    for places, scores, own in parts:
        label = place[places]
        if joins:
            joined = np.where(label == n, own, np.float32(-np.inf))
            scores = np.concatenate([scores, joined[:, None]], axis=1)
        ranks[places] = rank_of_label(scores, label)
        losses[places] = _log_sum_exp(scores) - np.take_along_axis(scores, label[:, None], axis=1)[:, 0]
        chosen = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(scores, chosen, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best[places] = np.take_along_axis(chosen, order, axis=1)
        kept[places] = np.take_along_axis(values, order, axis=1)
    groups = tuple(example.group for example in examples)
    return Evaluation(RankingResult(name, ranks, groups, n + joins), float(losses.mean()), best, kept)


def places_of_labels(examples: Sequence[Example], shared: Sequence[str]) -> np.ndarray:
    """The place of each label among the shared candidates [b]; their number where it is not among them."""
    place = {text: i for i, text in enumerate(shared)}
    # White space at a text's ends is no difference: lines of a file are read without it.
    return np.array([place.get(example.label_text.strip(), len(shared)) for example in examples])


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """log sum exp over the last axis, float64 [b]."""
    wide = scores.astype(np.float64)
    highest = wide.max(axis=1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(wide - highest).sum(axis=1))


def write_examples(
    folder: Path, examples: Sequence[Example], evaluation: Evaluation, *, shared: Sequence[str] = ()
) -> None:
    """What was ranked, and how: examples.jsonl, and run.trec and qrels.trec for TREC's tools.

    A listed candidate's document is called EXAMPLE#PLACE, after its place in the row; a shared one #PLACE,
    and a label that is not among the shared ones EXAMPLE#label. Tools of TREC settle equal scores by a
    document's name; here a tie counts against the label.

    Args:
        folder: is made where it is not there.
        examples: the rows.
        evaluation: of these rows.
        shared: the candidates that they share, if any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, run, qrels = [], [], []
    place = {text: i for i, text in enumerate(shared)}
    tag = "_".join(evaluation.ranking.name.split())
    rows = zip(examples, evaluation.ranking.ranks, evaluation.best, evaluation.scores, strict=True)
    for example, rank, best, scores in rows:
        there = scores > -np.inf
        best, scores = best[there], scores[there]
        facts = {"id": example.id, "context": example.context, "rank": int(rank)}
        name = "_".join(example.id.split())  # columns are separated by white space
        if shared:
            label = place.get(example.label_text.strip(), len(shared))
            own = f"{name}#label" if label == len(shared) else f"#{label}"
            documents = [own if i == label else f"#{i}" for i in best.tolist()]
            facts |= _shared_facts(example, label, best, scores, shared)
        else:
            own = f"{name}#{example.label}"
            documents = [f"{name}#{i}" for i in best.tolist()]
            facts |= _listed_facts(example, best, scores)
        lines.append(json.dumps(facts, ensure_ascii=False))
        ranked = enumerate(zip(documents, scores, strict=True), start=1)
        run += [
            f"{name} Q0 {document} {position} {score:.9g} {tag}" for position, (document, score) in ranked
        ]
        qrels.append(f"{name} 0 {own} 1")
    for file, content in (("examples.jsonl", lines), ("run.trec", run), ("qrels.trec", qrels)):
        write_text(folder / file, "\n".join(content) + "\n")


def _listed_facts(example: Example, best: np.ndarray, scores: np.ndarray) -> dict[str, object]:
    by_place = np.empty(len(scores))
    by_place[best] = scores
    return {
        "label": example.label,
        "best": [example.candidates[i] for i in best[:3].tolist()],
        "candidates": example.candidates,
        "scores": by_place.tolist(),
    }


def _shared_facts(
    example: Example, label: int, best: np.ndarray, scores: np.ndarray, shared: Sequence[str]
) -> dict[str, object]:
    shown = best[:10].tolist()
    return {
        "label": example.label_text,
        "best": [example.label_text if i == label else shared[i] for i in shown],
        "scores": [float(score) for score in scores[: len(shown)]],
    }
