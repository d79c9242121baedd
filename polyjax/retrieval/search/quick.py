"""Quick search: approximate scores of all candidates, exact scores of the best of them; without a proof."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from polyjax.retrieval.search.blocks import kind_of
from polyjax.retrieval.search.coarse import CoarseRows, highest
from polyjax.retrieval.search.outcome import Outcome
from polyjax.retrieval.search.scan import Scan
from polyjax.types import AnyArray

RESCORED = 1024
"""Number of candidates with the highest approximate scores that are scored exactly."""


class QuickSearch:
    """Quick search of an index with a head that has a product form.

    On a CPU without bfloat16 units it runs the scan, which is faster there.

    Args:
        scan: scores the rows with the highest approximate scores.
        rows: rows of the scan's index.
    """

    def __init__(self, scan: Scan, rows: CoarseRows):
        self.scan, self._rows = scan, rows

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> list[Outcome]:
        """The k best of the candidates with the highest approximate scores, for each context.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: True for real vectors, [b, m].
            k: at least 1.
        """
        vectors, mask = np.asarray(vectors), np.asarray(mask)
        return [self._one(vectors[i : i + 1], mask[i : i + 1], k) for i in range(len(vectors))]

    def _one(self, vectors: Float[np.ndarray, "1 m d"], mask: Bool[np.ndarray, "1 m"], k: int) -> Outcome:
        if not self._rows.rounding_pays or not np.isfinite(vectors).all():
            scores, best = self.scan(vectors, mask, k)
            return Outcome(scores[0], best[0], None, len(self.scan.index))
        rounded, there = jax.device_put(vectors[0].astype(jnp.bfloat16)), jax.device_put(mask[0])
        blocks = self._rows.small
        with self.scan.programs.rough.once(rounded.shape, *kind_of(blocks.parts[0])) as rough:
            about = self._rows.gathered([rough(rounded, there, block) for block in blocks.parts], blocks)
        rows = highest(about, max(RESCORED, 2 * k))
        scores, best = self.scan.among(vectors, mask, rows, k)
        everything = len(rows) == len(self.scan.index)
        recall = 1.0 if everything else None
        return Outcome(scores[0], best[0], None, len(rows), certified=everything, recall=recall)
