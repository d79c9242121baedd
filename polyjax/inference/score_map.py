"""Scores as probabilities; ``polyjax.evaluation.calibration`` fits the map."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from polyjax.errors import InputError


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    # The exponent is never positive, so the exponential cannot overflow.
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreMap:
    """The probability that a candidate is right: 1 / (1 + exp(-(slope * score + offset))).

    It holds for candidates of which the same share is right as in the rows that the map was fitted on.

    Attributes:
        slope: multiplies the score; positive, so that the order of candidates stays the same.
        offset: added to it; with 0, a score of 0 has probability one half.

    >>> ScoreMap(slope=2.0, offset=-1.0)(np.array([0.5, 100.0, -100.0])).tolist()
    [0.5, 1.0, 0.0]
    """

    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if not (math.isfinite(self.slope) and self.slope > 0):
            raise InputError("slope", expected="a positive number", got=self.slope)
        if not math.isfinite(self.offset):
            raise InputError("offset", expected="a finite number", got=self.offset)

    def __call__(self, scores: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Probabilities of scores of any shape, float32 (in half precision, different scores would tie)."""
        return sigmoid(self.slope * np.asarray(scores, np.float64) + self.offset).astype(np.float32)


SIGMOID = ScoreMap()
"""The map of a model that was not calibrated."""
