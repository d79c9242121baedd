"""Contexts in, the best candidates of an index out."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from polyjax.retrieval.scan import Scan
from polyjax.retrieval.store import CandidateIndex
from polyjax.scoring import TextScorer

VECTORS_AT_ONCE = 512
"""Context vectors that share a pass: their products with a block are 8 MB."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A candidate of an index with its score and its id there."""

    text: str
    score: float
    id: int


class Searcher:
    """Searches an index for the best candidates of contexts.

    Args:
        scorer: what the index was made with.
        index: candidates.
    """

    def __init__(self, scorer: TextScorer, index: CandidateIndex):
        self.index, self._scorer = index, scorer
        self._scan = Scan(scorer.head, index)

    @property
    def compilations(self) -> int:
        """Programs compiled so far, those of encoding included."""
        return self._scorer.compilations + self._scan.compilations

    def search(self, contexts: Sequence[Sequence[str]], top_k: int) -> list[list[Found]]:
        """Each context's best candidates, best first; fewer than ``top_k`` where the index holds fewer.

        Args:
            contexts: turns of each, oldest first.
            top_k: at least 1.
        """
        # A power of two, so that another number compiles nothing new.
        k = 1 << (min(top_k, self.index.rows) - 1).bit_length()
        results: list[list[Found]] = [[] for _ in contexts]
        for places, vectors, mask in self._scorer.context_batches(contexts):
            together = 1 if len(places) == 1 else max(VECTORS_AT_ONCE // vectors.shape[1], 1)
            for start in range(0, len(places), together):
                chosen = jnp.arange(start, start + together).clip(max=len(places) - 1)
                scores, rows = self._scan(vectors[chosen], mask[chosen], k)
                for i, place in enumerate(places[start : start + together]):
                    results[place] = self._found(scores[i, :top_k], rows[i, :top_k])
        return results

    def _found(self, scores: np.ndarray, rows: np.ndarray) -> list[Found]:
        return [
            Found(self.index.text(int(row)), float(score), self.index.id(int(row)))
            for score, row in zip(scores, rows, strict=True)
            if row >= 0
        ]
