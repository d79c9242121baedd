"""How far a poly-encoder's score can be from the one that approximate products give.

For a candidate c the exact products are s_j = E_j . c with the m context vectors E_j, the score is
f(s) = sum_j w_j s_j with w = softmax(t s). Let s' be approximate products and s - s' = delta with
delta_j = R_j . c + rho_j: R [m, d] is what a basis B leaves of E, the part of c that counts there is the one
outside B's rows, of norm p, and |rho_j| <= rho is rounding. So |delta_j| <= e = max_j |R_j| n + rho, where n
is the norm of the longest candidate.

Along the segment from s' to s, with g(u) = f(s' + u delta) and weights w(u):

    g'(u)  = sum_j a_j delta_j,             a_j = w_j(u) (1 + t (s_j(u) - f(u)))
    g''(u) = t sum_j w_j(u) (delta_j - mean)^2 (2 + t (s_j(u) - f(u))),   mean = sum_j w_j(u) delta_j

and so |f(s) - f(s')| <= |g'(0)| + max |g''| / 2, where

    |g'(0)|  <= p min(|R|_2 |a|_2, max_j |R_j| |a|_1) + rho |a|_1
    |g''(u)| <= t exp(2 t e) (2 + t (hi - lo + 2 e)) V,    V >= sum_j w_j delta_j^2

as w_j(u) <= w_j exp(2 t e), a variance is at most the second moment, and s' is in [lo, hi]. |R|_2, the
largest singular value, is what makes this far tighter than the norms of the rows alone: not all residuals can
point along c at once. With L the largest weight, V = L (|R|_2 n + rho sqrt(m))^2 will do, as L >= 1 / m. A
distribution on [lo, hi] with mean f deviates from it by D <= 2 (hi - f) (f - lo) / (hi - lo) on average; so
|a|_1 <= 1 + t D, and as no |a_j| exceeds L (1 + t (hi - f)), |a|_2^2 <= L (1 + t (hi - f)) |a|_1. All that is
left to know of a candidate is f, hi, lo, L and p. A bi-encoder has m = 1 and t = 0: the bound is p |R| + rho.
"""

import dataclasses
import math
import typing
from types import ModuleType
from typing import Any

import jax

ROUND_OFF = 2.0**-24
"""Of float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers of a context that bound the errors of its products with any candidate.

    Attributes:
        spectral: |R|_2.
        residual: max_j |R_j|.
        rounding: rho.
        curvature: factor of L (slope + t (hi - lo)), half of the second derivative's bound.
        slope: 2 + 2 t e.
        own: rounding error of the score's own computation, here and in the scan.
        slop: rounding error of hi - f and f - lo, which are 0 if all products are equal.
    """

    spectral: Any
    residual: Any
    rounding: Any
    curvature: Any
    slope: Any
    own: Any
    slop: Any


def limits(
    t: float, m: int, *, spectral: float, residual: float, rounding: float, longest: float, norm: float
) -> Limits:
    """The limits of a context with m vectors.

    Args:
        t: sharpness of the softmax, 0 or more.
        m: number of context vectors.
        spectral: |R|_2.
        residual: max_j |R_j|.
        rounding: rho.
        longest: largest norm of a context vector.
        norm: largest norm of a candidate, n.
    """
    e = residual * norm + rounding
    moment = (spectral * norm + rounding * math.sqrt(m)) ** 2
    return Limits(
        spectral=spectral,
        residual=residual,
        rounding=rounding,
        curvature=min(0.5 * t * math.exp(min(2 * t * e, 80)) * moment, 1e30),  # within float32
        slope=2 + 2 * t * e,
        own=own_error(t, m, longest * norm),
        slop=2 * ROUND_OFF * (m + 8) * longest * norm,
    )


def own_error(t: float, m: int, size: float) -> float:
    """Bound of the float32 rounding errors of a score, in the pass and in the scan.

    The relative error of a weight is a few units of rounding, plus t (hi - s_j) units from its exponent; the
    weight itself decreases with that exponent. The sums are over m.

    Args:
        t: sharpness of the softmax, 0 or more.
        m: number of context vectors.
        size: largest absolute value of a product.
    """
    exponents = min(1 / t, 4 * t * size**2) if t else 0.0
    return 4 * ROUND_OFF * ((m + 16) * size + m * exponents)


class Mean(typing.NamedTuple):
    """A candidate's softmax-weighted mean of its products, and the numbers that bound its error; [n] each.

    Attributes:
        score: f.
        largest: the largest weight, L.
        above: hi - f.
        below: f - lo.
    """

    score: Any
    largest: Any
    above: Any
    below: Any


def weighted_mean(products: Any, t: float, *, there: Any = None, xp: ModuleType) -> Mean:
    """The means of approximate products s', float [n, m].

    Args:
        products: s'.
        t: sharpness of the softmax, 0 or more.
        there: which of the m context vectors are real, bool [m]; all if None.
        xp: numpy or jax.numpy.
    """
    if there is None:
        hi, lo = products.max(1), products.min(1)
        weights = xp.exp(t * (products - hi[:, None]))
    else:
        hi = xp.where(there[None], products, -xp.inf).max(1)
        lo = xp.where(there[None], products, xp.inf).min(1)
        weights = xp.where(there[None], xp.exp(t * (products - hi[:, None])), 0)
    total = weights.sum(1)
    score = (weights * products).sum(1) / total
    return Mean(score, 1 / total, hi - score, score - lo)  # the largest exponential is 1


def largest_error(mean: Mean, t: float, given: Limits, perp: Any, *, xp: ModuleType) -> Any:
    """An upper bound of the difference between exact scores and these means, [n].

    Args:
        mean: means of approximate products.
        t: sharpness of the softmax.
        given: bounds of the errors of the products.
        perp: p, norm of a candidate's part outside the basis, [n] or one number for all.
        xp: numpy or jax.numpy.
    """
    # Rounding must not make either of them too small or negative, because the bound grows with both.
    above, below = mean.above + given.slop, mean.below + given.slop
    spread = above + below
    deviation = 2 * above * below / xp.maximum(spread, 1e-30)
    sum_a = 1 + t * deviation
    norm_a = xp.sqrt(mean.largest * (1 + t * above) * sum_a)
    first = perp * xp.minimum(given.spectral * norm_a, given.residual * sum_a) + given.rounding * sum_a
    second = given.curvature * mean.largest * (given.slope + t * spread)
    return first + second + given.own
