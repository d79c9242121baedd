"""Exact search: every candidate of an index scored against each context, a block of rows at a time.

The scores are the scoring head's own. A block's products, softmax and top k run in one compiled program,
which also merges them with the best so far; so memory beyond the index is that of one block, however many
there are. On a CPU a block is the memory-mapped file itself: nothing is copied, except of segments that are
shorter than a block, which share some.
"""

import dataclasses
import threading
import typing
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from polyjax.nn.heads import DualHead
from polyjax.retrieval.index.rows import filled
from polyjax.retrieval.index.store import CandidateIndex, Segment
from polyjax.runtime.memory import keep_freed_blocks
from polyjax.types import AnyArray

BLOCK_ROWS = 4096
"""Rows scored at once: their products with the context vectors stay in the processor's cache.

Over 100,000 rows of 768 with 16 / 64 / 360 context vectors (2 cores of an AMD EPYC), blocks of 1,024 took
23 / 40 / 192 ms, of 2,048 22 / 34 / 193, of 4,096 16 / 32 / 161, of 8,192 15 / 32 / 160, of 16,384
16 / 35 / 172.
"""

FEW_ROWS = 1024
"""Rows of a block where few candidates are scored: 5 instead of 10 ms for a thousand with 360 vectors."""

COMPARED = 4
"""Times that such a block's scores are compared with a whole block's."""


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """Rows from ``first`` on of an index, on the device; where ``live`` is False there is none."""

    first: Int[Array, ""]
    vectors: Float[Array, "n d"]
    scales: Float[Array, " n"] | None
    norms: Float[Array, " n"]
    live: Bool[Array, " n"]


def blocks_of(index: CandidateIndex, *, rows: int = BLOCK_ROWS, coarse: bool = False) -> list[Block]:
    """The rows of an index in blocks of one shape, so that one program scores them all.

    Args:
        index: what is searched.
        rows: of a block.
        coarse: rows in bfloat16's precision do.
    """
    blocks: list[Block] = []
    short: list[Segment] = []
    start = 0
    for segment in index.segments:
        n = len(segment.ids)
        if n < rows:
            short.append(segment)
        else:
            blocks += _gathered(index, short, start, rows, coarse) + _mapped(
                index, segment, start, rows, coarse
            )
            short = []
        start += n
    return blocks + _gathered(index, short, start, rows, coarse)


def _mapped(index: CandidateIndex, segment: Segment, start: int, rows: int, coarse: bool) -> list[Block]:
    """A segment's blocks, which are its own memory."""
    n, live, blocks = len(segment.ids), index.live(segment), []
    for at in range(0, n, rows):
        # The last block reaches back over rows of the one before: filling it up would copy it.
        first = min(at, n - rows)
        part = slice(first, first + rows)
        real = live[part].copy()
        real[: at - first] = False
        vectors = segment.coarse if coarse else segment.vectors
        blocks.append(
            Block(
                jax.device_put(np.int32(start + first)),
                jax.device_put(vectors[part], may_alias=True),  # otherwise a copy
                None if segment.scales is None else jax.device_put(segment.scales[part], may_alias=True),
                jax.device_put(segment.norms[part, 0].copy()),
                jax.device_put(real),
            )
        )
    return blocks


def _gathered(
    index: CandidateIndex, segments: Sequence[Segment], end: int, rows: int, coarse: bool
) -> list[Block]:
    """Blocks that segments of fewer rows than a block share, which is a copy; their rows end at ``end``."""
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


