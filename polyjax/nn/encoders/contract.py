"""The contract of a transformer family, and the settings that all families share."""

import dataclasses
import math
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.activations import Activation
from polyjax.runtime.fields import check_types
from polyjax.types import Tokens

Dtype = Literal["float32", "bfloat16", "float16"]
"""Dtype of an encoder's computation; parameters, scores and losses are float32."""
RematKeeps = Literal["nothing", "products"]


@runtime_checkable
class EncoderSettings(Protocol):
    """Settings of a transformer, a frozen dataclass that builds it.

    Settings may also have ``check_pairs`` (see ``ChecksPairs``), and ``layer_weights``: the number of weights
    in a layer's matrices, from which operations per token are counted (12 d^2 by default).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def dim(self) -> int:
        """Width d of the hidden states."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of transformer layers."""
        ...

    @property
    def n_positions(self) -> int:
        """Maximum length of an input, in tokens."""
        ...

    @property
    def dtype(self) -> Dtype:
        """Dtype of the computation; parameters are float32."""
        ...

    def build(self, *, rngs: nnx.Rngs) -> "TokenEncoder":
        """The transformer, with newly initialised parameters."""
        ...


@runtime_checkable
class ChecksPairs(Protocol):
    """Settings that check whether their encoder can read pairs of texts."""

    def check_pairs(self) -> None:
        """Raise InputError if the encoder cannot distinguish the two texts of a pair."""
        ...


@runtime_checkable
class SharesBlocks(Protocol):
    """Settings of an encoder whose layers share weights."""

    def last_layer(self, block: int) -> int:
        """The last layer, from 0, that uses the weights of a block (``blocks[block]`` of the encoder)."""
        ...


@runtime_checkable
class GatesTexts(Protocol):
    """Settings of an encoder whose packed sequences may attend to each other through gates.

    Its ``__call__`` takes ``gates``, float32 [l, h] (block, head). A gate is added to the attention logits
    from one sequence to another. Positions count from 0 in each sequence.

    Attributes:
        gates_texts: True.
    """

    gates_texts: ClassVar[bool]

    @property
    def n_layers(self) -> int:
        """Number of blocks; each has its own gates."""
        ...

    @property
    def n_heads(self) -> int:
        """Number of attention heads of a block; each has its own gate."""
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """A transformer: tokens in, hidden states out; it treats contexts and candidates alike."""

    @property
    def config(self) -> EncoderSettings:
        """Its settings."""
        ...

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype.

        Args:
            tokens: t is at most n_positions. Padding on either side does not change the states of real
                tokens, and packed sequences do not attend to each other.
            key: random key for dropout; with None the encoder is deterministic.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """Settings that the families have in common; each family adds its own.

    Attributes:
        vocab_size: rows of the token table.
        dim: width d.
        n_layers: number of transformer layers.
        n_heads: attention heads of a block; divides dim.
        mlp_dim: inner width of a block's feed-forward part.
        n_positions: maximum length of an input, in tokens.
        activation: activation of the feed-forward part.
        norm_eps: added to the variance in every layer norm.
        output_scaling: multiplies the hidden states.
        dropout: dropout rate of embeddings and sub-layer outputs in training.
        attention_dropout: dropout rate of attention weights in training.
        dtype: dtype of the computation; parameters and scores stay float32.
        remat: recompute a block in the backward pass instead of keeping its activations. On a CPU it needs
            ``scan`` too: XLA's CPU compiler undoes it for unrolled blocks.
        remat_keeps: what to keep of a recomputed block besides its input: ``nothing``, or the results of its
            matrix ``products``.
        scan: compile one block, or one repeating group of blocks, and loop over it.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    mlp_dim: int
    n_positions: int = 512
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    output_scaling: float = 1.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: Dtype = "float32"
    remat: bool = False
    remat_keeps: RematKeeps = "nothing"
    scan: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        check_stack(self)

    @property
    def table_dim(self) -> int:
        """Width of the token table."""
        return self.dim

    @property
    def n_blocks(self) -> int:
        """Number of blocks that have their own weights."""
        return self.n_layers

    @property
    def layer_weights(self) -> int:
        """Number of weights in a layer's matrices; operations per token are counted from it."""
        return 4 * self.dim**2 + 2 * self.dim * self.mlp_dim

    def check_pairs(self) -> None:
        """Accept pairs: without segments, the separator between two texts tells them apart."""


@runtime_checkable
class StackSettings(Protocol):
    """The settings that building and running a stack of blocks needs, see ``FamilyConfig``."""

    @property
    def dim(self) -> int:
        """Width d."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of transformer layers."""
        ...

    @property
    def n_heads(self) -> int:
        """Attention heads of a block."""
        ...

    @property
    def mlp_dim(self) -> int:
        """Inner width of a block's feed-forward part."""
        ...

    @property
    def n_positions(self) -> int:
        """Maximum length of an input, in tokens."""
        ...

    @property
    def activation(self) -> Activation:
        """Activation of the feed-forward part."""
        ...

    @property
    def norm_eps(self) -> float:
        """Added to the variance in every layer norm."""
        ...

    @property
    def output_scaling(self) -> float:
        """Multiplies the hidden states."""
        ...

    @property
    def dropout(self) -> float:
        """Dropout rate of embeddings and sub-layer outputs."""
        ...

    @property
    def attention_dropout(self) -> float:
        """Dropout rate of attention weights."""
        ...

    @property
    def dtype(self) -> Dtype:
        """Dtype of the computation."""
        ...

    @property
    def remat(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        ...

    @property
    def remat_keeps(self) -> RematKeeps:
        """What is kept of a recomputed block besides its input."""
        ...

    @property
    def scan(self) -> bool:
        """Whether to compile one block (or group) and loop over it."""
        ...


def check_stack(config: StackSettings) -> None:
    """Check the sizes and rates that the families have in common.

    Raises:
        InputError: a size is below 1, the heads do not divide the width, or a rate or factor is out of range.
    """
    check_types(config, "encoder")
    for name in ("vocab_size", "dim", "n_layers", "n_heads", "mlp_dim", "n_positions"):
        if getattr(config, name) < 1:
            raise InputError(f"encoder.{name}", expected="at least 1", got=getattr(config, name))
    if config.dim % config.n_heads:
        divisors = [h for h in range(1, config.dim + 1) if config.dim % h == 0][:12]
        raise InputError(
            "encoder.n_heads",
            expected=f"a divisor of the width of {config.dim}",
            got=config.n_heads,
            fix=f"choose from {divisors}",
        )
    if not 0.0 < abs(config.output_scaling) < math.inf:
        raise InputError("encoder.output_scaling", expected="a finite number", got=config.output_scaling)
    for name in ("dropout", "attention_dropout"):
        if not 0.0 <= getattr(config, name) < 1.0:
            raise InputError(f"encoder.{name}", expected="a rate in [0, 1)", got=getattr(config, name))
