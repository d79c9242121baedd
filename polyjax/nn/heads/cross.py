"""Cross-encoder: a linear layer over the pair (arXiv 1905.01969 §4.3)."""

import dataclasses
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.nn.heads.common import reduced
from polyjax.nn.heads.contract import Inputs
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import Reduction


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """Cross-encoder: context and candidate in one sequence, a linear layer scores it (§4.3).

    Attributes:
        reduction: the pair's token outputs -> vector.
        over_padding: reduce over padding too, as ParlAI does (see ``reduce``).
    """

    arch: ClassVar[str] = "cross"
    inputs: ClassVar[Inputs] = "pairs"

    reduction: Reduction = "first"
    over_padding: bool = False

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "CrossHead":
        """The head for an encoder of width ``dim``."""
        return CrossHead(self, dim, rngs=rngs)


class CrossHead(nnx.Module):
    """Linear layer over the reduced output of a context-candidate pair (§4.3)."""

    def __init__(self, config: CrossConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        self.linear = Linear(dim, 1, rngs=rngs)

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, " n"]:
        """Token outputs of n pairs -> scores [n], float32."""
        return self.linear(reduced(hidden, mask, self.config))[:, 0]
