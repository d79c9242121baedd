"""Checks that several heads share."""

import math

from polyjax.errors import InputError


def check_scale(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is a positive finite number; ``name`` is the setting."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"head.{name}", expected="a positive number", got=value)


def check_heads(name: str, n_heads: int, dim: int) -> None:
    """Raise InputError unless ``n_heads`` divides the width ``dim``; ``name`` is the setting."""
    if dim % n_heads:
        raise InputError(f"head.{name}", expected=f"a divisor of the encoder's width of {dim}", got=n_heads)
