"""All rows of an index in bfloat16 or int8, for a cheap pass over all of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.blocks import blocks_of, power_of_two
from polyjax.runtime import hardware

PASS_ROWS = 8192
"""Number of rows in a block of the pass, which uses less cache per row than the scan."""

LARGE_ROWS, LARGE_STEP = 51_200, 2048
"""Maximum number of rows in a large block, and the number that its rows are a multiple of.

Bounds without a softmax keep few numbers per row, so the overhead per block matters. Milliseconds for
100,000 rows of width 384 (2 cores of an AMD EPYC with bfloat16 units):

| rows in a block | 16 directions | 32 directions |
| --- | --- | --- |
| 8,192 | 14.2 | 16.6 |
| 14,286 | 12.8 | 14.5 |
| 25,000 | 12.1 | 14.3 |
| 50,000 | 11.1 | 12.9 |
| 100,000 | 10.8 | 13.0 |
"""

_SPARSE = 16


class Blocks:
    """The rows of an index in blocks for the pass.

    Args:
        index: the index.
        rows: number of rows in a block.

    Attributes:
        parts: the blocks.
        starts: the row at which each block starts.
    """

    def __init__(self, index: CandidateIndex, rows: int):
        self.parts = blocks_of(index, rows=rows, coarse=True)
        self.starts = [int(block.first) for block in self.parts]


class CoarseRows:
    """The rows of an index for passes over all of them.

    Args:
        index: the index.

    Attributes:
        small: all rows, in small blocks.
        large: all rows, in blocks for passes that keep few numbers per row; may be the small ones.
        rounding_pays: whether products in bfloat16 are faster than those of the scan.
    """

    def __init__(self, index: CandidateIndex):
        self.index = index
        rows = min(PASS_ROWS, power_of_two(index.rows))
        self.small = self.large = Blocks(index, rows)
        self._removed = np.flatnonzero(~index.live_rows)
        on_cpu = jax.default_backend() == "cpu"
        # A pass with as many vectors as the scan only pays if half precision is faster.
        self.rounding_pays = not on_cpu or hardware.cpu_has_bfloat16()
        # On other devices large blocks would be copies. Without bfloat16 units, each block is widened in
        # memory, so blocks must stay small.
        views = on_cpu and hardware.cpu_has_bfloat16()
        if views and (large := _large_rows(index)) > rows:
            self.large = Blocks(index, large)

    def gathered(self, parts: Sequence[Float[Array, " n"]], blocks: Blocks) -> np.ndarray:
        """The values of all blocks by row [rows]: -inf for removed candidates, inf for NaN (unknown)."""
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
    # Every 16th value gives a threshold for the rows to consider; partitioning all takes five times as long.
    some = values[::_SPARSE]
    about = int(1.25 * n / _SPARSE) + 8
    rows = np.arange(len(values))
    if about < len(some):
        likely = np.flatnonzero(values >= np.partition(some, -about)[-about])
        rows = likely if n <= len(likely) else rows
    rows = rows[np.sort(np.argpartition(values[rows], -n)[-n:])]
    return rows[values[rows] > -np.inf]


def _large_rows(index: CandidateIndex) -> int:
    """Number of rows in a large block; 0 if such blocks would have to be copied or rounded in memory."""
    segment, *others = index.segments
    if others or segment.coarse.dtype != jnp.bfloat16:
        return 0
    n_blocks = max(2, -(-index.rows // LARGE_ROWS))  # a single block would have more rows than the index
    return LARGE_STEP * -(-index.rows // (n_blocks * LARGE_STEP))
