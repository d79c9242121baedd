"""Calibration: maps scores to probabilities by a logistic function with two fitted parameters.

Platt's method (Advances in Large Margin Classifiers, 1999) with the targets of Lin, Lin and Weng (Machine
Learning 68, 2007), which keep the fit finite even if scores separate right and wrong candidates completely.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from polyjax.errors import InputError
from polyjax.inference.score_map import ScoreMap, sigmoid

_STEPS, _CLOSE = 100, 1e-10


def fit_score_map(
    scores: Float[np.ndarray, "b c"],
    right: Bool[np.ndarray, "b c"],
    where: Bool[np.ndarray, "b c"] | None = None,
) -> ScoreMap | None:
    """Fit the logistic map by maximum likelihood.

    Args:
        scores: scores of the candidates of each row, [b, c]; scores that are not finite count as missing.
        right: which candidates are right, [b, c].
        where: True for real candidates; None for all.

    Returns:
        The map; None if right candidates do not score higher than wrong ones, so that the slope would not be
        positive.

    Raises:
        InputError: there are no right candidates, or no wrong ones.

    >>> right = np.array([[True, False, False], [False, True, False]])
    >>> map_ = fit_score_map(np.array([[4.0, 0.0, 1.0], [0.0, 3.0, 2.0]]), right)
    >>> [f"{chance:.1f}" for chance in map_(np.array([0.0, 4.0]))]
    ['0.1', '0.8']
    """
    real = np.isfinite(scores) if where is None else np.isfinite(scores) & where
    values, is_right = scores[real].astype(np.float64), right[real]
    n_right, n_wrong = int(is_right.sum()), int((~is_right).sum())
    if not n_right or not n_wrong:
        raise InputError("scores", expected="right and wrong candidates", got=(n_right, n_wrong))
    middle, spread = values.mean(), values.std()
    if spread == 0:
        return None
    # The targets of Lin, Lin and Weng: posterior means for these numbers of right and wrong candidates.
    target = np.where(is_right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    slope, offset = _newton((values - middle) / spread, target)
    slope, offset = float(slope / spread), float(offset - slope * middle / spread)
    return ScoreMap(slope=slope, offset=offset) if slope > 0 else None


def _newton(values: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Slope and offset of minimal cross-entropy, by Newton's method; a step that raises it is halved."""
    columns = np.stack([values, np.ones_like(values)])
    share = target.mean()
    found = np.array([0.0, math.log(share / (1 - share))])
    loss = _loss(found @ columns, target)
    for _ in range(_STEPS):
        chance = sigmoid(found @ columns)
        gradient = columns @ (chance - target)
        curvature = (columns * (chance * (1 - chance))) @ columns.T + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while (after := _loss((found - step) @ columns, target)) > loss and np.abs(step).max() > _CLOSE:
            step = step / 2
        found, loss = found - step, after
        if np.abs(step).max() <= _CLOSE:
            break
    return float(found[0]), float(found[1])


def _loss(logits: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - target * logits).sum())
