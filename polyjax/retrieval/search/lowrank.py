"""Low-rank approximation of a context's vectors: E [m, d] is close to W [m, r] B [r, d].

The m context vectors are weighted means of the same token outputs, so they lie close to a space of few
dimensions. B is computed from singular vectors and rounded to bfloat16; W is then fitted to the rounded B, so
that its rounding adds no error. The residual is computed exactly and enters the bound of
``polyjax.retrieval.search.bounds``.
"""

import dataclasses
import math

import ml_dtypes
import numpy as np

from polyjax.retrieval.search.bounds import ROUND_OFF, Limits, largest_error, limits, own_error, weighted_mean
from polyjax.retrieval.search.moments import Moments, moments, turned, upper_score

RANKS = (16, 32, 48)
"""Ranks to try. Each needs two compiled programs; ranks below or between are not faster."""

TOLERANCE = 0.35
"""Largest bound, in standard deviations of a context's scores, for which a pass pays.

For normally distributed scores and the k best of n, the share of candidates that survive a bound b grows as
exp(2 b sqrt(2 log(n / k))). For 10 of 100,000, a bound of 0.35 leaves about 20 k of them.
"""

_OVERSAMPLING = 8


@dataclasses.dataclass(frozen=True)
class Factors:
    """An approximation of context vectors E [m, d], and its residual R = E - W B.

    Attributes:
        basis: B, bfloat16 values stored as float32 [r, d]; without ``weights``, E itself, rounded.
        weights: W, float32 [m, r]; None if the basis is E, rounded.
        spectral: upper bound of |R|_2.
        residual: largest norm of a row of R.
        offset: norm of the mean of R's rows.
        overlap: upper bound of |B B^T|_2, near 1; infinite without ``weights``, because R may then point in
            any direction.
        longest: largest norm of a row of E.
        n_vectors: m.
    """

    basis: np.ndarray
    weights: np.ndarray | None
    spectral: float
    residual: float
    offset: float
    overlap: float
    longest: float
    n_vectors: int

    @property
    def rank(self) -> int:
        """The rank r: the number of directions in the basis."""
        return len(self.basis)

    def limits(self, t: float, norm: float, lost: float) -> Limits:
        """Bounds of the errors of products with candidates; see ``choose`` for the arguments."""
        return limits(
            t,
            self.n_vectors,
            spectral=self.spectral,
            residual=self.residual,
            rounding=self._rounding(norm, lost),
            longest=self.longest,
            norm=norm + lost,  # the pass reads rounded candidates
        )

    def moments(self, t: float, norm: float, lost: float) -> Moments:
        """Bounds of the scores without a softmax; see ``choose`` for the arguments."""
        assert self.weights is not None
        return moments(
            self.weights,
            spectral=self.spectral,
            residual=self.residual,
            offset=self.offset,
            rounding=self._rounding(norm, lost),
            own=own_error(t, self.n_vectors, self.longest * (norm + lost)),
        )

    def _rounding(self, norm: float, lost: float) -> float:
        # Rounding of bfloat16 candidates and of float32 sums: in the scan over d; in the pass over d in each
        # of r products, over these r products, and over r in R (rows of W times columns of B).
        d, root = self.basis.shape[1], math.sqrt(self.rank)
        if self.weights is None:
            sums = d + (d + self.rank)
        else:
            sums = d + (d + self.rank) * root + self.rank * root
        sums += self.n_vectors + 8  # the softmax and its mean
        return self.longest * (lost + ROUND_OFF * sums * norm)


def rounded(vectors: np.ndarray) -> Factors:
    """E rounded to bfloat16: half the cost of float32 products, with a tiny residual."""
    return _factors(vectors, _round(vectors), None)


def factorise(vectors: np.ndarray, directions: np.ndarray) -> Factors:
    """E in the space spanned by directions [r, d], with a basis along the axes in which its rows differ."""
    basis = np.linalg.qr(directions.T)[0].T
    basis = _round(turned(vectors @ basis.T).T @ basis)
    weights = np.linalg.solve(basis @ basis.T, basis @ vectors.T).T
    return _factors(vectors, basis, weights)


def _factors(vectors: np.ndarray, basis: np.ndarray, weights: np.ndarray | None) -> Factors:
    left = vectors - (basis if weights is None else weights @ basis)
    gram = basis @ basis.T - np.eye(len(basis), dtype=basis.dtype)
    slack = 1 + 1e-4  # for float32 rounding of the numbers below
    return Factors(
        basis,
        weights,
        spectral=slack * _spectral_norm(left),
        residual=slack * _longest(left),
        offset=slack * float(np.linalg.norm(left.mean(0))),
        overlap=np.inf if weights is None else slack * (1 + float(np.linalg.norm(gram))),
        longest=slack * _longest(vectors),
        n_vectors=len(vectors),
    )


def _longest(rows: np.ndarray) -> float:
    return float(np.linalg.norm(rows, axis=1).max())


