"""Reductions of token outputs to one vector (arXiv 1905.01969 §4.2: first, average, maximum; and others)."""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Reduction = Literal["first", "mean", "max", "mean_sqrt", "weighted_mean", "last"]
"""``mean_sqrt`` divides the sum by the count's root; ``weighted_mean`` weighs each token by its place."""


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
    >>> [reduce(hidden, mask, r).item() for r in ("first", "mean", "max", "last")]
    [1.0, 2.0, 3.0, 3.0]
    >>> [round(reduce(hidden, mask, r).item(), 3) for r in ("mean_sqrt", "weighted_mean")]
    [2.828, 2.333]
    """
    hidden = hidden.astype(jnp.float32)
    real = mask[..., None]
    match reduction:
        case "first":
            vector = _at(hidden, mask.argmax(1))
        case "last":
            vector = _at(hidden, hidden.shape[1] - 1 - mask[:, ::-1].argmax(1))
        case "mean":
            real = real | over_padding
            count = jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32)
            vector = jnp.where(real, hidden, 0.0).sum(1) / count
        case "mean_sqrt":
            count = jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32)
            vector = jnp.where(real, hidden, 0.0).sum(1) / jnp.sqrt(count)
        case "weighted_mean":
            weights = jnp.where(mask, jnp.arange(1, hidden.shape[1] + 1, dtype=jnp.float32)[None], 0.0)
            total = jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
            vector = (jnp.where(real, hidden, 0.0) * weights[..., None]).sum(1) / total
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


def _at(hidden: Float[Array, "n t d"], place: Int[Array, " n"]) -> Float[Array, "n d"]:
    """The output of one token of each row."""
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


def unit(vector: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale to length 1; a zero vector stays zero and has a finite gradient."""
    return vector * jnp.reciprocal(jnp.sqrt(jnp.maximum(jnp.square(vector).sum(-1, keepdims=True), 1e-24)))
