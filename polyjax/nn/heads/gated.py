"""Cross-encoder that starts as a bi-encoder: each text sees the other through learnt gates."""

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

GATE_RATE = 30.0
"""Factor of the learnt gates: at a pretrained encoder's small rates they would hardly move otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedCrossConfig:
    """Cross-encoder that starts as the bi-encoder of the same weights (not in the paper).

    Both texts are in one sequence, but each has positions and a start token of its own, as in a bi-encoder
    (``TextConfig.pairs`` of ``apart``). Attention from one text to the other has a gate added to its logits,
    one for each layer and head, which starts low and is learnt. The score is that of a bi-encoder, computed
    from the two texts' token outputs, plus a linear layer over both vectors that starts at zero.

    Attributes:
        gate: logits that are added to attention to the other text, at first. At minus infinity the model is a
            bi-encoder for good; at 0 both texts are mixed at once, which costs a pretrained encoder most of
            its accuracy.
        reduction: token outputs of each text -> vector, as the bi-encoder has it.
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
        check_scale("score_scale", self.score_scale)
        if math.isnan(self.gate) or self.gate == math.inf:
            raise InputError("head.gate", expected="a number, or minus infinity", got=self.gate)

    def build(self, dim: int, *, rngs: nnx.Rngs, n_layers: int = 1, n_heads: int = 1) -> "GatedCrossHead":
        """The head for an encoder of width ``dim``, with so many blocks of so many attention heads."""
        return GatedCrossHead(self, dim, n_layers=n_layers, n_heads=n_heads, rngs=rngs)


class GatedCrossHead(nnx.Module):
    """Score of a pair whose texts see each other through gates, and the gates themselves.

    Args:
        config: see GatedCrossConfig.
        dim: width d.
        n_layers: blocks of the encoder.
        n_heads: attention heads of a block.
        rngs: source of the initial values; none of them is random.
    """

    def __init__(self, config: GatedCrossConfig, dim: int, *, n_layers: int, n_heads: int, rngs: nnx.Rngs):
        self.config = config
        self.gate = nnx.Param(jnp.zeros((n_layers, n_heads), jnp.float32))
        self.linear = Linear(2 * dim, 1, init_std=0.0, rngs=rngs)

    @property
    def gates(self) -> Float[Array, "l h"]:
        """What is added to the logits of attention to the other text, by block and head, float32 [l, h]."""
        return jnp.float32(self.config.gate) + jnp.float32(GATE_RATE) * self.gate[...]

    def __call__(
        self, hidden: Float[Array, "n t d"], context: Bool[Array, "n t"], candidate: Bool[Array, "n t"]
    ) -> Float[Array, " n"]:
        """Token outputs of n pairs -> scores [n], float32.

        score = score_scale * x . y + w . [u, v] + b, where u and v are the vectors of context and candidate,
        and x and y the same scaled to length 1 (with ``normalize``).

        Args:
            hidden: token outputs.
            context: which of them are of the context.
            candidate: which of them are of the candidate.
        """
        config = self.config
        u, v = (reduce(hidden, mask, config.reduction) for mask in (context, candidate))
        x, y = (unit(u), unit(v)) if config.normalize else (u, v)
        return config.score_scale * (x * y).sum(-1) + self.linear(jnp.concatenate([u, v], axis=-1))[:, 0]
