"""All rows of an index in bfloat16's precision or less, for a cheap pass over all of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.blocks import blocks_of, power_of_two
from polyjax.runtime import hardware

PASS_ROWS = 8192
"""Rows of a block of the pass, which needs less of the cache than the scan's."""

LARGE_ROWS, LARGE_STEP = 51_200, 2048
"""The most rows of a large block, and the number that its rows are a multiple of.

Bounds without a softmax keep few numbers per row, so that the cost per block matters: over 100,000
rows of 384 and 16 / 32 directions, blocks of 8,192 took 14.2 / 16.6 ms, of 14,286 12.8 / 14.5, of 25,000
12.1 / 14.3, of 50,000 11.1 / 12.9, of 100,000 10.8 / 13.0 (2 cores of an AMD EPYC with bfloat16 units).
"""

_SPARSE = 16


class Blocks:
    """An index's rows in blocks of the pass.

    Args:
        index: what is searched.
        rows: of a block.

    Attributes:
        parts: the blocks.
        starts: the row at which each begins.
    """

    def __init__(self, index: CandidateIndex, rows: int):
        self.parts = blocks_of(index, rows=rows, coarse=True)
        self.starts = [int(block.first) for block in self.parts]


class CoarseRows:
    """The rows of an index for passes over all of them.

    Args:
        index: what is searched.

    Attributes:
        small: blocks of all rows.
        large: the same for passes that keep few numbers per row.
        rounding_pays: whether products in bfloat16 are faster than the scan's.
    """

    def __init__(self, index: CandidateIndex):
        self.index = index
        rows = min(PASS_ROWS, power_of_two(index.rows))
        self.small = self.large = Blocks(index, rows)
        self._removed = np.flatnonzero(~index.live_rows)
        on_cpu = jax.default_backend() == "cpu"
        # Products with as many vectors as the scan's do not pay unless half precision is faster.
        self.rounding_pays = not on_cpu or hardware.cpu_has_bfloat16()
        # On another device these would be copies; without bfloat16 units rows are widened a block at a time.
        views = on_cpu and hardware.cpu_has_bfloat16()
        if views and (large := _large_rows(index)) > rows:
            self.large = Blocks(index, large)

    def gathered(self, parts: Sequence[Float[Array, " n"]], blocks: Blocks) -> np.ndarray:
        """Blocks' values by row [rows]: -inf without a candidate, inf where the value is unknown."""
        values = np.empty(self.index.rows, np.float32)
        for start, part in zip(blocks.starts, parts, strict=True):
            place = values[start : start + len(part)]
            place[:] = np.asarray(part)[: len(place)]
        values[np.isnan(values)] = np.inf  # unknown
        values[self._removed] = -np.inf
        return values


def highest(values: np.ndarray, n: int) -> np.ndarray:
    """The candidate rows with the n highest values, increasing."""
    n = min(n, len(values))
    # Every 16th value bounds the rows to consider: partitioning all of them takes five times as long.
    some = values[::_SPARSE]
    about = int(1.25 * n / _SPARSE) + 8
    rows = np.arange(len(values))
    if about < len(some):
        likely = np.flatnonzero(values >= np.partition(some, -about)[-about])
        rows = likely if n <= len(likely) else rows
    rows = rows[np.sort(np.argpartition(values[rows], -n)[-n:])]
    return rows[values[rows] > -np.inf]


def _large_rows(index: CandidateIndex) -> int:
    """Rows of a large block; 0 if such blocks would be copies, or be rounded in memory."""
    segment, *others = index.segments
    if others or segment.coarse.dtype != jnp.bfloat16:
        return 0
    n_blocks = max(2, -(-index.rows // LARGE_ROWS))  # a single block would have more rows than the index
    return LARGE_STEP * -(-index.rows // (n_blocks * LARGE_STEP))
