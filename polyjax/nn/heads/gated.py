"""Cross-encoder that starts as a bi-encoder: each text attends to the other through learnt gates."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError
from polyjax.nn.heads.common import check_scale
from polyjax.nn.heads.contract import Inputs
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import reduce, unit
from polyjax.runtime.fields import check_types

GATE_RATE = 30.0
"""Multiplies the learnt gates. Without it they would hardly move at the small rates of fine-tuning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedCrossConfig:
    """Cross-encoder that starts close to the bi-encoder with the same weights (not in the paper).

    Both texts are in one sequence, but each has its own positions and start token, as in a bi-encoder
    (``TextConfig.pairs`` is ``apart``). A learnt gate for each layer and head is added to the logits of
    attention from one text to the other; it starts low. The score is that of a bi-encoder, computed from the
    token outputs of both texts, plus a linear layer over both vectors that starts at zero.

    Attributes:
        gate: initial value of the gates. With minus infinity the model stays a bi-encoder. With 0 the texts
            are mixed from the start, which costs a pretrained encoder most of its accuracy.
        reduction: token outputs of each text -> vector, as in the bi-encoder.
        normalize: scale both vectors to length 1, so that their product is a cosine.
        score_scale: multiplies the product; 1 for raw products, about 20 for cosines.
    """

    arch: ClassVar[str] = "cross"
    inputs: ClassVar[Inputs] = "pairs"

    gate: float = -3.0
    reduction: Literal["first", "mean", "max", "mean_sqrt", "last"] = "mean"
    normalize: bool = False
    score_scale: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        check_types(self, "head")
        check_scale("score_scale", self.score_scale)
        if math.isnan(self.gate) or self.gate == math.inf:
            raise InputError("head.gate", expected="a number, or minus infinity", got=self.gate)

    def build(self, dim: int, *, rngs: nnx.Rngs, n_layers: int = 1, n_heads: int = 1) -> "GatedCrossHead":
        """The head for an encoder of width ``dim`` with ``n_layers`` blocks of ``n_heads`` heads."""
        return GatedCrossHead(self, dim, n_layers=n_layers, n_heads=n_heads, rngs=rngs)


class GatedCrossHead(nnx.Module):
    """The gates between two texts, and the score of the pair.

    Args:
        config: see GatedCrossConfig.
        dim: width d.
        n_layers: number of blocks of the encoder.
        n_heads: number of attention heads of a block.
        rngs: required by the layers; all initial values are 0.
    """

    def __init__(self, config: GatedCrossConfig, dim: int, *, n_layers: int, n_heads: int, rngs: nnx.Rngs):
        self.config = config
        self.gate = nnx.Param(jnp.zeros((n_layers, n_heads), jnp.float32))
        self.linear = Linear(2 * dim, 1, init_std=0.0, rngs=rngs)

    @property
    def gates(self) -> Float[Array, "l h"]:
        """Gates, float32 [l, h] (block, head), added to the logits of attention to the other text."""
        return jnp.float32(self.config.gate) + jnp.float32(GATE_RATE) * self.gate[...]

    def __call__(
        self, hidden: Float[Array, "n t d"], context: Bool[Array, "n t"], candidate: Bool[Array, "n t"]
    ) -> Float[Array, " n"]:
        """Token outputs of n pairs -> scores [n], float32.

        score = score_scale * x . y + w . [u, v] + b, where u and v are the vectors of context and candidate.
        x and y are u and v, with ``normalize`` scaled to length 1.

        Args:
            hidden: token outputs [n, t, d].
            context: True for tokens of the context.
            candidate: True for tokens of the candidate.
        """
        config = self.config
        u, v = (reduce(hidden, mask, config.reduction) for mask in (context, candidate))
        x, y = (unit(u), unit(v)) if config.normalize else (u, v)
        return config.score_scale * (x * y).sum(-1) + self.linear(jnp.concatenate([u, v], axis=-1))[:, 0]
