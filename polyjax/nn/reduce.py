"""Reductions of token outputs to one vector (arXiv 1905.01969 §4.2: first, average or maximum)."""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Reduction = Literal["first", "mean", "max"]


def reduce(
    hidden: Float[Array, "n t d"],
    mask: Bool[Array, "n t"],
    reduction: Reduction,
    *,
    over_padding: bool = False,
) -> Float[Array, "n d"]:
    """Token outputs to one float32 vector a row; padding never counts, an all-padding row gives zeros.

    With ``over_padding`` the sum and the maximum run over padding too, as they do in ParlAI: the result
    then depends on how far a row is padded. It is there for models trained that way.

    >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [reduce(hidden, mask, r).item() for r in ("first", "mean", "max")]
    [1.0, 2.0, 3.0]
    """
    hidden = hidden.astype(jnp.float32)
    real = mask[..., None]
    match reduction:
        case "first":
            vector = hidden[:, 0]
        case "mean":
            real = real | over_padding
            count = jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32)
            vector = jnp.where(real, hidden, 0.0).sum(1) / count
        case "max":
            real = real | over_padding
            # The gradient of max divides by the number of places equal to it, which is none (and the
            # gradient NaN) where a compiler computes them twice with other roundings. Taking the place of
            # the maximum cannot fail, and gives one place the gradient, as torch does.
            place = jnp.where(real, jax.lax.stop_gradient(hidden), -jnp.inf).argmax(1, keepdims=True)
            vector = jnp.take_along_axis(hidden, place, axis=1)[:, 0]
        case _:
            assert_never(reduction)
    return jnp.where(mask.any(-1, keepdims=True) | over_padding, vector, 0.0)


def unit(vector: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale to length 1; a zero vector stays zero and has a finite gradient."""
    return vector * jnp.reciprocal(jnp.sqrt(jnp.maximum(jnp.square(vector).sum(-1, keepdims=True), 1e-24)))
