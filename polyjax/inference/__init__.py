"""Texts in, scores out: tokenised, batched into few shapes, and computed by compiled programs."""

from polyjax.inference.arguments import Context
from polyjax.inference.scorer import Progress, TextScorer, ignore

__all__ = ["Context", "Progress", "TextScorer", "ignore"]
