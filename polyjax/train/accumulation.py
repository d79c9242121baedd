"""Gradients of a mean over rows, added up chunk by chunk: one forward and one backward pass for each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from polyjax.nn.scorers import split_rows

Each = Callable[[Any, Any, Array | None], tuple[Array, Array]]
"""(model, rows, random key or None) -> for each row what is differentiated, and a metric: two arrays [n]."""


def _is_differentiated(path: Any, value: Any) -> bool:
    return isinstance(value, nnx.Param) and jnp.issubdtype(value.dtype, jnp.inexact)


def accumulated_mean(
    each: Each, model: nnx.Module, rows: Any, key: Array | None, *, chunk: int
) -> tuple[Array, Array]:
    """The means over all rows of what ``each`` gives; memory holds the activations of one chunk.

    Cached gradients (``polyjax.nn.scorers.in_chunks``) encode every chunk twice, because a loss may compare
    rows. Here the gradients of a chunk are computed with its value, and only multiplied afterwards.

    Args:
        each: of a chunk's rows; those of a row depend on no other row.
        model: its parameters are differentiated.
        rows: arrays whose first axis is n.
        key: random key for dropout; None for no dropout.
        chunk: number of rows in a chunk.
    """
    graph, parameters, rest = nnx.split(model, _is_differentiated, ...)
    n = jax.tree.leaves(rows)[0].shape[0]
    chunks, keys = split_rows(rows, key, chunk)
    pieces = jax.tree.leaves(chunks)[0].shape[0]
    # Copies that fill the last chunk do not count.
    weights = (jnp.arange(pieces * chunk) < n).reshape(chunk, pieces).T.astype(jnp.float32)

    def of_part(parameters: Any, rest: Any, part: Any) -> tuple[Array, Array]:
        own, key, weight = part
        values, metrics = each(nnx.merge(graph, parameters, rest), own, key)
        return (values * weight).sum(), (metrics * weight).sum()

    @jax.custom_vjp
    def total(parameters: Any, rest: Any, parts: Any) -> tuple[Array, Array]:
        values, metrics = jax.lax.map(lambda part: of_part(parameters, rest, part), parts)
        return values.sum() / n, metrics.sum() / n

    def forward(parameters: Any, rest: Any, parts: Any) -> tuple[tuple[Array, Array], Any]:
        def add(so_far: Any, part: Any) -> tuple[Any, None]:
            found = jax.value_and_grad(of_part, has_aux=True)(parameters, rest, part)
            return jax.tree.map(jnp.add, so_far, found), None

        zero = jnp.zeros(())
        start = (zero, zero), jax.tree.map(jnp.zeros_like, parameters)
        ((value, metric), gradients), _ = jax.lax.scan(add, start, parts)
        return (value / n, metric / n), gradients

    def backward(gradients: Any, cotangents: tuple[Array, Array]) -> tuple[Any, None, None]:
        return jax.tree.map(lambda g: g * (cotangents[0] / n), gradients), None, None

    total.defvjp(forward, backward)
    return total(parameters, rest, (chunks, keys, weights))