class Scan:
    """Exact search of an index with a scoring head.

    Args:
        head: of the scorer that the index was made with.
        index: its candidates.
        rows: of a block.

    Attributes:
        blocks: the index's rows.
        compilations: programs compiled so far.
    """

    def __init__(self, head: DualHead, index: CandidateIndex, *, rows: int = BLOCK_ROWS):
        keep_freed_blocks()
        self.index, self.compilations = index, 0
        self._head_graph, self._head = nnx.split(head)
        self._rows = min(rows, power_of_two(index.rows))
        self._few = min(FEW_ROWS, self._rows)
        self._agreed: Counter[tuple[int, ...]] = Counter()
        self.blocks = blocks_of(index, rows=self._rows)
        self._rooms = threading.local()
        self._step = jax.jit(self._traced_step, donate_argnums=(3, 4))

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of each context's k best candidates, best first, [b, k] each.

        Equal scores keep the order of their rows. Where the index has fewer than k candidates the last
        places have score -inf and row -1.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: which of them are real.
            k: at least 1.
        """
        vectors, mask = _given(vectors, mask)
        scores, rows = nothing_found(vectors.shape[0], k)
        for block in self.blocks:
            scores, rows = self._step(self._head, vectors, mask, scores, rows, block)
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
            # A row's score is the same to the last bit in blocks of both sizes, as long as the compiler sums
            # products up in one order; whether it does is seen here.
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
            # What comes out of the scan's step are places instead of rows.
            some = rows[first : first + size]
            stored, scales = self.index.stored(some)
            block = Block(
                jax.device_put(np.int32(first)),
                jax.device_put(self._room(stored)[:size], may_alias=True),
                None if scales is None else jax.device_put(filled(scales, size)),
                jax.device_put(np.zeros(size, np.float32)),
                jax.device_put(np.arange(size) < len(some)),
            )
            # Waited for: the room is used again.
            best = jax.block_until_ready(self._step(self._head, vectors, mask, *best, block))
        scores, places = map(np.asarray, best)
        return scores, np.where(places >= 0, rows[places], -1)

    def _room(self, stored: np.ndarray) -> np.ndarray:
        """A block with some rows at its beginning, in memory that each thread keeps: new pages cost more."""
        if not hasattr(self._rooms, "block"):
            self._rooms.block = filled(stored[:0], self._rows)
        self._rooms.block[: len(stored)] = stored
        return self._rooms.block

    def temporary_bytes(self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int) -> int:
        """Memory that a search takes for a moment beyond the index and its arguments."""
        scores, rows = nothing_found(vectors.shape[0], k)
        compiled = self._step.lower(self._head, vectors, mask, scores, rows, self.blocks[0]).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None, "this backend does not tell the memory of its programs"
        return analysis.temp_size_in_bytes

    def _traced_step(
        self,
        head: nnx.State,
        vectors: Float[AnyArray, "b m d"],
        mask: Bool[AnyArray, "b m"],
        best: Float[Array, "b k"],
        best_rows: Int[Array, "b k"],
        block: Block,
    ) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
        self.compilations += 1
        return merge_block(self._head_graph, head, vectors, mask, (best, best_rows), block)


def merge_block(
    graph: nnx.GraphDef,
    head: nnx.State,
    vectors: Float[AnyArray, "b m d"],
    mask: Bool[AnyArray, "b m"],
    best: tuple[Float[Array, "b k"], Int[Array, "b k"]],
    block: Block,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """The best scores and rows so far, and those of a further block, merged."""
    candidates = block.vectors.astype(jnp.float32)
    if block.scales is not None:
        candidates = candidates * block.scales[:, None]
    with jax.default_matmul_precision("highest"):  # a GPU's default rounds the factors
        scores = nnx.merge(graph, head).score(vectors, mask, candidates[None])
    scores = jnp.where(block.live[None] & ~jnp.isnan(scores), scores, -jnp.inf)
    before, before_rows = best
    k = before.shape[1]
    top, places = jax.lax.top_k(scores, min(k, scores.shape[1]))
    rows = jnp.where(top > -jnp.inf, block.first + places, -1)
    # Rows of earlier blocks come first, and top_k keeps the order of equals.
    merged, chosen = jax.lax.top_k(jnp.concatenate([before, top], axis=1), k)
    return merged, jnp.take_along_axis(jnp.concatenate([before_rows, rows], axis=1), chosen, axis=1)


def _given(
    vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"]
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
    """Context vectors for several steps, moved once.

    By numpy: arrays that are bound to a device, as an encoder's are, make other programs than those that are
    not.
    """
    return jax.device_put(np.asarray(vectors)), jax.device_put(np.asarray(mask))


def nothing_found(b: int, k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """What a search of no block gives."""
    # By numpy: each step of jax's outside a program is compiled as one.
    return jax.device_put(np.full((b, k), -np.inf, np.float32)), jax.device_put(np.full((b, k), -1, np.int32))


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
