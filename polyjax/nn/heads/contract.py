"""The contract of a scoring head; code outside this folder never asks for a head's class.

A head has two parts. Its settings, a frozen dataclass, say what kind of scorer it needs and build the module.
The module is a ``DualHead`` or a ``PairHead``.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError

Inputs = Literal["dual", "pairs"]
"""Input of a head: context and candidate encoded separately (``dual``) or in one sequence (``pairs``)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductForm:
    """The constants of a score that is a softmax-weighted mean of dot products.

    Certified search and first stages need this form. With s_j the dot product of a candidate vector and
    context vector j, score = scale * sum_j softmax(sharpness * s)_j s_j over the context's real vectors.

    Attributes:
        scale: multiplies the mean; positive.
        sharpness: multiplies the logits of the softmax; 0 or more. With one vector it has no effect.
        masked: whether some of a context's vectors may be masked.

    >>> ProductForm(scale=20.0)  # cosines of one vector a side
    ProductForm(scale=20.0, sharpness=0.0, masked=False)
    """

    scale: float = 1.0
    sharpness: float = 0.0
    masked: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a scale or sharpness out of range."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError("product_form.scale", expected="a positive number", got=self.scale)
        if not (math.isfinite(self.sharpness) and self.sharpness >= 0):
            raise InputError("product_form.sharpness", expected="a number of at least 0", got=self.sharpness)


@runtime_checkable
class HeadSettings(Protocol):
    """Settings of a head: a frozen dataclass, so that they can be compared, hashed and written as JSON.

    If ``inputs`` is ``dual``, they also have ``shared_encoder``, see ``DualSettings``. Settings defined
    outside the package also have a ``name`` and a ``version``, see ``polyjax.part``.

    Attributes:
        arch: ``bi``, ``poly``, ``cross`` or another name, for folders, tables and reports.
        inputs: ``dual`` if context and candidate are encoded separately, ``pairs`` if in one sequence.
    """

    arch: ClassVar[str]
    inputs: ClassVar[Inputs]

    def build(self, dim: int, *, rngs: nnx.Rngs) -> Any:
        """Build the module: a ``DualHead`` or a ``PairHead``, according to ``inputs``.

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
    """Settings whose two encoders share some of their parameters."""

    def tie(self, context_encoder: Any, candidate_encoder: Any) -> None:
        """Make the candidate encoder use some parameters of the context encoder, in place."""
        ...


@runtime_checkable
class SetsWidth(Protocol):
    """Settings whose vectors may have another width than the encoder."""

    def vector_dim(self, dim: int) -> int:
        """Width of the vectors for an encoder of width ``dim``."""
        ...


@runtime_checkable
class ActivatesScores(Protocol):
    """Settings with an activation that is applied to scores for users, but not in training or evaluation."""

    def activated(self, scores: np.ndarray) -> np.ndarray:
        """Apply the activation to scores of any shape; it preserves their order."""
        ...


@runtime_checkable
class EmbedsTexts(Protocol):
    """A head that can embed a text that is neither context nor candidate."""

    def embed(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> vectors, float32 [n, e]."""
        ...


@runtime_checkable
class StartsFromOutputs(Protocol):
    """A dual head that can initialise parameters from the token outputs of training contexts."""

    @property
    def wants_outputs(self) -> bool:
        """Whether its settings ask for such an initialisation."""
        ...

    def start_from(self, outputs: Float[np.ndarray, "n d"], *, seed: int) -> None:
        """Initialise the parameters from token outputs [n, d]; deterministic for given outputs and seed."""
        ...


@runtime_checkable
class DualHead(Protocol):
    """A head whose candidates are encoded independently of the context (an ``nnx.Module``).

    The score of a candidate must depend only on the context's vectors and the candidate's own vector.
    """

    @property
    def config(self) -> Any:
        """Its settings, a ``DualSettings``."""
        ...

    def context(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b m e"], Bool[Array, "b m"]]:
        """Token outputs -> context vectors, float32 [b, m, e], and their mask [b, m], True for real ones."""
        ...

    def candidate(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n e"]:
        """Token outputs -> candidate vectors, float32 [n, e]: what an index stores.

        Their width e is that of the encoder, unless the settings say otherwise (``SetsWidth``).
        """
        ...

    def score(
        self, vectors: Float[Array, "b m e"], mask: Bool[Array, "b m"], candidates: Float[Array, "#b c e"]
    ) -> Float[Array, "b c"]:
        """Context vectors and candidate vectors -> scores, float32 [b, c].

        Candidates are [1, c, e] (the same for all contexts) or [b, c, e] (their own for each context).
        """
        ...

    @property
    def product_form(self) -> ProductForm | None:
        """The score as a mean of dot products; None if it is not one, so that exact search scans all."""
        ...


@runtime_checkable
class GatedSettings(Protocol):
    """Settings of a ``GatedPairHead``, whose gates depend on the encoder's blocks and heads."""

    @property
    def gate(self) -> float:
        """Initial value of the gates, added to the logits of attention to the other text."""
        ...

    def build(self, dim: int, *, rngs: nnx.Rngs, n_layers: int, n_heads: int) -> Any:
        """Build the module.

        Args:
            dim: width d of the encoder.
            rngs: source of the initial values.
            n_layers: number of blocks of the encoder.
            n_heads: number of attention heads of a block.
        """
        ...


@runtime_checkable
class GatedPairHead(Protocol):
    """A head for two texts in one sequence that attend to each other through gates (an ``nnx.Module``)."""

    @property
    def config(self) -> Any:
        """Its settings, a ``HeadSettings`` that is a ``GatedSettings`` too."""
        ...

    @property
    def gates(self) -> Float[Array, "l h"]:
        """Gates, float32 [l, h] (block, head), added to the logits of attention to the other text."""
        ...

    def __call__(
        self, hidden: Float[Array, "n t d"], context: Bool[Array, "n t"], candidate: Bool[Array, "n t"]
    ) -> Float[Array, " n"]:
        """Token outputs of n pairs, and the masks of both texts -> scores, float32 [n]."""
        ...


@runtime_checkable
class PairHead(Protocol):
    """A head for context and candidate in one sequence (an ``nnx.Module``)."""

    @property
    def config(self) -> Any:
        """Its settings, a ``HeadSettings``."""
        ...

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, " n"]:
        """Token outputs of n pairs -> scores, float32 [n]."""
        ...
