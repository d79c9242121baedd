"""Ranks candidates with a scorer and computes the metrics; rows list their candidates or share them."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from polyjax.evaluation.candidates import check_listed, right_places, right_shared
from polyjax.evaluation.metrics import RankingResult, rank_of_right
from polyjax.inference.numbers import check_numbers
from polyjax.inference.scorer import Progress, TextScorer, ignore
from polyjax.runtime.files import write_text
from polyjax.runtime.progress import meter
from polyjax.types import Example

KEPT = 1000
"""Number of best candidates kept for a row with shared candidates, as in TREC runs."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The ranking of the candidates of b rows.

    Attributes:
        ranking: ranks of the labels.
        loss: mean cross-entropy of the labels (nats).
        best: indices of the best candidates, best first, int [b, k]: all listed ones, or at most 1,000 of n
            shared ones. The index n stands for a label that is not among the shared candidates.
        scores: scores of ``best``, float32 [b, k]; -inf if a row has fewer candidates.
    """

    ranking: RankingResult
    loss: float
    best: np.ndarray
    scores: np.ndarray


def some(examples: Sequence[Example], n: int) -> list[Example]:
    """A sample of at most n examples, in their order; all if n is 0. The same input gives the same sample."""
    if not n:
        return list(examples)
    chosen = np.random.default_rng(0).permutation(len(examples))[:n]
    return [examples[i] for i in sorted(chosen.tolist())]


def ranking(name: str, scores: np.ndarray, examples: Sequence[Example]) -> RankingResult:
    """The ranks of the labels, from scores [b, c] of listed candidates."""
    groups = tuple(example.group for example in examples)
    return RankingResult(name, rank_of_right(scores, right_places(examples)), groups, scores.shape[1])


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
        name: name of the result, for tables.
        scorer: the model with its tokenizer.
        examples: rows that list the same number of candidates. With ``shared``, only the labels of their
            candidates are used.
        shared: distinct candidates for all rows, encoded once; a row's label is added if it is not among
            them. Empty if the rows list their own.
        title: title of the progress bar; "" for no progress bar.

    Raises:
        InputError: rows list different numbers of candidates, or there is nothing to rank.
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
    """A progress bar for scoring n contexts; no progress bar if the title is empty."""
    if not title:
        yield ignore
    elif shared and scorer.is_dual:  # counts the candidates too, which are encoded first
        with meter(title, 2 * n + len(shared), unit="texts") as bar:
            yield bar.add
    else:
        with meter(title, n) as bar:
            yield bar.add


def rank_listed(name: str, examples: Sequence[Example], scores: np.ndarray) -> Evaluation:
    """The evaluation of scores [b, c] of listed candidates; ``name`` is for tables.

    Raises:
        InputError: a score is not a number.
    """
    check_numbers(scores)
    label = np.array([example.label for example in examples])
    loss = float(_losses(scores, right_places(examples), label).mean())
    order = np.argsort(-scores, axis=1, kind="stable")
    kept = np.take_along_axis(scores, order, axis=1)
    return Evaluation(ranking(name, scores, examples), loss, order, kept)


SharedScores = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Chunks of scores: indices of p rows, scores of the n shared candidates [p, n], scores of the labels [p]."""


