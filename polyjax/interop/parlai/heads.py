"""ParlAI's heads where they differ from the paper's: reductions over padding, two candidate layers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, assert_never

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.config import part
from polyjax.nn.heads import BiConfig, BiHead, Inputs, ProductForm
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import Reducer, Reduction, largest, unit


@part("parlai-over-padding", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class OverPadding:
    """A reduction whose sum or maximum includes padding, so that the result depends on the padded length.

    >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [OverPadding(kind=kind)(hidden, mask).item() for kind in ("first", "mean", "max")]
    [1.0, 6.5, 9.0]

    Attributes:
        kind: ``first`` token, ``mean`` (the sum over the number of real tokens), or ``max``.
    """

    kind: Literal["first", "mean", "max"] = "mean"

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs [n, t, d] and mask [n, t] -> one float32 vector a row [n, d]."""
        hidden = hidden.astype(jnp.float32)
        match self.kind:
            case "first":
                return hidden[:, 0]
            case "mean":
                return hidden.sum(1) / jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32)
            case "max":
                return largest(hidden, jnp.ones((1, 1, 1), bool))
            case _:
                assert_never(self.kind)

    @property
    def before(self) -> tuple[Reduction, Mapping[str, Any]]:
        """The settings that recorded it in older files, see ``polyjax.config.Replaces``."""
        return self.kind, {"over_padding": True}


@part("parlai-bi", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ParlaiBiConfig:
    """ParlAI's bi-encoder: one encoder with two candidate layers, or two encoders with one token table.

    Attributes:
        reduction: token outputs -> vector, on both sides.
        shared_encoder: encode both sides with one transformer instead of two.
        normalize: scale both vectors to length 1.
        score_scale: multiplies the score.
        candidate_mlp: apply two linear layers, with a ReLU between them, to the candidate vector.
        shared_words: share the table of token embeddings between two encoders.
    """

    arch: ClassVar[str] = "bi"
    inputs: ClassVar[Inputs] = "dual"

    reduction: Reduction | Reducer = "mean"
    shared_encoder: bool = True
    normalize: bool = False
    score_scale: float = 1.0
    candidate_mlp: bool = True
    shared_words: bool = False

    @property
    def plain(self) -> BiConfig:
        """The head's configuration without ``candidate_mlp`` and ``shared_words``."""
        return BiConfig(
            reduction=self.reduction,
            shared_encoder=self.shared_encoder,
            normalize=self.normalize,
            score_scale=self.score_scale,
        )

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        self.plain  # noqa: B018  # checks its fields

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "ParlaiBiHead":
        """The head for an encoder of width ``dim``."""
        return ParlaiBiHead(self, dim, rngs=rngs)

    def tie(self, context_encoder: Any, candidate_encoder: Any) -> None:
        """Make both encoders use one table of token embeddings if ``shared_words`` is set."""
        if self.shared_words:
            candidate_encoder.embeddings.tokens = context_encoder.embeddings.tokens

    @property
    def before(self) -> tuple[BiConfig, Mapping[str, Any]]:
        """The settings that recorded it in older model cards, see ``polyjax.config.Replaces``."""
        added = {"candidate_mlp": self.candidate_mlp, "shared_words": self.shared_words}
        return self.plain, {name: True for name, is_there in added.items() if is_there}


class ParlaiBiHead(nnx.Module):
    """A bi-encoder's head with two extra layers for candidates, which distinguish them from contexts.

    Args:
        config: its settings.
        dim: width of the encoder.
        rngs: for the parameters.
    """

    def __init__(self, config: ParlaiBiConfig, dim: int, *, rngs: nnx.Rngs):
        self.config, self.bi = config, BiHead(config.plain, dim, rngs=rngs)
        if config.candidate_mlp:
            layers = [Linear(dim, dim, init_std=dim**-0.5, rngs=rngs) for _ in range(2)]
            self.candidate_mlp = nnx.List(layers)

    @property
    def product_form(self) -> ProductForm:
        """The score as a dot product of two vectors, for search."""
        return self.bi.product_form

    def embed(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs -> the vectors [n, d] of texts without a role."""
        return self.bi.embed(hidden, mask)

    def context(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b 1 d"], Bool[Array, "b 1"]]:
        """Token outputs -> the context vector [b, 1, d] and its mask [b, 1]."""
        return self.bi.context(hidden, mask)

    def candidate(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs -> candidate vectors [n, d]."""
        vector = self.bi.vector(hidden, mask)
        if self.config.candidate_mlp:
            vector = self.candidate_mlp[1](jax.nn.relu(self.candidate_mlp[0](vector)))
        return unit(vector) if self.config.normalize else vector

    def score(
        self, vectors: Float[Array, "b 1 d"], mask: Bool[Array, "b 1"], candidates: Float[Array, "#b c d"]
    ) -> Float[Array, "b c"]:
        """Context vectors [b, 1, d] and candidate vectors [1 or b, c, d] -> scores [b, c]."""
        return self.bi.score(vectors, mask, candidates)
