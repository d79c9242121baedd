"""Another model, such as a cross-encoder, orders the best candidates of a search."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from polyjax.errors import InputError, shown
from polyjax.inference.arguments import Context
from polyjax.inference.numbers import check_numbers
from polyjax.retrieval.search.searcher import Results


@runtime_checkable
class Reranker(Protocol):
    """A model that can re-rank the best candidates, such as a ``Ranker``."""

    def score_batch(
        self, contexts: Sequence[Context], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Scores of the candidates of each context: a list of float32 arrays [n], in the given order."""
        ...


def _checked(given: object, sizes: Sequence[int]) -> list[np.ndarray]:
    """A re-ranker's scores of lists of these sizes as arrays, or InputError."""
    expected = "scores of each list, a number for each text"
    try:
        scores = [np.asarray(row, np.float32) for row in given]  # pyright: ignore[reportGeneralTypeIssues]
    except (TypeError, ValueError):
        raise InputError("rerank", expected=expected, got=given) from None
    shapes = [row.shape for row in scores]
    if shapes != [(size,) for size in sizes]:
        raise InputError(
            "rerank", expected=expected, got=shown(f"arrays of shapes {shapes} for {list(sizes)}")
        )
    return [check_numbers(row[None])[0] for row in scores]


def reranked(
    model: Reranker, contexts: Sequence[Sequence[str]], found: Sequence[Results], top_k: int
) -> list[Results]:
    """Re-rank the found candidates with another model, with the pairs of all contexts in one call."""
    scored = [i for i, results in enumerate(found) if len(results)]
    given = model.score_batch([contexts[i] for i in scored], [[f.text for f in found[i]] for i in scored])
    scores = _checked(given, [len(found[i]) for i in scored])
    again = list(found)
    for i, row in zip(scored, scores, strict=True):
        order = np.argsort(-row, kind="stable")[:top_k].tolist()
        best = (
            dataclasses.replace(found[i][j], score=float(row[j]), first_score=found[i][j].score)
            for j in order
        )
        again[i] = dataclasses.replace(found[i], found=tuple(best), certified=False, recall=None)
    return again
