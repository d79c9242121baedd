"""Relative positions in logarithmic buckets, as in DeBERTa v2 and v3 (arXiv 2006.03654)."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@functools.lru_cache(maxsize=64)
def relative_rows(t: int, n_buckets: int, max_distance: int) -> Int[np.ndarray, " r"]:
    """Rows of the relative table for each difference query - key, from -(t - 1) to t - 1, int32 [2 t - 1].

    Distances up to m = n_buckets / 2 have their own rows. A larger distance r is in the bucket
    ceil(ln(r / m) / ln((max_distance - 1) / m) (m - 1)) + m, so bucket sizes grow logarithmically.

    >>> relative_rows(4, 16, 64).tolist()
    [13, 14, 15, 16, 17, 18, 19]
    """
    middle = n_buckets // 2
    found = []
    for r in range(t):
        if r <= middle:
            found.append(r)
            continue
        # The largest distance lies on the edge of the last bucket; a rounded logarithm could exceed it.
        share = math.log(r / middle) / math.log((max_distance - 1) / middle) * (middle - 1)
        edge = round(share)
        found.append(middle + (edge if abs(share - edge) < 1e-9 else math.ceil(share)))
    one_side = np.array(found)
    both = np.concatenate([-one_side[:0:-1], one_side])
    return np.clip(both + n_buckets, 0, 2 * n_buckets - 1).astype(np.int32)


def shifted(scores: Float[Array, "n h t r"]) -> Float[Array, "n h t t"]:
    """Re-index scores by token instead of by difference: result[.., i, j] = scores[.., i, j - i + t - 1].

    >>> shifted(jnp.arange(6.0).reshape(1, 1, 2, 3))[0, 0].tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    n, h, t, r = scores.shape
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(n, h, -1)
    return flat[..., t - 1 : t - 1 + t * r].reshape(n, h, t, r)[..., :t]
