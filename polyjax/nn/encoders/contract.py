"""What the rest of the library asks of a transformer family, and what settings of families share."""

from typing import Literal, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from polyjax.types import Tokens

Dtype = Literal["float32", "bfloat16", "float16"]


@runtime_checkable
class EncoderSettings(Protocol):
    """Settings of a transformer, which build it: a frozen dataclass.

    Settings may also have ``check_pairs`` (see ``ChecksPairs``), and ``layer_weights``, the entries of a
    block's matrices, from which speed in operations is counted (12 d^2 where they do not say).
    """

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
