"""Reductions of token outputs to one vector: those of arXiv 1905.01969 §4.2 (first, mean, max) and others."""

from typing import Literal, Protocol, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Reduction = Literal["first", "mean", "max", "mean_sqrt", "weighted_mean", "last"]
"""How to reduce token outputs to one vector; padding never counts.

``first`` and ``last`` take the output of one token, ``mean`` and ``max`` those of all. ``mean_sqrt`` divides
the sum by the square root of the number of tokens. ``weighted_mean`` weights each token by its position
(from 1).
"""


@runtime_checkable
class Reducer(Protocol):
    """A reduction that is an object: a frozen dataclass with a name and a version (``polyjax.part``).

    A model card that records one can only be read if its class is known, see ``polyjax.config.Foreign``.
    """

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs [n, t, d] and mask [n, t] -> one float32 vector a row [n, d]."""
        ...


def reduce(
    hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"], reduction: Reduction | Reducer
) -> Float[Array, "n d"]:
    """Reduce token outputs to one float32 vector a row, [n, t, d] -> [n, d].

    The named reductions ignore padding, and give zeros for a row that is all padding.

    Args:
        hidden: token outputs.
        mask: True where a token is real.
        reduction: a name, or your own reduction.

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
    """The largest value of each unit among the tokens in ``where``, [n, t, d] -> [n, d].

    The gradient flows to one token, even if several have the same value.
    """
    # The gradient of jnp.max divides by the number of elements equal to the maximum. If the compiler computes
    # the elements twice with different rounding, that number can be 0 and the gradient NaN. Indexing with
    # argmax avoids this, and sends the gradient to one element, as torch does.
    place = jnp.where(where, jax.lax.stop_gradient(hidden), -jnp.inf).argmax(1, keepdims=True)
    return jnp.take_along_axis(hidden, place, axis=1)[:, 0]


def _at(hidden: Float[Array, "n t d"], place: Int[Array, " n"]) -> Float[Array, "n d"]:
    """The output of one token in each row."""
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


def unit(vector: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale vectors to length 1; a zero vector stays zero and its gradient is finite."""
    return vector * jnp.reciprocal(jnp.sqrt(jnp.maximum(jnp.square(vector).sum(-1, keepdims=True), 1e-24)))
