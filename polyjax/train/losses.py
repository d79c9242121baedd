"""Cross-entropy of the label against the other candidates (arXiv 1905.01969 §4.1)."""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polyjax.nn.scorers import Scorer
from polyjax.types import AnyArray, Batch


def in_batch_where(keys: Int[AnyArray, " n"], label: Int[AnyArray, " b"]) -> Bool[Array, "b n"]:
    """Which shared candidates are negatives (or the label itself) of each context.

    A candidate with the label's key but another place is a copy of the label, and is left out.

    >>> in_batch_where(jnp.array([7, 8, 7]), jnp.array([0, 1, 2])).tolist()
    [[True, True, False], [True, True, True], [False, True, True]]
    """
    keys = jnp.asarray(keys)
    copy = keys[jnp.asarray(label)][:, None] == keys[None, :]
    own = jnp.asarray(label)[:, None] == jnp.arange(keys.shape[0])[None, :]
    return ~copy | own


def cross_entropy(
    scores: Float[Array, "b c"], label: Int[AnyArray, " b"], where: Bool[AnyArray, "#b c"]
) -> Float[Array, " b"]:
    """-log softmax of the label's score over the real candidates, one number a context, in nats.

    Args:
        scores: float32 [b, c].
        label: index of the right candidate, [b]; it must be real.
        where: True at real candidates, [1 or b, c].

    >>> where = jnp.array([[True, True, False, False]])
    >>> round(cross_entropy(jnp.zeros((1, 4)), jnp.array([0]), where).item(), 4)
    0.6931
    """
    masked = jnp.where(where, scores, jnp.finfo(scores.dtype).min)
    right = jnp.take_along_axis(masked, jnp.asarray(label)[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(masked, axis=1) - right


def ranking_loss(
    scorer: Scorer, batch: Batch, key: Array | None, *, chunk: int = 0
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of a batch (nats), and its figures.

    Args:
        scorer: the model.
        batch: its inputs are of the scorer's kind.
        key: draws the dropout; None for none.
        chunk: contexts to encode at once, see ``polyjax.nn.scorers.in_chunks``; all where 0.
    """
    score = typing.cast(Callable[..., Array], scorer)  # the loader made the inputs of this scorer's kind
    scores = score(batch.inputs, key=key, chunk=chunk).astype(jnp.float32)
    where = jnp.asarray(batch.where)
    if batch.keys is not None:
        where = where & in_batch_where(batch.keys, batch.label)
    loss = cross_entropy(scores, batch.label, where).mean()
    masked = jnp.where(where, scores, -jnp.inf)
    right = jnp.take_along_axis(scores, jnp.asarray(batch.label)[:, None], axis=1)
    ahead = (masked >= right).sum(axis=1) - 1  # the label itself; a tie counts against it
    return loss, {"loss": loss, "accuracy": (ahead == 0).astype(jnp.float32).mean()}
