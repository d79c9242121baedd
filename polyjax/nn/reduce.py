"""Reductions of token outputs to one vector (arXiv 1905.01969 §4.2: first, average, maximum; and others)."""

from typing import Literal, Protocol, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Reduction = Literal["first", "mean", "max", "mean_sqrt", "weighted_mean", "last"]
"""``mean_sqrt`` divides the sum by the count's root; ``weighted_mean`` weighs each token by its place."""


@runtime_checkable
class Reducer(Protocol):
    """A reduction that is an object: a frozen dataclass with a name and a version (``polyjax.part``).

    A card that records one is read by the package that knows it, see ``polyjax.config.Foreign``.
    """

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs to one float32 vector a row."""
        ...


def reduce(
    hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"], reduction: Reduction | Reducer
) -> Float[Array, "n d"]:
    """Token outputs to one float32 vector a row.

    Of the reductions that have a name padding never counts, and a row that is all padding gives zeros.

    >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [reduce(hidden, mask, r).item() for r in ("first", "mean", "max", "last")]
    [1.0, 2.0, 3.0, 3.0]
    >>> [round(reduce(hidden, mask, r).item(), 3) for r in ("mean_sqrt", "weighted_mean")]
    [2.828, 2.333]
    """
    if not isinstance(reduction, str):
        return reduction(hidden, mask)
    hidden = hidden.astype(jnp.float32)
    real = mask[..., None]
    match reduction:
        case "first":
            vector = _at(hidden, mask.argmax(1))
        case "last":
            vector = _at(hidden, hidden.shape[1] - 1 - mask[:, ::-1].argmax(1))
        case "mean":
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
            vector = largest(hidden, real)
        case _:
            assert_never(reduction)
    return jnp.where(mask.any(-1, keepdims=True), vector, 0.0)


def largest(hidden: Float[Array, "n t d"], where: Bool[Array, "#n #t 1"]) -> Float[Array, "n d"]:
    """The largest value of each unit among the tokens of ``where``; the gradient goes to one place."""
    # The gradient of max divides by the number of places equal to it, which is 0 (and the gradient NaN)
    # where a compiler computes them twice with other roundings. Taking the place of the maximum cannot fail,
    # and gives one place the gradient, as torch does.
    place = jnp.where(where, jax.lax.stop_gradient(hidden), -jnp.inf).argmax(1, keepdims=True)
    return jnp.take_along_axis(hidden, place, axis=1)[:, 0]


def _at(hidden: Float[Array, "n t d"], place: Int[Array, " n"]) -> Float[Array, "n d"]:
    """The output of one token of each row."""
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


def unit(vector: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale to length 1; a zero vector stays zero and has a finite gradient."""
    return vector * jnp.reciprocal(jnp.sqrt(jnp.maximum(jnp.square(vector).sum(-1, keepdims=True), 1e-24)))
