"""Exact search: every candidate of an index is scored for each context, one block of rows at a time.

The scores are those of the scoring head. One compiled program computes a block's products, softmax and top k,
and merges them with the best so far. Besides the index, memory holds one block, however many there are.
"""

import threading
from collections import Counter

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from polyjax.nn.heads import DualHead
from polyjax.retrieval.index.rows import filled
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.blocks import Block, blocks_of, kind_of, power_of_two
from polyjax.retrieval.search.programs import SearchPrograms, nothing_found
from polyjax.runtime.memory import keep_freed_blocks
from polyjax.types import AnyArray

BLOCK_ROWS = 4096
"""Number of rows in a block, so few that their products with the context vectors stay in the CPU's cache.

Milliseconds for 100,000 rows of width 768 (2 cores of an AMD EPYC):

| rows in a block | 16 context vectors | 64 | 360 |
| --- | --- | --- | --- |
| 1,024 | 23 | 40 | 192 |
| 2,048 | 22 | 34 | 193 |
| 4,096 | 16 | 32 | 161 |
| 8,192 | 15 | 32 | 160 |
| 16,384 | 16 | 35 | 172 |
"""

FEW_ROWS = 1024
"""Number of rows in a block for few candidates: 5 instead of 10 ms for 1,000 rows with 360 vectors."""

COMPARED = 4
"""Number of times that scores from such small blocks are compared with those from whole blocks."""


class Scan:
    """Exact search of an index with a scoring head.

    Args:
        head: head of the scorer that the index was built with.
        index: the candidates.
        rows: number of rows in a block.
        programs: programs of the head, to share with other searches.

    Attributes:
        blocks: the rows of the index.
        programs: the programs of the head.
    """

    def __init__(
        self,
        head: DualHead,
        index: CandidateIndex,
        *,
        rows: int = BLOCK_ROWS,
        programs: SearchPrograms | None = None,
    ):
        keep_freed_blocks()
        self.index, self.programs = index, programs or SearchPrograms(head)
        self._rows = min(rows, power_of_two(index.rows))
        self._few = min(FEW_ROWS, self._rows)
        self._agreed: Counter[tuple[int, ...]] = Counter()
        self.blocks = blocks_of(index, rows=self._rows)
        self._rooms = threading.local()

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far, by all scans that share them."""
        return self.programs.merge.compilations

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the k best candidates of each context, best first, [b, k] each.

        Equal scores are in the order of their rows. If the index has fewer than k candidates, the remaining
        entries have score -inf and row -1.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: True for real vectors, [b, m].
            k: at least 1.
        """
        vectors, mask = _given(vectors, mask)
        scores, rows = nothing_found(vectors.shape[0], k)
        head = self.programs.head
        with self.programs.merge.once(vectors.shape, k, *kind_of(self.blocks[0])) as merge:
            for block in self.blocks:
                scores, rows = merge(head, vectors, mask, scores, rows, block)
        return np.asarray(scores), np.asarray(rows)

    def among(
        self, vectors: Float[AnyArray, "1 m d"], mask: Bool[AnyArray, "1 m"], rows: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for one context and only some rows; scores are those of the whole scan.

        Args:
            vectors: vectors of one context.
            mask: True for real vectors.
            rows: rows of the index to score, increasing [n].
            k: at least 1.
        """
        if not len(rows):
            scores, places = nothing_found(1, k)
            return np.asarray(scores), np.asarray(places)
        shape = (*vectors.shape, k)
        # As many small blocks as fit into a whole one would take longer than the whole one.
        if len(rows) > self._rows - self._few or self._agreed[shape] < 0:
            return self._in_blocks(vectors, mask, rows, k, self._rows)
        found = self._in_blocks(vectors, mask, rows, k, self._few)
        if self._agreed[shape] < COMPARED:
            # A row's score is bit-identical in blocks of both sizes if the compiler sums products in the same
            # order. This checks that it is.
            whole = self._in_blocks(vectors, mask, rows, k, self._rows)
            same = all(np.array_equal(*pair) for pair in zip(found, whole, strict=True))
            self._agreed[shape] = self._agreed[shape] + 1 if same else -1
            return whole
        return found

    def _in_blocks(
        self,
        vectors: Float[AnyArray, "1 m d"],
        mask: Bool[AnyArray, "1 m"],
        rows: np.ndarray,
        k: int,
        size: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the k best among some rows, which are copied into blocks of a given size."""
        best = nothing_found(1, k)
        vectors, mask = _given(vectors, mask)
        for first in range(0, len(rows), size):
            # The scan's program returns positions in ``rows`` here.
            some = rows[first : first + size]
            stored, scales = self.index.stored(some)
            block = Block(
                jax.device_put(np.int32(first)),
                jax.device_put(self._room(stored)[:size], may_alias=True),
                None if scales is None else jax.device_put(filled(scales, size)),
                jax.device_put(np.zeros(size, np.float32)),
                jax.device_put(np.arange(size) < len(some)),
            )
            with self.programs.merge.once(vectors.shape, k, *kind_of(block)) as merge:
                # Wait for the result, because the block's memory is reused.
                best = jax.block_until_ready(merge(self.programs.head, vectors, mask, *best, block))
        scores, places = map(np.asarray, best)
        return scores, np.where(places >= 0, rows[places], -1)

    def _room(self, stored: np.ndarray) -> np.ndarray:
        """A block that begins with some rows, in memory that each thread reuses (new pages cost more)."""
        if not hasattr(self._rooms, "block"):
            self._rooms.block = filled(stored[:0], self._rows)
        self._rooms.block[: len(stored)] = stored
        return self._rooms.block

    def temporary_bytes(self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int) -> int:
        """Temporary memory of a search in bytes, besides the index and the arguments."""
        scores, rows = nothing_found(vectors.shape[0], k)
        given = self.programs.head, vectors, mask, scores, rows, self.blocks[0]
        compiled = self.programs.merge.jitted.lower(*given).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None, "this backend does not report the memory of its programs"
        return analysis.temp_size_in_bytes


def _given(
    vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"]
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
    """Context vectors and mask on the device, moved there once for several steps.

    They pass through numpy, because arrays committed to a device (such as an encoder's results) would need
    other compiled programs than uncommitted ones.
    """
    return jax.device_put(np.asarray(vectors)), jax.device_put(np.asarray(mask))
