"""Certified search: the top k of the exact scan with less computation, and a proof that they are the best.

A cheap pass computes an upper bound of every candidate's score, from bfloat16 products with a few directions.
The candidates with the highest bounds are scored by the scan's own program. Then all others whose bound
reaches the k-th best of those scores are scored too; no other candidate can be among the k best. If too many
remain, the scan scores all candidates.
"""

import dataclasses
import threading

import numpy as np
from jaxtyping import Bool, Float
from threadpoolctl import ThreadpoolController

from polyjax.nn.heads import DualHead
from polyjax.retrieval.index.rows import decode
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.blocks import kind_of
from polyjax.retrieval.search.bounds import Limits
from polyjax.retrieval.search.coarse import Blocks, CoarseRows, highest
from polyjax.retrieval.search.lowrank import Plan, choose, factorise, plan_rounded, ranks_of
from polyjax.retrieval.search.moments import Moments
from polyjax.retrieval.search.outcome import Outcome
from polyjax.retrieval.search.programs import Pass
from polyjax.retrieval.search.scan import Scan
from polyjax.types import AnyArray

_BLAS = ThreadpoolController()
_BLAS_LOCK = threading.Lock()  # the limit applies to the whole process until it is restored

SAMPLE = 128
"""Number of sampled candidates used to choose the rank for a context."""

FIRST_RESCORED = 1024
"""Number of candidates with the highest bounds that are scored first; usually they are enough."""

MOST_RESCORED = 0.125
"""Largest share of candidates that are rescored; above it, the scan of all is as fast."""


class CertifiedSearch:
    """Exact search of an index with a head whose scores have a product form.

    Args:
        scan: scores the survivors, and all candidates if too many survive.
        head: the scorer's head.
        rows: rows of the scan's index, to share with another search.

    Attributes:
        rows: rows of the index for the pass.
        sharpness: sharpness of the head's softmax.
    """

    def __init__(self, scan: Scan, head: DualHead, rows: CoarseRows | None = None):
        form = head.product_form
        assert form is not None, "only a scan is exact with this head"
        self.scan, self.sharpness, self._may_lack_vectors = scan, form.sharpness, form.masked
        self.rows = rows or CoarseRows(scan.index)
        self._sample = _sample_of(scan.index)
        self._norm, self._lost = scan.index.longest()

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far, without the scan's, by all searches that share them."""
        return self.scan.programs.bounds.compilations

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> list[Outcome]:
        """The k best candidates of each context, with the same rows and scores as the scan.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: True for real vectors, [b, m].
            k: at least 1.
        """
        outcomes = []
        vectors, mask = np.asarray(vectors), np.asarray(mask)  # numpy is faster here than single jax calls
        for i in range(vectors.shape[0]):
            one, real = vectors[i : i + 1], mask[i : i + 1]
            found = self._one(one, real, k)
            if found is None:
                scores, rows = self.scan(one, real, k)
                found = Outcome(scores[0], rows[0], None, len(self.scan.index))
            outcomes.append(found)
        return outcomes

    def compile(self, m: int, d: int) -> None:
        """Compile the passes of all ranks for m context vectors of width d."""
        known = self.sharpness, self._norm, self._lost
        everything = np.ones(m, bool)
        # With ``first`` codes a short context has fewer real vectors, and therefore a mask.
        for there in [everything, np.arange(m) < m - 1][: 2 if self._may_lack_vectors else 1]:
            draw = np.random.default_rng(0).standard_normal((int(there.sum()), d), np.float32)
            plans = []
            if self.rows.rounding_pays:
                plans += [plan_rounded(draw, known[0], norm=known[1], lost=known[2])]
            for r in ranks_of(*draw.shape):
                factors = factorise(draw, draw[:r])
                plans += [Plan(factors, factors.limits(*known)), Plan(factors, factors.moments(*known))]
            for plan in plans:
                block, given = self._blocks_for(plan).parts[0], self._given(plan, there)
                with self.scan.programs.bounds.once(given.kind, *kind_of(block)) as bounds:
                    bounds(given, block)

    def _one(
        self, vectors: Float[np.ndarray, "1 m d"], mask: Bool[np.ndarray, "1 m"], k: int
    ) -> Outcome | None:
        there = mask[0]
        # One thread: after a product numpy's threads busy-wait for a while, which takes cores from XLA.
        with _BLAS_LOCK, _BLAS.limit(limits=1, user_api="blas"):
            plan = self._plan(vectors[0][there])
            given = None if plan is None else self._given(plan, there)
        if plan is None or given is None:
            return None
        found = self._settle(self._bounds(given, self._blocks_for(plan)), vectors, mask, k)
        return None if found is None else dataclasses.replace(found, rank=plan.factors.rank)

    def _plan(self, vectors: np.ndarray) -> Plan | None:
        if not len(vectors) or not np.isfinite(vectors).all():
            return None
        known = {"norm": self._norm, "lost": self._lost, "rounding_pays": self.rows.rounding_pays}
        return choose(vectors, self.sharpness, self._sample, **known)

    def _given(self, plan: Plan, there: np.ndarray) -> Pass:
        # Shapes must not depend on the number of real vectors, because each shape needs its own program.
        basis, weights, real = plan.factors.basis, None, None
        if isinstance(plan.bounds, Limits):
            real = None if there.all() else there
            if plan.factors.weights is None:
                basis = _spread(basis, there)
            else:
                weights = _spread(plan.factors.weights, there)
        return Pass.of(plan, basis, weights, real, lost=self._lost)

    def _blocks_for(self, plan: Plan) -> Blocks:
        return self.rows.large if isinstance(plan.bounds, Moments) else self.rows.small

    def _bounds(self, given: Pass, blocks: Blocks) -> np.ndarray:
        """Upper bounds of the scores of all rows [rows]; -inf for rows without a candidate."""
        with self.scan.programs.bounds.once(given.kind, *kind_of(blocks.parts[0])) as bounds:
            return self.rows.gathered([bounds(given, block) for block in blocks.parts], blocks)

    def _settle(
        self, upper: np.ndarray, vectors: Float[np.ndarray, "1 m d"], mask: Bool[np.ndarray, "1 m"], k: int
    ) -> Outcome | None:
        """The best rows, given the upper bounds of all rows; None if too many would have to be scored."""
        first = max(FIRST_RESCORED, 2 * k)
        most = max(int(MOST_RESCORED * len(upper)), first)
        rows = highest(upper, first)
        scored = self.scan.among(vectors, mask, rows, k)
        rescored = len(rows)
        kth = scored[0][0, -1]
        rest = np.flatnonzero((upper >= kth) & (upper > -np.inf))
        if len(rest) > most:
            return None
        if len(rest) > first:  # otherwise they are among those scored first
            scored = self.scan.among(vectors, mask, rest, k)
            rescored = len(np.union1d(rows, rest))
        return Outcome(scored[0][0], scored[1][0], None, rescored)


def _spread(rows: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Rows at the positions where ``there`` is True, zeros elsewhere."""
    whole = np.zeros((len(there), rows.shape[1]), np.float32)
    whole[there] = rows
    return whole


def _sample_of(index: CandidateIndex) -> np.ndarray:
    """Vectors of some candidates, evenly spaced, float32 [n, d]."""
    rows = np.unique(np.linspace(0, index.rows - 1, SAMPLE).astype(int))
    return decode(*index.stored(rows))
