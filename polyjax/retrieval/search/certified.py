"""The exact scan's top k for a part of its arithmetic, with a proof.

One cheap pass gives every candidate an upper bound of its score, from bfloat16 products with a few
directions. The candidates of the highest bounds are scored by the scan's own program, and then all whose
bound reaches the k-th best of those scores; no other can be among the k best. Where too many are left, the
scan does it all.
"""

import dataclasses
import math
import threading
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num
from threadpoolctl import ThreadpoolController

from polyjax.nn.heads import DualHead
from polyjax.retrieval.index.rows import decode
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.bounds import Limits, largest_error, weighted_mean
from polyjax.retrieval.search.lowrank import Plan, choose, factorise, plan_rounded, ranks_of
from polyjax.retrieval.search.moments import Moments, upper_score
from polyjax.retrieval.search.scan import Block, Scan, blocks_of, power_of_two
from polyjax.runtime.hardware import cpu_has_bfloat16
from polyjax.types import AnyArray

_BLAS = ThreadpoolController()
_BLAS_LOCK = threading.Lock()  # the limit is the process's, and is put back as it was found

SAMPLE = 128
"""Candidates by which a context's rank is chosen."""

FIRST_RESCORED = 1024
"""Candidates of the highest bounds, which are scored first: mostly they are all that it takes."""

PASS_ROWS = 8192
"""Rows of a block of the pass, of which less stays in the cache than of the scan's."""

LARGE_ROWS, LARGE_STEP = 51_200, 2048
"""Most rows of a large block, and what its rows are a multiple of.

Bounds without a softmax keep few numbers of a row, and what a block costs by itself counts: over 100,000
rows of 384 and 16 / 32 directions, blocks of 8,192 took 14.2 / 16.6 ms, of 14,286 12.8 / 14.5, of 25,000
12.1 / 14.3, of 50,000 11.1 / 12.9, of 100,000 10.8 / 13.0 (2 cores of an AMD EPYC with bfloat16 units).
"""

