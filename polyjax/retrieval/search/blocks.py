"""The rows of an index in blocks of one shape, so that one program computes with all of them.

On a CPU a block is the memory-mapped file itself, without a copy. Only segments that are shorter than a block
are copied, into shared blocks.
"""

import dataclasses
import typing
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polyjax.retrieval.index.rows import filled
from polyjax.retrieval.index.store import CandidateIndex, Segment


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive rows of an index on the device, starting at row ``first``.

    Attributes:
        first: row of the index at which the block starts.
        vectors: stored vectors.
        scales: scales of int8 rows.
        norms: norms of the vectors.
        live: False for rows that are not a candidate (removed, or padding).
    """

    first: Int[Array, ""]
    vectors: Float[Array, "n d"]
    scales: Float[Array, " n"] | None
    norms: Float[Array, " n"]
    live: Bool[Array, " n"]


def kind_of(block: Block) -> tuple:
    """The properties of a block that require another compiled program: shape, dtype, scales or not."""
    return block.vectors.shape, block.vectors.dtype, block.scales is None


def blocks_of(index: CandidateIndex, *, rows: int, coarse: bool = False) -> list[Block]:
    """The rows of an index in blocks.

    Args:
        index: the index.
        rows: number of rows in a block.
        coarse: use rows in bfloat16 instead of float32.
    """
    blocks: list[Block] = []
    short: list[Segment] = []
    start = 0
    for segment in index.segments:
        n = len(segment.ids)
        if n < rows:
            short.append(segment)
        else:
            blocks += _gathered(index, short, start, rows, coarse)
            blocks += _mapped(index, segment, start, rows, coarse)
            short = []
        start += n
    return blocks + _gathered(index, short, start, rows, coarse)


def _mapped(index: CandidateIndex, segment: Segment, start: int, rows: int, coarse: bool) -> list[Block]:
    """The blocks of a segment, which share its memory (on a CPU)."""
    n, live, blocks = len(segment.ids), index.live(segment), []
    for at in range(0, n, rows):
        # The last block overlaps the one before it, because padding it would need a copy.
        first = min(at, n - rows)
        part = slice(first, first + rows)
        real = live[part].copy()
        real[: at - first] = False
        vectors = segment.coarse if coarse else segment.vectors
        blocks.append(
            Block(
                jax.device_put(np.int32(start + first)),
                jax.device_put(vectors[part], may_alias=True),  # without a copy
                None if segment.scales is None else jax.device_put(segment.scales[part], may_alias=True),
                jax.device_put(segment.norms[part, 0].copy()),
                jax.device_put(real),
            )
        )
    return blocks


def _gathered(
    index: CandidateIndex, segments: Sequence[Segment], end: int, rows: int, coarse: bool
) -> list[Block]:
    """Blocks of copied rows for segments that are shorter than a block; their rows end at ``end``."""
    if not segments:
        return []
    live = np.concatenate([index.live(segment) for segment in segments])
    vectors = np.concatenate([s.coarse if coarse else s.vectors for s in segments])
    norms = np.concatenate([s.norms[:, 0] for s in segments])
    scales = [s.scales for s in segments if s.scales is not None]
    row_scales = np.concatenate(scales) if scales else None
    first, blocks = end - len(live), []
    for at in range(0, len(live), rows):
        part = slice(at, at + rows)
        blocks.append(
            Block(
                jax.device_put(np.int32(first + at)),
                jax.device_put(filled(vectors[part], rows), may_alias=True),
                None if row_scales is None else jax.device_put(filled(row_scales[part], rows)),
                jax.device_put(filled(norms[part], rows)),
                jax.device_put(filled(live[part], rows)),
            )
        )
    return blocks


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
