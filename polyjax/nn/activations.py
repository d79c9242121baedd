"""Activation functions by name."""

import math
from typing import Literal, assert_never

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "identity"]


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """GELU, x Phi(x) with the exact normal distribution function Phi, computed in float32.

    It uses erf, because XLA's erfc (used by ``jax.nn.gelu``) is slower on a CPU. In half precision, rounding
    the result of each operation would cost more than the operation itself.

    Args:
        x: float array of any dtype; the result has the same.

    >>> round(gelu(jnp.array([1.0])).item(), 4)
    0.8413
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def activate(name: Activation, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Apply the named activation elementwise; shape and dtype stay the same.

    >>> [round(activate(name, jnp.array([1.0])).item(), 4) for name in ("gelu", "gelu_tanh", "silu")]
    [0.8413, 0.8412, 0.7311]
    """
    match name:
        case "gelu":
            return gelu(x)
        case "gelu_tanh":
            return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)
        case "relu":
            return jax.nn.relu(x)
        case "silu":
            return jax.nn.silu(x)
        case "tanh":
            return jnp.tanh(x)
        case "sigmoid":
            return jax.nn.sigmoid(x)
        case "identity":
            return x
        case _:
            assert_never(name)