MOST_RESCORED = 0.125
"""Share of the candidates beyond which the scan is as fast as scoring the survivors."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A context's best rows, and how they were found.

    Attributes:
        scores: float32 [k], best first; -inf where there are fewer candidates.
        rows: of the index, [k]; -1 where there are fewer.
        rank: of the pass: directions a candidate was multiplied with; None where the scan did it all.
        rescored: candidates that were scored exactly.
        certified: whether they are proven to be the best.
        recall: share of the best that such searches found when it was measured; 1 of certified ones.
    """

    scores: np.ndarray
    rows: np.ndarray
    rank: int | None
    rescored: int
    certified: bool = True
    recall: float | None = 1.0


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """A context's factors on the device.

    Attributes:
        basis: directions.
        weights: of the vectors along them; None where the basis is the vectors, or no products are made.
        there: which of the vectors are real; None where all are.
        figures: overlap and bounds, one after the other: each array that is moved by itself takes as long.
        layout: of the figures.
    """

    basis: Float[Array, "r d"]
    weights: Float[Array, "m r"] | None
    there: Bool[Array, " m"] | None
    figures: Float[Array, " n"]
    layout: "Layout" = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls, plan: Plan, basis: np.ndarray, weights: np.ndarray | None, there: np.ndarray | None
    ) -> "Pass":
        """A plan's, with its rows at the places of the context's vectors."""
        leaves, tree = jax.tree.flatten((plan.factors.overlap, plan.bounds))
        figures = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float32)
        return cls(
            jax.device_put(basis.astype(jnp.bfloat16)),
            None if weights is None else jax.device_put(weights),
            None if there is None else jax.device_put(there),
            jax.device_put(figures),
            Layout(tree, tuple(np.shape(leaf) for leaf in leaves)),
        )

    def bounds(self) -> tuple[Float[Array, ""], Limits | Moments]:
        """The basis's overlap, and what bounds the scores."""
        sizes = [math.prod(shape) for shape in self.layout.shapes]
        parts = [
            self.figures[end - size : end].reshape(shape)
            for size, end, shape in zip(sizes, np.cumsum(sizes).tolist(), self.layout.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.layout.tree, parts)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How figures that are kept in one array belong together."""

    tree: typing.Any
    shapes: tuple[tuple[int, ...], ...]


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


class CertifiedSearch:
    """Exact search of an index with a head whose scores have a product form.

    Args:
        scan: does what is left over.
        head: its head.

    Attributes:
        blocks: the index's rows, in the pass's blocks.
        large_blocks: the same for bounds without a softmax.
        compilations: programs compiled so far, without the scan's.
    """

    def __init__(self, scan: Scan, head: DualHead):
        self.scan, self.compilations = scan, 0
        form = head.product_form
        assert form is not None, "only a scan is exact with this head"
        self.sharpness, self._scale, self._may_lack_vectors = form.sharpness, form.scale, form.masked
        self._sample = _sample_of(scan.index)
        self._norm, self._lost = scan.index.longest()
        rows = min(PASS_ROWS, power_of_two(scan.index.rows))
        self.blocks = Blocks(scan.index, rows)
        self._removed = np.flatnonzero(~scan.index.live_rows())
        # Products with as many vectors as the scan's are worth nothing unless half precision is faster.
        self._rounding_pays = jax.default_backend() != "cpu" or cpu_has_bfloat16()
        self.large_blocks = self.blocks
        # On another device these would be copies; without bfloat16 units rows are widened a block at a time.
        views = jax.default_backend() == "cpu" and cpu_has_bfloat16()
        if views and (large := _large_rows(scan.index)) > rows:
            self.large_blocks = Blocks(scan.index, large)
        self._step = jax.jit(self._traced_step)
        self._rough = jax.jit(self._traced_rough)

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int, *, quick: bool = False
    ) -> list[Outcome]:
        """Each context's k best candidates: the scan's, with the scan's scores.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: which of them are real.
            k: at least 1.
            quick: scores from products in bfloat16, and exact ones of the best of those; not certified. The
                scan on a CPU without bfloat16 units, where it is the faster.
        """
        outcomes = []
        vectors, mask = np.asarray(vectors), np.asarray(mask)  # each step of jax's takes longer
        for i in range(vectors.shape[0]):
            one, real = vectors[i : i + 1], mask[i : i + 1]
            found = self._one(one, real, k, quick)
            if found is None:
                scores, rows = self.scan(one, real, k)
                found = Outcome(scores[0], rows[0], None, len(self.scan.index))
            outcomes.append(found)
        return outcomes

    def _one(
        self, vectors: Float[AnyArray, "1 m d"], mask: Bool[AnyArray, "1 m"], k: int, quick: bool
    ) -> Outcome | None:
        there = np.asarray(mask[0])
        if quick:
            return self._hurried(vectors, mask, k) if self._rounding_pays else None
        # One thread: those of numpy's products go on turning for a while, and take the cores from XLA's.
        with _BLAS_LOCK, _BLAS.limit(limits=1, user_api="blas"):
            plan = self._plan(np.asarray(vectors[0])[there])
            given = None if plan is None else self._given(plan, there)
        if plan is None or given is None:
            return None
        found = self._settle(self._bounds(given, self._blocks_for(plan)), vectors, mask, k)
        return None if found is None else dataclasses.replace(found, rank=plan.factors.rank)

    def _hurried(
        self, vectors: Float[AnyArray, "1 m d"], mask: Bool[AnyArray, "1 m"], k: int
    ) -> Outcome | None:
        """The best of the candidates whose rounded products give the highest scores."""
        if not np.isfinite(np.asarray(vectors)).all():
            return None
        rounded, real = jax.device_put(np.asarray(vectors[0]).astype(jnp.bfloat16)), jax.device_put(mask[0])
        about = self._gathered(
            [self._rough(rounded, real, block) for block in self.blocks.parts], self.blocks
        )
        rows = _highest(about, max(FIRST_RESCORED, 2 * k))
        scores, best = self.scan.among(vectors, mask, rows, k)
        everything = len(rows) == len(self.scan.index)
        recall = 1.0 if everything else None
        return Outcome(scores[0], best[0], None, len(rows), certified=everything, recall=recall)

    def compile(self, m: int, d: int) -> None:
        """Compile the passes of all ranks for m context vectors of width d; not the one of a quick search."""
        known = self.sharpness, self._norm, self._lost
        everything = np.ones(m, bool)
        # With ``first`` codes a short context has fewer vectors, and then a mask.
        for there in [everything, np.arange(m) < m - 1][: 2 if self._may_lack_vectors else 1]:
            draw = np.random.default_rng(0).standard_normal((int(there.sum()), d), np.float32)
            plans = (
                [plan_rounded(draw, known[0], norm=known[1], lost=known[2])] if self._rounding_pays else []
            )
            for r in ranks_of(*draw.shape):
                factors = factorise(draw, draw[:r])
                plans += [Plan(factors, factors.limits(*known)), Plan(factors, factors.moments(*known))]
            for plan in plans:
                self._step(self._given(plan, there), self._blocks_for(plan).parts[0])

    def _plan(self, vectors: np.ndarray) -> Plan | None:
        if not len(vectors) or not np.isfinite(vectors).all():
            return None
        known = {"norm": self._norm, "lost": self._lost, "rounding_pays": self._rounding_pays}
        return choose(vectors, self.sharpness, self._sample, **known)

    def _settle(
        self,
        upper: np.ndarray,
        vectors: Float[AnyArray, "1 m d"],
        mask: Bool[AnyArray, "1 m"],
        k: int,
    ) -> Outcome | None:
        """The best rows, given all rows' upper bounds; None where too many would have to be scored."""
        first = max(FIRST_RESCORED, 2 * k)
        most = max(int(MOST_RESCORED * len(upper)), first)
        rows = _highest(upper, first)
        scored = self.scan.among(vectors, mask, rows, k)
        rescored = len(rows)
        kth = scored[0][0, -1]
        rest = np.flatnonzero((upper >= kth) & (upper > -np.inf))
        if len(rest) > most:
            return None
        if len(rest) > first:  # otherwise they are among the first
            scored = self.scan.among(vectors, mask, rest, k)
            rescored = len(np.union1d(rows, rest))
        return Outcome(scored[0][0], scored[1][0], None, rescored)

    def _given(self, plan: Plan, there: np.ndarray) -> Pass:
        # Shapes must not depend on how many of the vectors are real: each shape is a program.
        basis, weights, real = plan.factors.basis, None, None
        if isinstance(plan.bounds, Limits):
            real = None if there.all() else there
            if plan.factors.weights is None:
                basis = _spread(basis, there)
            else:
                weights = _spread(plan.factors.weights, there)
        return Pass.of(plan, basis, weights, real)

    def _blocks_for(self, plan: Plan) -> Blocks:
        return self.large_blocks if isinstance(plan.bounds, Moments) else self.blocks

    def _bounds(self, given: Pass, blocks: Blocks) -> np.ndarray:
        """Upper bounds of all rows' scores [rows]; -inf where there is no candidate."""
        return self._gathered([self._step(given, block) for block in blocks.parts], blocks)

    def _gathered(self, parts: Sequence[Float[Array, " n"]], blocks: Blocks) -> np.ndarray:
        """Blocks' values by row [rows]: -inf where there is no candidate, inf where nothing is known."""
        upper = np.empty(self.scan.index.rows, np.float32)
        for start, part in zip(blocks.starts, parts, strict=True):
            place = upper[start : start + len(part)]
            place[:] = np.asarray(part)[: len(place)]
        upper[np.isnan(upper)] = np.inf  # nothing is known
        upper[self._removed] = -np.inf
        return upper

    def _traced_rough(
        self, vectors: Float[Array, "m d"], there: Bool[Array, " m"], block: Block
    ) -> Float[Array, " n"]:
        """Scores from rounded products; written as the heads write them, which XLA makes one loop of."""
        self.compilations += 1
        products = rounded_products(block.vectors, vectors)
        if block.scales is not None:
            products = products * block.scales[:, None]
        bias = jnp.where(there, jnp.float32(0), jnp.float32(-1e30))[None]
        weights = jax.nn.softmax(products * self.sharpness + bias, axis=-1)
        return (weights * products).sum(-1)

    def _traced_step(self, given: Pass, block: Block) -> Float[Array, " n"]:
        self.compilations += 1
        overlap, bounds = given.bounds()
        # Written so that XLA makes one fused loop of it all on a CPU.
        inside = rounded_products(block.vectors, given.basis)
        if block.scales is not None:
            inside = inside * block.scales[:, None]
        longest = block.norms + self._lost  # the pass sees rounded rows
        outside = longest * longest - (inside * inside).sum(1) / overlap
        perp = jnp.sqrt(jnp.maximum(outside, 0))
        products = inside
        with jax.default_matmul_precision("highest"):
            if isinstance(bounds, Moments):
                return self._scale * upper_score(inside, self.sharpness, bounds, perp, xp=jnp)
            if given.weights is not None:
                products = inside @ given.weights.T
        mean = weighted_mean(products, self.sharpness, there=given.there, xp=jnp)
        return self._scale * (mean.score + largest_error(mean, self.sharpness, bounds, perp, xp=jnp))


def rounded_products(rows: Num[Array, "n d"], directions: Float[Array, "r d"]) -> Float[Array, "n r"]:
    """Products of two arrays rounded to bfloat16, summed in float32.

    A CPU without bfloat16 units widens the factors first, which is exact: over blocks of 4,096 rows of 768
    and 64 directions 82 instead of 107 ms in all (two Zen 3 cores, which take 76 ms for float32 rows).
    """

    def product(rows: Array, directions: Array) -> Array:
        return jax.lax.dot_general(
            rows, directions, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

    def widened(rows: Array, directions: Array) -> Array:
        return product(rows.astype(jnp.float32), directions.astype(jnp.float32))

    cpu = product if cpu_has_bfloat16() else widened
    half = rows.astype(jnp.bfloat16), directions.astype(jnp.bfloat16)
    return jax.lax.platform_dependent(*half, cpu=cpu, default=product)


_SPARSE = 16


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """The rows of the n highest values that are candidates', increasing."""
    n = min(n, len(values))
    # Every 16th value tells which rows come into question: sorting them all out takes five times as long.
    some = values[::_SPARSE]
    about = int(1.25 * n / _SPARSE) + 8
    rows = np.arange(len(values))
    if about < len(some):
        likely = np.flatnonzero(values >= np.partition(some, -about)[-about])
        rows = likely if n <= len(likely) else rows
    rows = rows[np.sort(np.argpartition(values[rows], -n)[-n:])]
    return rows[values[rows] > -np.inf]


def _spread(rows: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Rows at the places where ``there`` is True, zeros elsewhere."""
    whole = np.zeros((len(there), rows.shape[1]), np.float32)
    whole[there] = rows
    return whole


def _large_rows(index: CandidateIndex) -> int:
    """Rows of a large block; 0 where blocks of so many would be copies, or be rounded in memory."""
    segment, *others = index.segments
    if others or segment.coarse.dtype != jnp.bfloat16:
        return 0
    n_blocks = max(2, -(-index.rows // LARGE_ROWS))  # of one alone the rows would be more than the index's
    return LARGE_STEP * -(-index.rows // (n_blocks * LARGE_STEP))


def _sample_of(index: CandidateIndex) -> np.ndarray:
    """Vectors of some candidates, evenly spaced, float32 [n, d]."""
    rows = np.unique(np.linspace(0, index.rows - 1, SAMPLE).astype(int))
    return decode(*index.stored(rows))
