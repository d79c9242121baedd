"""k-means, to initialise a poly-encoder's codes from token outputs."""

import numpy as np
from jaxtyping import Float

from polyjax.errors import InputError


def centres(
    points: Float[np.ndarray, "n d"], k: int, *, seed: int, rounds: int = 20
) -> Float[np.ndarray, "k d"]:
    """Centres of k clusters, float32 [k, d], by Lloyd's algorithm; deterministic for given points and seed.

    The initial centres are k different points, drawn by k-means++ (Arthur and Vassilvitskii, 2007). A centre
    without points keeps its position.

    >>> points = np.array([[0.0], [1.0], [9.0], [11.0]], np.float32)
    >>> sorted(centres(points, 2, seed=0)[:, 0].tolist())
    [0.5, 10.0]

    Args:
        points: the points to cluster.
        k: number of clusters.
        seed: seed of the initial centres.
        rounds: maximum number of iterations; it stops earlier once the centres no longer move.

    Raises:
        InputError: there are fewer than k different points.
    """
    points = np.asarray(points, np.float32)
    draw = np.random.default_rng(seed)
    chosen = [points[draw.integers(len(points))]] if len(points) else []
    nearest = np.full(len(points), np.inf)
    while chosen and len(chosen) < k:
        nearest = np.minimum(nearest, np.square(points - chosen[-1]).sum(1, dtype=np.float64))
        if not nearest.sum() > 0:
            break
        chosen.append(points[draw.choice(len(points), p=nearest / nearest.sum())])
    if len(chosen) < k:
        raise InputError(
            "head.n_codes", expected=f"at most {len(chosen)}, the number of different outputs", got=k
        )
    found = np.stack(chosen)
    for _ in range(rounds):
        distance = np.square(found).sum(1)[None, :] - 2 * points @ found.T  # less the squares of the points
        belongs = distance.argmin(1)
        sums = np.zeros(found.shape, np.float64)
        np.add.at(sums, belongs, points)
        sizes = np.bincount(belongs, minlength=k)[:, None]
        moved = np.where(sizes > 0, sums / np.maximum(sizes, 1), found).astype(np.float32)
        if np.array_equal(moved, found):
            break
        found = moved
    return found
