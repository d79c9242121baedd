"""What the rest of the library asks of a transformer family, and what settings of families share."""

import dataclasses
import math
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.activations import Activation
from polyjax.types import Tokens

Dtype = Literal["float32", "bfloat16", "float16"]
"""Of the arithmetic; parameters, scores and losses are float32."""
RematKeeps = Literal["nothing", "products"]


@runtime_checkable
class EncoderSettings(Protocol):
    """Settings of a transformer, which build it: a frozen dataclass.

    Settings may also have ``check_pairs`` (see ``ChecksPairs``), and ``layer_weights``, the entries of a
    block's matrices, from which speed in operations is counted (12 d^2 where they do not say).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def dim(self) -> int:
        """Width d of the hidden states."""
        ...

    @property
    def n_layers(self) -> int:
        """Blocks that tokens go through."""
        ...

    @property
    def n_positions(self) -> int:
        """The longest input, in tokens."""
        ...

    @property
    def dtype(self) -> Dtype:
        """Of the arithmetic; parameters are float32."""
        ...

    def build(self, *, rngs: nnx.Rngs) -> "TokenEncoder":
        """The transformer, with its initial parameters."""
        ...


@runtime_checkable
class ChecksPairs(Protocol):
    """Settings that know whether their encoder can read pairs."""

    def check_pairs(self) -> None:
        """Raise InputError where the two texts of a pair could not be distinguished."""
        ...


@runtime_checkable
class SharesBlocks(Protocol):
    """Settings of an encoder several of whose layers have the same weights."""

    def last_layer(self, block: int) -> int:
        """The last layer, from 0, that a block (``blocks[block]`` of the encoder) is a part of."""
        ...


@runtime_checkable
class GatesTexts(Protocol):
    """Settings of an encoder whose packed sequences may see each other through gates.

    Its call takes ``gates``, float32 [l, h]: what is added to the logits of attention from one sequence to
    another, by block and head. Positions count from 0 in each sequence.

    Attributes:
        gates_texts: True.
    """

    gates_texts: ClassVar[bool]

    @property
    def n_layers(self) -> int:
        """Blocks, each with gates of its own."""
        ...

    @property
    def n_heads(self) -> int:
        """Attention heads of a block, likewise."""
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """A transformer: tokens in, hidden states out. It knows tokens, not their roles."""

    @property
    def config(self) -> EncoderSettings:
        """Its settings."""
        ...

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype.

        Args:
            tokens: t is at most n_positions; padding on either side changes nothing, and packed sequences
                do not see each other.
            key: draws the dropout; without it the encoder is deterministic.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """Shape and arithmetic that the families have in common; each adds what is its own.

    Attributes:
        vocab_size: rows of the token table.
        dim: width d.
        n_layers: transformer blocks.
        n_heads: attention heads of a block; divides dim.
        mlp_dim: inner width of a block's feed-forward part.
        n_positions: the longest input, in tokens.
        activation: of the feed-forward part.
        norm_eps: added to the variance in every layer norm.
        output_scaling: multiplies the hidden states.
        dropout: rate on embeddings and sub-layer outputs while training.
        attention_dropout: rate on attention weights while training.
        dtype: of the arithmetic; parameters stay float32, scores are float32.
        remat: recompute a block in the backward pass instead of keeping its activations. XLA's CPU compiler
            undoes it where the blocks are unrolled; there it takes ``scan`` besides.
        remat_keeps: what of a recomputed block is kept after all: ``nothing`` but its input, or the results
            of its matrix ``products``.
        scan: compile one block, or one group of blocks that repeats, and loop over it.
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
        """Blocks with weights of their own."""
        return self.n_layers

    @property
    def layer_weights(self) -> int:
        """Entries of a block's matrices, which say how much it computes for a token."""
        return 4 * self.dim**2 + 2 * self.dim * self.mlp_dim

    def check_pairs(self) -> None:
        """Raise InputError where the two texts of a pair could not be distinguished."""


@runtime_checkable
class StackSettings(Protocol):
    """What a stack of blocks is made and run with."""

    @property
    def dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def mlp_dim(self) -> int: ...
    @property
    def n_positions(self) -> int: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def output_scaling(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def remat(self) -> bool: ...
    @property
    def remat_keeps(self) -> RematKeeps: ...
    @property
    def scan(self) -> bool: ...


def check_stack(config: StackSettings) -> None:
    """Raise InputError for an invalid shape."""
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
