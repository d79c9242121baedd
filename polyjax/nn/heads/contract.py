"""What a scoring head is to the rest of the library: nothing outside this folder asks for its class.

A head has two parts: settings (a frozen dataclass), which say what kind of scorer they make and build the
module, and the module itself, a ``DualHead`` or a ``PairHead``.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError

Inputs = Literal["dual", "pairs"]
"""What a head scores: context and candidate encoded apart, or both in one sequence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductForm:
    """A score that is a softmax mean of products, which certified search and first stages need.

    With s_j the product of a candidate vector with context vector j,
    score = scale * sum_j softmax(sharpness * s)_j s_j over the context's real vectors.

    Attributes:
        scale: positive factor of the mean.
        sharpness: factor of the softmax's logits, 0 or more; it does not matter where there is one vector.
        masked: whether a context may have fewer real vectors than its array has places.
    """

    scale: float = 1.0
    sharpness: float = 0.0
    masked: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for constants that bounds cannot be computed with."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError("product_form.scale", expected="a positive number", got=self.scale)
        if not (math.isfinite(self.sharpness) and self.sharpness >= 0):
            raise InputError("product_form.sharpness", expected="a number of at least 0", got=self.sharpness)


@runtime_checkable
class HeadSettings(Protocol):
    """Settings of a head: a frozen dataclass, so that they can be compared, hashed and written as JSON.

    Settings with ``inputs`` of ``dual`` also say ``shared_encoder``, see ``DualSettings``. Settings from
    outside the package carry a ``name`` and a ``version`` besides, see ``polyjax.part``.

    Attributes:
        arch: ``bi``, ``poly``, ``cross``, or a name of its own: for folders, tables and reports.
        inputs: ``dual`` where both sides are encoded apart, ``pairs`` where they are read together.
    """

    arch: ClassVar[str]
    inputs: ClassVar[Inputs]

    def build(self, dim: int, *, rngs: nnx.Rngs) -> Any:
        """The module, a ``DualHead`` or a ``PairHead`` as ``inputs`` says.

        Args:
            dim: width d of the encoder.
            rngs: source of the initial values.
        """
        ...


@runtime_checkable
class DualSettings(HeadSettings, Protocol):
    """Settings of a ``DualHead``."""

    @property
    def shared_encoder(self) -> bool:
        """Whether one transformer encodes both sides."""
        ...


@runtime_checkable
class TiesEncoders(Protocol):
    """Settings whose two encoders share parameters without being one."""

    def tie(self, context_encoder: Any, candidate_encoder: Any) -> None:
        """Make the candidates' encoder use parameters of the contexts'."""
        ...


@runtime_checkable
class SetsWidth(Protocol):
    """Settings whose vectors may have another width than the encoder."""

    def vector_dim(self, dim: int) -> int:
        """Width of the vectors, for an encoder of width ``dim``."""
        ...


@runtime_checkable
class ActivatesScores(Protocol):
    """Settings whose scores are shown to users as a function of what training and evaluation work on."""

    def activated(self, scores: np.ndarray) -> np.ndarray:
        """The function, which keeps the order of scores."""
        ...


@runtime_checkable
class EmbedsTexts(Protocol):
    """A head with a vector for a text that is neither context nor candidate."""

    def embed(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> vectors, float32 [n, e]."""
        ...


@runtime_checkable
class StartsFromOutputs(Protocol):
    """A dual head whose first values may be made of the token outputs of training contexts."""

    @property
    def wants_outputs(self) -> bool:
        """Whether its settings ask for that."""
        ...

    def start_from(self, outputs: Float[np.ndarray, "n d"], *, seed: int) -> None:
        """Set the first values, the same ones for the same outputs and seed."""
        ...


@runtime_checkable
class DualHead(Protocol):
    """An architecture whose candidates are encoded once, whatever the context (an ``nnx.Module``).

    A score must depend on its context's vectors and its own candidate's vector only.
    """

    @property
    def config(self) -> Any:
        """Its settings, a ``DualSettings``."""
        ...

    def context(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b m e"], Bool[Array, "b m"]]:
        """Token outputs -> m context vectors, float32 [b, m, e], and which of them are real, [b, m]."""
        ...

    def candidate(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> candidate vectors, float32 [n, e]: what an index stores.

        Their width e is that of the encoder, unless the settings say otherwise (``SetsWidth``).
        """
        ...

    def score(
        self, vectors: Float[Array, "b m e"], mask: Bool[Array, "b m"], candidates: Float[Array, "#b c e"]
    ) -> Float[Array, "b c"]:
        """Scores, float32 [b, c]; all contexts have one set of candidates, [1, c, e], or each its own."""
        ...

    @property
    def product_form(self) -> ProductForm | None:
        """How the score is made of products; None where only a scan of all candidates is exact."""
        ...


@runtime_checkable
class GatedSettings(Protocol):
    """Settings of a ``GatedPairHead``, whose module is built for the blocks of an encoder too."""

    @property
    def gate(self) -> float:
        """What is added to the logits of attention to the other text, at first."""
        ...

    def build(self, dim: int, *, rngs: nnx.Rngs, n_layers: int, n_heads: int) -> Any:
        """The module.

        Args:
            dim: width d of the encoder.
            rngs: source of the initial values.
            n_layers: blocks of the encoder.
            n_heads: attention heads of a block.
        """
        ...


@runtime_checkable
class GatedPairHead(Protocol):
    """An architecture whose texts share a sequence, and see each other through gates (an ``nnx.Module``)."""

    @property
    def config(self) -> Any:
        """Its settings, a ``HeadSettings`` that is a ``GatedSettings`` too."""
        ...

    @property
    def gates(self) -> Float[Array, "l h"]:
        """Added to the logits of attention from one text to the other, by block and head, float32."""
        ...

    def __call__(
        self, hidden: Float[Array, "n t d"], context: Bool[Array, "n t"], candidate: Bool[Array, "n t"]
    ) -> Float[Array, " n"]:
        """Token outputs of n pairs, and which are of which text -> scores, float32 [n]."""
        ...


@runtime_checkable
class PairHead(Protocol):
    """An architecture that reads context and candidate together (an ``nnx.Module``)."""

    @property
    def config(self) -> Any:
        """Its settings, a ``HeadSettings``."""
        ...

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, " n"]:
        """Token outputs of n pairs -> scores, float32 [n]."""
        ...
