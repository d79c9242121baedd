"""Bi-encoder: one vector a side (arXiv 1905.01969 §4.2)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.nn.heads.common import check_scale, reduced
from polyjax.nn.heads.contract import Inputs, ProductForm
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import Reduction, unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiConfig:
    """Bi-encoder: one vector a side, score = dot product (§4.2).

    Attributes:
        reduction: token outputs -> vector, on both sides.
        shared_encoder: encode both sides with one transformer instead of two.
        normalize: scale both vectors to length 1, so that the score is a cosine.
        score_scale: multiplies the score; 1 for raw products, about 20 for cosines.
        shared_words: two encoders, but one table of token embeddings.
        candidate_mlp: two linear layers with a relu between them after the candidate's reduction, which
            ParlAI adds to tell the sides of a shared encoder apart.
        over_padding: reduce over padding too, as ParlAI does (see ``reduce``).
    """

    arch: ClassVar[str] = "bi"
    inputs: ClassVar[Inputs] = "dual"

    reduction: Reduction = "mean"
    shared_encoder: bool = False
    normalize: bool = False
    score_scale: float = 1.0
    shared_words: bool = False
    candidate_mlp: bool = False
    over_padding: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        check_scale("score_scale", self.score_scale)

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "BiHead":
        """The head for an encoder of width ``dim``."""
        return BiHead(self, dim, rngs=rngs)

    def tie(self, context_encoder: Any, candidate_encoder: Any) -> None:
        """Give both encoders one table of token embeddings, with ``shared_words``."""
        if self.shared_words:
            candidate_encoder.embeddings.tokens = context_encoder.embeddings.tokens


class BiHead(nnx.Module):
    """One context vector and one candidate vector; score = score_scale * dot product (§4.2)."""

    def __init__(self, config: BiConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        if config.candidate_mlp:
            self.candidate_mlp = nnx.List([Linear(dim, dim, init_std=dim**-0.5, rngs=rngs) for _ in range(2)])

    @property
    def product_form(self) -> ProductForm:
        """The scaled product itself."""
        return ProductForm(scale=self.config.score_scale)

    def context(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b 1 d"], Bool[Array, "b 1"]]:
        """Token outputs -> the context vector [b, 1, d] and its mask [b, 1]."""
        vector = reduced(hidden, mask, self.config)
        vector = unit(vector) if self.config.normalize else vector
        return vector[:, None, :], jnp.ones((hidden.shape[0], 1), bool)

    def candidate(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs -> candidate vectors [n, d]."""
        vector = reduced(hidden, mask, self.config)
        if self.config.candidate_mlp:
            vector = self.candidate_mlp[1](jax.nn.relu(self.candidate_mlp[0](vector)))
        return unit(vector) if self.config.normalize else vector

    def score(
        self, vectors: Float[Array, "b 1 d"], mask: Bool[Array, "b 1"], candidates: Float[Array, "#b c d"]
    ) -> Float[Array, "b c"]:
        """Context vectors and candidate vectors (one set for all contexts, or one each) -> scores [b, c]."""
        if candidates.shape[0] == 1:
            products = vectors[:, 0] @ candidates[0].T
        else:
            products = jnp.einsum("bmd,bcd->bc", vectors, candidates)
        return self.config.score_scale * products
