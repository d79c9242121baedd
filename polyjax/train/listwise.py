"""Listwise losses from rax (github.com/google/rax, extra ``listwise``)."""

import dataclasses
import functools
import importlib
import importlib.util
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError
from polyjax.types import Batch

Kind = Literal["listmle", "ranknet", "lambda", "approx-ndcg"]
OF_TEACHER = ("listmle", "ranknet")
"""Losses that learn a teacher's order of all candidates; a label alone does not give one."""
TEMPERATURE = 1.0
"""Temperature of the sigmoids that replace steps in approximate ranks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListwiseLoss:
    """A listwise loss of rax.

    Attributes:
        kind: ``listmle`` (Xia et al. 2008) is the negative log-likelihood of the teacher's order. ``ranknet``
            is the mean logistic loss over the pairs that the teacher orders. ``lambda`` (LambdaRank) is the
            logistic loss of the label against each other candidate, weighted by the change of NDCG if the two
            were exchanged. ``approx-ndcg`` (Qin et al. 2010) is minus the NDCG, with ranks approximated by
            sums of sigmoids.
    """

    kind: Kind = "listmle"

    def __post_init__(self) -> None:
        """Raise InputError for an unknown kind."""
        if self.kind not in get_args(Kind):
            raise InputError("loss.kind", expected=f"one of {', '.join(get_args(Kind))}", got=self.kind)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss needs a teacher's scores."""
        return self.kind in OF_TEACHER

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """The loss of each context, [b].

        Raises:
            InputError: rax is not installed, or the loss needs a teacher's scores and the batch has none.
        """
        loss, where = _of_rax(self.kind), jnp.broadcast_to(jnp.asarray(batch.where), scores.shape)
        if self.needs_teacher:
            taught, scored = taught_scores(batch)
            where, relevance = where & scored, taught
        else:
            places = jnp.arange(scores.shape[1])[None]
            relevance = (jnp.asarray(batch.label)[:, None] == places).astype(scores.dtype)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jax.vmap(loss)(scores, relevance, where)


def taught_scores(batch: Batch) -> tuple[Float[Array, "b c"], Bool[Array, "b c"]]:
    """A teacher's scores [b, c], and a mask, True for real candidates with a score.

    Raises:
        InputError: the batch has no scores of a teacher.
    """
    if batch.teacher is None:
        raise InputError(
            "loss",
            problem="it learns from a teacher's scores, and the rows have none",
            fix="give rows `scores`, or choose another loss",
        )
    return jnp.asarray(batch.teacher.scores), jnp.asarray(batch.teacher.where) & jnp.asarray(batch.where)


def _of_rax(kind: Kind) -> Any:
    """(scores [c], relevance [c], where [c]) -> the loss of one context."""
    rax: Any = _rax()
    match kind:
        case "listmle":
            return lambda scores, order, where: rax.listmle_loss(scores, order, where=where)
        case "ranknet":
            return lambda scores, order, where: rax.pairwise_logistic_loss(scores, order, where=where)
        case "lambda":
            return lambda scores, label, where: (
                # rax multiplies the weights by the length of the list, including masked candidates.
                rax.pairwise_logistic_loss(scores, label, where=where, lambdaweight_fn=rax.dcg2_lambdaweight)
                / len(scores)
            )
        case "approx-ndcg":
            # The same as rax.approx_t12n of the metric, which needs parts of jax that were removed.
            ranks = functools.partial(
                rax.utils.approx_ranks, step_fn=lambda x: jax.nn.sigmoid(x / TEMPERATURE)
            )
            return lambda scores, label, where: -rax.ndcg_metric(scores, label, where=where, rank_fn=ranks)


def _rax() -> Any:
    if importlib.util.find_spec("rax") is None:
        raise InputError(
            "loss",
            problem="listwise losses need rax, which is not installed",
            fix="pip install 'polyjax[listwise]', or choose another loss",
        )
    return importlib.import_module("rax")
