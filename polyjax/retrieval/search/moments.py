"""An upper bound of a poly-encoder's score that needs no softmax over the context vectors.

With s_j the m products of a candidate, their mean c, y_j = s_j - c and K(u) = log mean_j exp(u y_j), the
score is c + K'(t), where K'(0) = 0 and K''(u) is the variance of y under the weights softmax(u y). As
mean_j exp(u y_j) >= 1, with V the mean of y_j^2 and b their largest

    K''(u) <= V exp(u b),    and so    K'(t) <= min(b, t V (exp(t b) - 1) / (t b)).

Simpson's rule never falls short of that quotient, and does not cancel: (1 + 4 h + h^2) / 6, h = exp(t b / 2).

In the notation of ``polyjax.retrieval.search.bounds``, with P = B . c the r products of the pass, E = W B +
R, and the rows of W centred to W - w: c = w . P + r . c + rounding, with r the mean of R's rows; V's square
root is at most q + |R|_2 p / sqrt(m) + rho, where q^2 >= P^T G P and G = (W - w)^T (W - w) / m; and b is at
most M q + max_j |R_j| p + 2 rho, where M is the largest norm of a row of (W - w) L^-1, L^T L = G. With F the
part of G outside its diagonal, q^2 = sum_i (G_ii + |F|) P_i^2 is large enough. The basis is turned to the
axes of G (``turned``), so that F only contains the rounding errors of the basis.

So a candidate costs r d operations, whatever m is. This bound is for many vectors that differ little
compared with 1 / t. If they differ much, b is too coarse, and ``largest_error`` is better.
"""

import dataclasses
import math
from types import ModuleType
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """The numbers of a context that the bound needs.

    Attributes:
        centre: w, [r].
        spread: G_ii + |F|, [r].
        reach: M.
        deviation: |R|_2 / sqrt(m).
        residual: largest norm of a row of R, centred.
        offset: norm of the mean of R's rows.
        rounding: rho.
        own: rounding error of the score's own computation, here and in the scan.
    """

    centre: Any
    spread: Any
    reach: Any
    deviation: Any
    residual: Any
    offset: Any
    rounding: Any
    own: Any


def turned(weights: np.ndarray) -> np.ndarray:
    """The axes [r, r], in columns, along which W's rows differ independently: W @ axes has a diagonal G."""
    centred = weights - weights.mean(0)
    return np.linalg.eigh(centred.T @ centred)[1]


def moments(
    weights: np.ndarray, *, spectral: float, residual: float, offset: float, rounding: float, own: float
) -> Moments:
    """The moments of a context with weights W, float32 [m, r].

    Args:
        weights: W.
        spectral: |R|_2.
        residual: largest norm of a row of R.
        offset: norm of the mean of R's rows.
        rounding: rho.
        own: rounding error of the score's own computation.
    """
    m = len(weights)
    centre = weights.mean(0)
    centred = (weights - centre).astype(np.float64) / math.sqrt(m)
    gram = centred.T @ centred
    rest = float(np.linalg.norm(gram - np.diag(np.diag(gram))))
    axes = np.linalg.qr(centred)[0]
    slack = 1 + 1e-4  # for float32 rounding of these numbers and of the bound
    return Moments(
        centre=centre,
        spread=(slack * slack * (np.diag(gram) + rest)).astype(weights.dtype),
        reach=slack * math.sqrt(m) * float(np.linalg.norm(axes, axis=1).max()),
        deviation=slack * spectral / math.sqrt(m),
        residual=residual + offset,
        offset=offset,
        rounding=rounding,
        own=own,
    )


def upper_score(inside: Any, t: float, given: Moments, perp: Any, *, xp: ModuleType) -> Any:
    """Upper bounds of the scores [n] of candidates.

    Args:
        inside: P, products of the candidates with the basis, [n, r].
        t: sharpness of the softmax, 0 or more.
        given: the context's moments.
        perp: p, norm of a candidate's part outside the basis, [n] or one number for all.
        xp: numpy or jax.numpy.
    """
    size = xp.sqrt((inside * inside * given.spread[None]).sum(1))
    deviation = size + given.deviation * perp + given.rounding
    largest = given.reach * size + given.residual * perp + 2 * given.rounding
    half = xp.exp(xp.minimum(0.5 * t * largest, 40.0))
    tilt = t * deviation * deviation * (1 + 4 * half + half * half) * (1 / 6)
    mean = (inside * given.centre[None]).sum(1) + given.offset * perp + given.rounding
    return mean + xp.minimum(largest, tilt) + given.own
