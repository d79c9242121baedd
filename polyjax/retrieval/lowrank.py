"""A context's vectors in few dimensions: E [m, d] is nearly W [m, r] B [r, d].

The m context vectors are weighted means of the same token outputs, so that most of them is in a space of few
dimensions. B is chosen by singular vectors, rounded to bfloat16 numbers and then fitted again, so that its
rounding costs nothing; what is left over is measured, not assumed, and enters the bound of
``polyjax.retrieval.bounds``.
"""

import dataclasses

import ml_dtypes
import numpy as np

from polyjax.retrieval.bounds import ROUND_OFF, Limits, largest_error, limits, weighted_mean

RANKS = (8, 12, 16, 24, 32, 48, 64, 96)
"""Ranks that are tried; each is a compiled program of its own."""

TOLERANCE = 0.35
"""Largest bound, in standard deviations of a context's scores, with which a pass is worth its time.

The share of survivors of a bound b among normally distributed scores with k of n wanted grows as
exp(2 b sqrt(2 log(n / k))): with 10 of 100,000 a bound of 0.35 leaves some 20 k of them.
"""

_OVERSAMPLING = 8


@dataclasses.dataclass(frozen=True)
class Factors:
    """An approximation of context vectors E [m, d], and what it leaves out.

    Attributes:
        basis: B, numbers of bfloat16 as float32 [r, d]; without ``weights``, E itself so rounded.
        weights: W, float32 [m, r]; None where the basis is E, rounded.
        spectral: upper bound of |E - W B|_2.
        residual: largest norm of a row of E - W B.
        overlap: upper bound of |B B^T|_2: near 1.
        longest: largest norm of a row of E.
        n_vectors: m.
    """

    basis: np.ndarray
    weights: np.ndarray | None
    spectral: float
    residual: float
    overlap: float
    longest: float
    n_vectors: int

    @property
    def rank(self) -> int:
        """r."""
        return len(self.basis)

    def limits(self, t: float, norm: float, lost: float) -> Limits:
        """What bounds the errors of products with candidates; see ``choose`` for the arguments."""
        m, d = self.n_vectors, self.basis.shape[1]
        # Of bfloat16 candidates, and of float32 sums: over d in the scan, over d and r in the pass.
        rounding = self.longest * (lost + ROUND_OFF * (2 * d + self.rank + 8) * norm)
        return limits(
            t,
            m,
            spectral=self.spectral,
            residual=self.residual,
            rounding=rounding,
            longest=self.longest,
            norm=norm + lost,  # the pass sees rounded candidates
        )


def rounded(vectors: np.ndarray) -> Factors:
    """E in bfloat16 and nothing else: half the cost of float32 products, hardly anything left out."""
    return _factors(vectors, _round(vectors), None)


def factorise(vectors: np.ndarray, directions: np.ndarray) -> Factors:
    """E in the space of some directions, float32 [r, d]."""
    basis = _round(np.linalg.qr(directions.T)[0].T)
    weights = np.linalg.solve(basis @ basis.T, basis @ vectors.T).T
    return _factors(vectors, basis, weights)


def _factors(vectors: np.ndarray, basis: np.ndarray, weights: np.ndarray | None) -> Factors:
    left = vectors - (basis if weights is None else weights @ basis)
    gram = basis @ basis.T
    slack = 1 + 1e-4  # float32 arithmetic of the figures below
    return Factors(
        basis,
        weights,
        spectral=slack * _spectral_norm(left),
        residual=slack * float(np.linalg.norm(left, axis=1).max()),
        overlap=slack * (1 + float(np.linalg.norm(gram - np.eye(len(gram), dtype=gram.dtype)))),
        longest=slack * float(np.linalg.norm(vectors, axis=1).max()),
        n_vectors=len(vectors),
    )


def ranks_of(m: int, d: int) -> list[int]:
    """Ranks that may pay for m context vectors of width d; m / 2 saves nothing over rounding alone."""
    return [r for r in RANKS if 2 * r <= min(m, d)]


def choose(vectors: np.ndarray, t: float, sample: np.ndarray, *, norm: float, lost: float) -> Factors | None:
    """The factors of least rank whose bound lets few candidates through; None where none does.

    Args:
        vectors: context vectors that are there, float32 [m, d].
        t: sharpness of the softmax over their products.
        sample: some candidates' vectors, float32 [n, d].
        norm: of the longest candidate.
        lost: largest norm of what rounding a candidate to bfloat16 takes away.
    """
    m, d = vectors.shape
    mean = weighted_mean(sample @ vectors.T, t, xp=np)
    enough = TOLERANCE * float(mean.score.std())

    def good(factors: Factors) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):  # no bound at all is none that will do
            error = largest_error(mean, t, factors.limits(t, norm, lost), norm, xp=np)
        return bool(np.mean(error <= enough) >= 0.9)

    if ranks := ranks_of(m, d):
        directions, values = _directions(vectors, ranks[-1])
        lengths = (vectors**2).sum(1)
        inside = np.cumsum((vectors @ directions.T) ** 2, axis=1)
        for r in ranks:
            # What these figures promise is cheap to know, and worth the exact ones only where it will do.
            left = float(np.sqrt(max((lengths - inside[:, r - 1]).max(), 0)))
            guess = Factors(
                directions[:r], None, float(values[r]), left, 1.0, float(np.sqrt(lengths.max())), m
            )
            if good(guess):
                return factorise(vectors, directions[:r])
    whole = rounded(vectors)
    return whole if good(whole) else None


def _directions(vectors: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """About the first r right singular vectors [r, d], and r + 1 singular values."""
    m, d = vectors.shape
    more = min(r + _OVERSAMPLING, m, d)
    # A random sketch of the rows' space and one power step: a full decomposition of 360 vectors costs more
    # than the search that it is for.
    draw = np.random.default_rng(0).standard_normal((m, more), np.float32)
    space = np.linalg.qr(vectors.T @ draw)[0]
    space = np.linalg.qr(vectors.T @ (vectors @ space))[0]
    seen = vectors @ space
    values, axes = np.linalg.eigh(seen.T @ seen)
    found = np.sqrt(np.maximum(values[::-1], 0))
    return (space @ axes[:, ::-1]).T[:r], np.append(found, 0)[: r + 1]


def _spectral_norm(matrix: np.ndarray) -> float:
    """An upper bound of the largest singular value, at most m^(1/16) above it: (sum of sigma^16)^(1/16)."""
    scale = float(np.abs(matrix).max())
    if not scale:
        return 0.0
    scaled = matrix / scale
    square = scaled @ scaled.T
    fourth = square @ square
    return scale * float(np.linalg.norm(fourth @ fourth)) ** (1 / 8)


def _round(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)
