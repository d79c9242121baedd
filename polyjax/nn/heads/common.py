"""What the heads share."""

import math
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError
from polyjax.nn.reduce import Reduction, reduce


@runtime_checkable
class _Reduced(Protocol):
    @property
    def reduction(self) -> Reduction: ...

    @property
    def over_padding(self) -> bool: ...


def check_scale(name: str, value: float) -> None:
    """Raise InputError unless it is a positive number."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"head.{name}", expected="a positive number", got=value)


def check_heads(name: str, n_heads: int, dim: int) -> None:
    """Raise InputError unless so many heads divide the width."""
    if dim % n_heads:
        raise InputError(f"head.{name}", expected=f"a divisor of the encoder's width of {dim}", got=n_heads)


def reduced(hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"], config: _Reduced) -> Float[Array, "n d"]:
    return reduce(hidden, mask, config.reduction, over_padding=config.over_padding)