def rank_shared(
    name: str, examples: Sequence[Example], shared: Sequence[str], parts: SharedScores
) -> Evaluation:
    """The evaluation of scores of shared candidates; only the best scores are kept.

    A row's label is added to its candidates if it is not among them. The number of candidates in the result
    counts that label; rows whose label is among the shared candidates then have one candidate fewer.

    Raises:
        InputError: two of the shared candidates are the same text, or a score is not a number.
    """
    n = len(shared)
    right = right_shared(examples, shared)
    label = np.array([places[0] for places in right])
    joins = bool((label == n).any())
    k = min(KEPT, n + joins)
    b = len(examples)
    ranks, losses = np.empty(b, int), np.empty(b)
    best, kept = np.empty((b, k), np.int32), np.empty((b, k), np.float32)
    for places, scores, own in parts:
        if joins:
            joined = np.where(label[places] == n, own, np.float32(-np.inf))
            scores = np.concatenate([scores, joined[:, None]], axis=1)
        check_numbers(scores)
        is_right = np.zeros(scores.shape, bool)
        for row, place in enumerate(places.tolist()):
            is_right[row, right[place]] = True
        ranks[places] = rank_of_right(scores, is_right)
        losses[places] = _losses(scores, is_right, label[places])
        chosen = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(scores, chosen, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best[places] = np.take_along_axis(chosen, order, axis=1)
        kept[places] = np.take_along_axis(values, order, axis=1)
    groups = tuple(example.group for example in examples)
    return Evaluation(RankingResult(name, ranks, groups, n + joins), float(losses.mean()), best, kept)


def _losses(scores: np.ndarray, right: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Cross-entropy of each label against the wrong candidates, as in training (nats) [b]."""
    own = np.take_along_axis(scores, label[:, None], axis=1)[:, 0].astype(np.float64)
    rivals = right.copy()
    np.put_along_axis(rivals, label[:, None], False, axis=1)
    return _log_sum_exp(np.where(rivals, -np.inf, scores)) - own


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """log sum exp over the last axis, float64 [b]."""
    wide = scores.astype(np.float64)
    highest = wide.max(axis=1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(wide - highest).sum(axis=1))


def write_examples(
    folder: Path, examples: Sequence[Example], evaluation: Evaluation, *, shared: Sequence[str] = ()
) -> None:
    """Write the rankings: examples.jsonl, and run.trec and qrels.trec for TREC's tools.

    The document name of a listed candidate is EXAMPLE#INDEX, with its index in the row. That of a shared
    candidate is #INDEX, and that of a label not among the shared candidates EXAMPLE#label. Copies of the
    label and further right answers are relevant too. TREC's tools break ties by document name; here a tie
    counts against the label.

    Args:
        folder: folder to write to; created if it does not exist.
        examples: the rows.
        evaluation: the evaluation of these rows.
        shared: the candidates that the rows share, if any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, run, qrels = [], [], []
    tag = "_".join(evaluation.ranking.name.split()) or "run"
    right = right_shared(examples, shared) if shared else _right_listed(examples)
    names = trec_names([example.id for example in examples])
    found = zip(evaluation.ranking.ranks, evaluation.best, evaluation.scores, strict=True)
    for example, name, places, (rank, best, scores) in zip(examples, names, right, found, strict=True):
        there = scores > -np.inf
        best, scores = best[there], scores[there]
        facts = {"id": example.id, "context": example.context, "rank": int(rank)}
        facts |= {"answers": example.answers} if example.answers else {}
        if shared:
            documents = {
                i: f"{name}#label" if i == len(shared) else f"#{i}" for i in [*best.tolist(), *places]
            }
            facts |= _shared_facts(example, places[0], best, scores, shared)
        else:
            documents = {i: f"{name}#{i}" for i in [*best.tolist(), *places]}
            facts |= _listed_facts(example, best, scores)
        lines.append(json.dumps(facts, ensure_ascii=False))
        ranked = enumerate(zip(best.tolist(), scores, strict=True), start=1)
        run += [f"{name} Q0 {documents[i]} {position} {score:.9g} {tag}" for position, (i, score) in ranked]
        qrels += [f"{name} 0 {documents[i]} 1" for i in places]
    for file, content in (("examples.jsonl", lines), ("run.trec", run), ("qrels.trec", qrels)):
        write_text(folder / file, "\n".join(content) + "\n")


def _right_listed(examples: Sequence[Example]) -> list[list[int]]:
    """For each row, the indices of the right ones among its listed candidates, the label's first."""
    places = [np.flatnonzero(row).tolist() for row in right_places(examples)]
    return [sorted(row, key=lambda i, e=e: i != e.label) for e, row in zip(examples, places, strict=True)]


def trec_names(ids: Sequence[str]) -> list[str]:
    """Unique names for ids, for files whose columns are separated by white space.

    White space becomes "_". If a name is already taken, "~2", "~3" and so on is added.

    >>> trec_names(["a b", "a_b", "a  b", "c"])
    ['a_b~2', 'a_b', 'a_b~3', 'c']
    """
    names: list[str] = [""] * len(ids)
    taken: set[str] = set()
    for i, id_ in enumerate(ids):
        if id_.split() == [id_] and id_ not in taken:  # an id without white space keeps its name
            names[i] = id_
            taken.add(id_)
    for i, id_ in enumerate(ids):
        name = "_".join(id_.split()) or "_"
        tries = (name if n == 1 else f"{name}~{n}" for n in itertools.count(1))
        names[i] = names[i] or next(one for one in tries if one not in taken)
        taken.add(names[i])
    return names


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