def ranks_of(m: int, d: int) -> list[int]:
    """The ranks that may pay for m context vectors of width d; above m / 2, rounding alone is as fast."""
    return [r for r in RANKS if 2 * r <= min(m, d)]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to bound the scores of a context.

    Attributes:
        factors: approximation of the context's vectors.
        bounds: ``Moments`` if no softmax is needed, otherwise ``Limits`` of the errors of the products.
    """

    factors: Factors
    bounds: Limits | Moments


def choose(
    vectors: np.ndarray, t: float, sample: np.ndarray, *, norm: float, lost: float, rounding_pays: bool = True
) -> Plan | None:
    """The cheapest plan whose bounds let few candidates through; None if no plan does.

    Args:
        vectors: real context vectors, float32 [m, d].
        t: sharpness of the softmax over their products.
        sample: vectors of some candidates, float32 [n, d].
        norm: largest norm of a candidate.
        lost: largest norm of a candidate's rounding error in bfloat16.
        rounding_pays: whether products in bfloat16 are faster than in float32, so that a plan that only
            rounds is allowed.
    """
    mean = weighted_mean(sample @ vectors.T, t, xp=np)
    enough = TOLERANCE * float(mean.score.std())

    def good(gap: np.ndarray) -> bool:
        return bool(np.mean(gap <= 2 * enough) >= 0.9)

    def error(factors: Factors) -> np.ndarray:
        return 2 * largest_error(mean, t, factors.limits(t, norm, lost), norm, xp=np)

    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinite bounds are never good enough
        if ranks := ranks_of(*vectors.shape):
            directions, values = _directions(vectors, ranks[-1])
            weights = vectors @ directions.T
            inside = sample @ directions.T
            lengths, m = (vectors**2).sum(1), len(vectors)
            missing = lengths[:, None] - np.cumsum(weights**2, axis=1)
            residuals = np.sqrt(np.maximum(missing.max(0), 0))
            longest = float(np.sqrt(lengths.max()))

            def guess(r: int, axes: np.ndarray) -> Factors:
                # A cheap estimate: the exact numbers are computed only if it is good enough.
                left = float(values[r]), float(residuals[r - 1])
                return Factors(axes.T @ directions[:r], weights[:, :r] @ axes, *left, 0.0, 1.0, longest, m)

            for r in ranks:
                axes = turned(weights[:, :r])
                given = guess(r, axes).moments(t, norm, lost)
                upper = upper_score(inside[:, :r] @ axes, t, given, norm, xp=np)
                if good(upper - mean.score):
                    factors = factorise(vectors, directions[:r])
                    return Plan(factors, factors.moments(t, norm, lost))
            for r in ranks:
                if good(error(guess(r, np.eye(r, dtype=np.float32)))):
                    factors = factorise(vectors, directions[:r])
                    return Plan(factors, factors.limits(t, norm, lost))
        if not (rounding_pays and good(error(rounded(vectors)))):
            return None
        return plan_rounded(vectors, t, norm=norm, lost=lost)


def plan_rounded(vectors: np.ndarray, t: float, *, norm: float, lost: float) -> Plan:
    """The plan that only rounds; see ``choose`` for the arguments."""
    factors = rounded(vectors)
    return Plan(factors, factors.limits(t, norm, lost))


def _directions(vectors: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """The direction of the mean and the r - 1 in which the vectors differ most [r, d], and residuals [r + 1].

    Residual i approximates the largest singular value of the remainder after the first i directions.
    """
    m, d = vectors.shape
    more = min(r + _OVERSAMPLING, m, d)
    middle = vectors.mean(0)
    middle = middle / max(float(np.linalg.norm(middle)), 1e-30)
    first = float(np.linalg.norm(vectors @ middle))
    vectors = vectors - np.outer(vectors @ middle, middle)
    if m <= 2 * more:
        values, axes = np.linalg.eigh(vectors @ vectors.T)
        found = np.sqrt(np.maximum(values[::-1], 0))
        # Directions of almost zero length only pad to the rank.
        lengths = np.maximum(found[: r - 1, None], 1e-6 * first + 1e-30)
        differing = axes[:, ::-1].T[: r - 1] @ vectors / lengths
    else:
        # A random sketch of the row space and one power step, because a full decomposition of 360 vectors
        # costs more than the search itself.
        draw = np.random.default_rng(0).standard_normal((m, more), np.float32)
        space = np.linalg.qr(vectors.T @ draw)[0]
        space = np.linalg.qr(vectors.T @ (vectors @ space))[0]
        seen = vectors @ space
        values, axes = np.linalg.eigh(seen.T @ seen)
        found = np.sqrt(np.maximum(values[::-1], 0))
        differing = (space @ axes[:, ::-1]).T[: r - 1]
    return np.vstack([middle, differing]), np.concatenate([[first], found, [0, 0]])[: r + 1]


def _spectral_norm(matrix: np.ndarray) -> float:
    """An upper bound of the largest singular value, (sum of sigma^8)^(1/8): at most m^(1/8) times it."""
    scale = float(np.abs(matrix).max())
    if not scale:
        return 0.0
    scaled = matrix / scale
    square = scaled @ scaled.T
    return scale * float(np.linalg.norm(square @ square)) ** (1 / 4)


def _round(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)
