"""Exact search: every candidate of an index scored against each context, a block of rows at a time.

The scores are the scoring head's own. A block's products, softmax and top k run in one compiled program,
which also merges them with the best so far. Memory beyond the index is that of one block, however many there
are.
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
"""Rows scored at once: their products with the context vectors stay in the processor's cache.

Over 100,000 rows of 768 with 16 / 64 / 360 context vectors (2 cores of an AMD EPYC), blocks of 1,024 took
23 / 40 / 192 ms, of 2,048 22 / 34 / 193, of 4,096 16 / 32 / 161, of 8,192 15 / 32 / 160, of 16,384
16 / 35 / 172.
"""

FEW_ROWS = 1024
"""Rows of a block for few candidates: 5 instead of 10 ms for a thousand with 360 vectors."""

COMPARED = 4
"""Number of times that such a block's scores are compared with a whole block's."""


class Scan:
    """Exact search of an index with a scoring head.

    Args:
        head: of the scorer that the index was made with.
        index: its candidates.
        rows: of a block.
        programs: the head's, to share with other searches.

    Attributes:
        blocks: the index's rows.
        programs: the head's.
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
        """Number of programs compiled so far, in all scans that share them."""
        return self.programs.merge.compilations

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of each context's k best candidates, best first, [b, k] each.

        Equal scores keep the order of their rows. If the index has fewer than k candidates, the last places
        have score -inf and row -1.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: which of them are real.
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
        """The same of one context among some rows only, increasing [n], with the same scores."""
        if not len(rows):
            scores, places = nothing_found(1, k)
            return np.asarray(scores), np.asarray(places)
        shape = (*vectors.shape, k)
        # As many small blocks as make up a whole one would take longer.
        if len(rows) > self._rows - self._few or self._agreed[shape] < 0:
            return self._in_blocks(vectors, mask, rows, k, self._rows)
        found = self._in_blocks(vectors, mask, rows, k, self._few)
        if self._agreed[shape] < COMPARED:
            # A row's score is the same to the last bit in blocks of both sizes if the compiler sums products
            # in one order; this checks that it does.
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
        """Scores and rows of the best among some, copied into blocks of a size."""
        best = nothing_found(1, k)
        vectors, mask = _given(vectors, mask)
        for first in range(0, len(rows), size):
            # The scan's step gives places instead of rows.
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
                # Wait, because the memory is reused.
                best = jax.block_until_ready(merge(self.programs.head, vectors, mask, *best, block))
        scores, places = map(np.asarray, best)
        return scores, np.where(places >= 0, rows[places], -1)

    def _room(self, stored: np.ndarray) -> np.ndarray:
        """A block with some rows at its beginning, in memory that each thread keeps; new pages cost more."""
        if not hasattr(self._rooms, "block"):
            self._rooms.block = filled(stored[:0], self._rows)
        self._rooms.block[: len(stored)] = stored
        return self._rooms.block

    def temporary_bytes(self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int) -> int:
        """Bytes of temporary memory of a search, beyond the index and its arguments."""
        scores, rows = nothing_found(vectors.shape[0], k)
        given = self.programs.head, vectors, mask, scores, rows, self.blocks[0]
        compiled = self.programs.merge.jitted.lower(*given).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None, "this backend does not report the memory of its programs"
        return analysis.temp_size_in_bytes


def _given(
    vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"]
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
    """Context vectors for several steps, moved to the device once.

    By numpy: arrays committed to a device, as an encoder's are, need other programs than uncommitted ones.
    """
    return jax.device_put(np.asarray(vectors)), jax.device_put(np.asarray(mask))
