"""What the heads share."""

import math

from polyjax.errors import InputError


def check_scale(name: str, value: float) -> None:
    """Raise InputError unless it is a positive number."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"head.{name}", expected="a positive number", got=value)


def check_heads(name: str, n_heads: int, dim: int) -> None:
    """Raise InputError unless so many heads divide the width."""
    if dim % n_heads:
        raise InputError(f"head.{name}", expected=f"a divisor of the encoder's width of {dim}", got=n_heads)
