"""Bi-encoder: one vector for the context and one for each candidate (arXiv 1905.01969 §4.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.nn.heads.common import check_scale
from polyjax.nn.heads.contract import Inputs, ProductForm
from polyjax.nn.heads.dense import DenseConfig, DenseLayers
from polyjax.nn.reduce import Reducer, Reduction, reduce, unit
from polyjax.runtime.fields import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiConfig:
    """Bi-encoder: one context vector, one candidate vector, score = dot product (§4.2).

    Attributes:
        reduction: token outputs -> vector, on both sides.
        shared_encoder: encode both sides with one transformer instead of two.
        normalize: scale both vectors to length 1, so that the score is a cosine.
        score_scale: multiplies the score; 1 for raw products, about 20 for cosines.
        also: further reductions; their vectors are concatenated to the first.
        dense: layers after the reduction, on both sides.
        raw_embeddings: with ``normalize``, scale vectors for the score only; ``embed`` returns them unscaled.
            Folders of sentence-transformers without a Normalize module need this.

    >>> BiConfig(normalize=True, score_scale=20.0, shared_encoder=True).reduction  # a scaled cosine
    'mean'
    """

    arch: ClassVar[str] = "bi"
    inputs: ClassVar[Inputs] = "dual"
    RETIRED: ClassVar[Mapping[str, Any]] = {
        "shared_words": False,
        "candidate_mlp": False,
        "over_padding": False,
    }

    reduction: Reduction | Reducer = "mean"
    shared_encoder: bool = False
    normalize: bool = False
    score_scale: float = 1.0
    also: tuple[Reduction, ...] = ()
    dense: tuple[DenseConfig, ...] = ()
    raw_embeddings: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        check_types(self, "head")
        check_scale("score_scale", self.score_scale)

    def vector_dim(self, dim: int) -> int:
        """Width of the vectors for an encoder of width ``dim``."""
        return self.dense[-1].dim if self.dense else dim * (1 + len(self.also))

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "BiHead":
        """The head for an encoder of width ``dim``."""
        return BiHead(self, dim, rngs=rngs)


class BiHead(nnx.Module):
    """One context vector and one candidate vector; score = score_scale * dot product (§4.2).

    Args:
        config: settings of the head.
        dim: width d of the encoder.
        rngs: source of the initial values of dense layers.
    """

    def __init__(self, config: BiConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        width = dim * (1 + len(config.also))
        self.dense = DenseLayers(config.dense, width, rngs=rngs) if config.dense else None

    @property
    def product_form(self) -> ProductForm:
        """The score as a scaled dot product, for search."""
        return ProductForm(scale=self.config.score_scale)

    def vector(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> vectors [n, e] before ``normalize``."""
        config = self.config
        vector = reduce(hidden, mask, config.reduction)
        if config.also:
            more = [reduce(hidden, mask, kind) for kind in config.also]
            vector = jnp.concatenate([vector, *more], axis=-1)
        return vector if self.dense is None else self.dense(vector)

    def embed(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> vectors [n, e] of texts that are neither contexts nor candidates."""
        vector = self.vector(hidden, mask)
        return unit(vector) if self.config.normalize and not self.config.raw_embeddings else vector

    def context(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b 1 e"], Bool[Array, "b 1"]]:
        """Token outputs -> the context vector [b, 1, e] and its mask [b, 1]."""
        vector = self.vector(hidden, mask)
        vector = unit(vector) if self.config.normalize else vector
        return vector[:, None, :], jnp.ones((hidden.shape[0], 1), bool)

    def candidate(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> candidate vectors [n, e]."""
        vector = self.vector(hidden, mask)
        return unit(vector) if self.config.normalize else vector

    def score(
        self, vectors: Float[Array, "b 1 e"], mask: Bool[Array, "b 1"], candidates: Float[Array, "#b c e"]
    ) -> Float[Array, "b c"]:
        """Context vectors [b, 1, e] and candidate vectors -> scores [b, c].

        Candidates are [1, c, e] (the same for all contexts) or [b, c, e] (their own for each context).
        """
        if candidates.shape[0] == 1:
            products = vectors[:, 0] @ candidates[0].T
        else:
            products = jnp.einsum("bmd,bcd->bc", vectors, candidates)
        return self.config.score_scale * products
