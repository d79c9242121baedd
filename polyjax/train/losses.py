"""Losses: scores and a batch -> one number per context (arXiv 1905.01969 §4.1, and losses for distillation).

A loss is a function of the scores [b, c] and the batch, which has the label, the mask of real candidates and
a teacher's scores. Built-in losses are frozen dataclasses, so that a run can record their settings; any
function with the same signature can be passed. Training on vectors instead of scores needs an objective.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polyjax.errors import InputError, shown
from polyjax.nn.scorers import CrossScorer, Scorer
from polyjax.train.accumulation import accumulated_mean
from polyjax.train.listwise import ListwiseLoss, taught_scores
from polyjax.types import AnyArray, Batch, DualInputs

Loss = Callable[[Float[Array, "b c"], Batch], Float[Array, " b"]]
"""Scores [b, c] and the batch -> the loss of each context, [b]; the loss of a batch is their mean.

A loss whose attribute ``needs_teacher`` is True only gets rows that have a teacher's scores.
"""


def cross_entropy(
    scores: Float[Array, "b c"], label: Int[AnyArray, " b"], where: Bool[AnyArray, "#b c"]
) -> Float[Array, " b"]:
    """Cross-entropy of each context, [b], in nats: -log softmax of the label's score over real candidates.

    Args:
        scores: float32 [b, c].
        label: index of the right candidate, [b]; it must be real.
        where: True for real candidates, [1 or b, c].

    >>> where = jnp.array([[True, True, False, False]])
    >>> round(cross_entropy(jnp.zeros((1, 4)), jnp.array([0]), where).item(), 4)
    0.6931
    """
    masked = jnp.where(where, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.logsumexp(masked, axis=1) - _at(masked, label)


def _at(values: Float[Array, "b c"], label: Int[AnyArray, " b"]) -> Float[Array, " b"]:
    return jnp.take_along_axis(values, jnp.asarray(label)[:, None], axis=1)[:, 0]


def _mean(values: Float[Array, "b c"], where: Bool[AnyArray, "#b c"]) -> Float[Array, " b"]:
    """The mean of each row over entries where ``where`` is True; 0 if no entry is."""
    where = jnp.broadcast_to(jnp.asarray(where), values.shape)
    return jnp.where(where, values, 0.0).sum(1) / jnp.maximum(where.sum(1), 1).astype(values.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxLoss:
    """Cross-entropy of the label among its candidates (§4.1), in nats.

    Attributes:
        label_smoothing: share of the target distribution that is spread evenly over all real candidates,
            including the label.
        both_directions: average with the opposite direction: the cross-entropy of the context among all
            contexts of the batch, given its label. It needs the labels of the batch as candidates.
    """

    label_smoothing: float = 0.0
    both_directions: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if not 0 <= self.label_smoothing < 1:
            raise InputError("loss.label_smoothing", expected="a share in [0, 1)", got=self.label_smoothing)

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """The loss of each context, [b].

        Raises:
            InputError: ``both_directions`` is set, and the candidates are not the labels of the batch.
        """
        forward = self._smoothed(scores, batch.label, batch.where)
        if not self.both_directions:
            return forward
        n = labels_of_rows(batch)
        where = jnp.broadcast_to(jnp.asarray(batch.where), scores.shape)
        return (forward + self._smoothed(scores[:, :n].T, jnp.arange(n), where[:, :n].T)) / 2

    def _smoothed(
        self, scores: Float[Array, "b c"], label: Int[AnyArray, " b"], where: Bool[AnyArray, "#b c"]
    ) -> Float[Array, " b"]:
        entropy = cross_entropy(scores, label, where)
        if not self.label_smoothing:
            return entropy
        # -sum_j log p_j / k = the label's cross-entropy + (its score - the mean score of real candidates).
        evenly = entropy + _at(scores, label) - _mean(scores, where)
        return (1 - self.label_smoothing) * entropy + self.label_smoothing * evenly


def labels_of_rows(batch: Batch) -> int:
    """The number of rows of a batch whose labels are the candidates of all contexts.

    Raises:
        InputError: the batch has other candidates.
    """
    inputs = batch.inputs
    if not (isinstance(inputs, DualInputs) and inputs.shared is not None and inputs.shared.of_rows):
        raise InputError(
            "loss.both_directions",
            expected="the labels of the batch as candidates",
            got=shown("other candidates"),
            fix="set `batch.candidates` to batch",
        )
    return len(inputs.shared.tokens.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryLoss:
    """Binary cross-entropy of each candidate, in nats, averaged over the real candidates of a context.

    It is -pos_weight log sigmoid(s) for the label and -log sigmoid(-s) for the others.

    Attributes:
        pos_weight: weight of the label's term.
    """

    pos_weight: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        _check_positive("pos_weight", self.pos_weight)

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """The loss of each context, [b]."""
        is_label = jnp.asarray(batch.label)[:, None] == jnp.arange(scores.shape[1])[None]
        scores = jnp.where(batch.where, scores, 0.0)
        wrong = jax.nn.softplus(jnp.where(is_label, -scores, scores))
        return _mean(jnp.where(is_label, self.pos_weight * wrong, wrong), batch.where)


@dataclasses.dataclass(frozen=True)
class _FromTeacher:
    """Base of losses that learn from a teacher's scores."""

    needs_teacher: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarginLoss(_FromTeacher):
    """Margin-MSE (arXiv 2010.02666): learn the teacher's margins between the label and the negatives.

    It is the mean of ((s_label - s) - (t_label - t))^2 over the negatives that the teacher scored. Adding a
    constant to all scores of a context does not change it; scaling them does.
    """

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """The loss of each context, [b]; InputError if the batch has no scores of a teacher."""
        taught, where = taught_scores(batch)
        is_label = jnp.asarray(batch.label)[:, None] == jnp.arange(scores.shape[1])[None]
        margin = _at(scores, batch.label)[:, None] - scores
        wanted = _at(taught, batch.label)[:, None] - taught
        return _mean(jnp.square(jnp.where(where, margin - wanted, 0.0)), where & ~is_label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationLoss(_FromTeacher):
    """KL divergence between the teacher's and the student's distribution over scored candidates, in nats.

    With p the softmax of the teacher's scores divided by ``teacher_temperature``, and q the softmax of the
    student's divided by ``temperature``, it is
    temperature * teacher_temperature * sum_j p_j (log p_j - log q_j). The factor keeps the magnitude of
    gradients independent of the temperatures (arXiv 1503.02531 §2).

    Attributes:
        temperature: divides the student's scores.
        teacher_temperature: divides the teacher's scores.
        label_weight: weight of the label's cross-entropy over all candidates, which is added. A teacher only
            scores a row's own candidates; from in-batch negatives the student learns through this term.
    """

    temperature: float = 1.0
    teacher_temperature: float = 1.0
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        _check_positive("temperature", self.temperature)
        _check_positive("teacher_temperature", self.teacher_temperature)
        if not (0 <= self.label_weight < math.inf):
            raise InputError("loss.label_weight", expected="a number of at least 0", got=self.label_weight)

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """The loss of each context, [b]; InputError if the batch has no scores of a teacher."""
        taught, where = taught_scores(batch)
        least = jnp.finfo(scores.dtype).min
        log_q = jax.nn.log_softmax(jnp.where(where, scores / self.temperature, least), axis=1)
        log_p = jax.nn.log_softmax(jnp.where(where, taught / self.teacher_temperature, least), axis=1)
        parts = jnp.where(where, jnp.exp(log_p) * (log_p - log_q), 0.0)
        learnt = self.temperature * self.teacher_temperature * parts.sum(1)
        if not self.label_weight:
            return learnt
        return learnt + self.label_weight * cross_entropy(scores, batch.label, batch.where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitLoss(_FromTeacher):
    """Mean squared difference between scores and the teacher's scores, over the scored candidates."""

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """The loss of each context, [b]; InputError if the batch has no scores of a teacher."""
        taught, where = taught_scores(batch)
        return _mean(jnp.square(jnp.where(where, scores - taught, 0.0)), where)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"loss.{name}", expected="a positive number", got=value)


LossConfig = SoftmaxLoss | BinaryLoss | MarginLoss | DistillationLoss | LogitLoss | ListwiseLoss
"""The built-in losses, which the command line and config.json refer to by name."""

LOSSES: Mapping[str, LossConfig] = {
    "softmax": SoftmaxLoss(),
    "bce": BinaryLoss(),
    "margin-mse": MarginLoss(),
    "kl": DistillationLoss(),
    "mse": LogitLoss(),
    "listmle": ListwiseLoss(kind="listmle"),
    "ranknet": ListwiseLoss(kind="ranknet"),
    "lambda": ListwiseLoss(kind="lambda"),
    "approx-ndcg": ListwiseLoss(kind="approx-ndcg"),
}
"""Losses by name, with their default settings."""


def loss_of(choice: str | Loss) -> Loss:
    """The built-in loss with a name; a function is returned as it is.

    >>> loss_of("kl") == DistillationLoss() and loss_of(DistillationLoss()) == DistillationLoss()
    True

    Raises:
        InputError: no loss has that name, or the choice is neither a name nor a function.
    """
    if isinstance(choice, str):
        if choice not in LOSSES:
            raise InputError("loss", expected=f"one of {', '.join(LOSSES)}, or a function", got=choice)
        return LOSSES[choice]
    if not callable(choice):
        raise InputError("loss", expected=f"one of {', '.join(LOSSES)}, or a function", got=choice)
    return choice


def ranking_loss(
    scorer: Scorer, batch: Batch, key: Array | None, *, chunk: int = 0, loss: Loss = LOSSES["softmax"]
) -> tuple[Array, dict[str, Array]]:
    """Mean loss of a batch, and the metrics ``loss`` and ``accuracy`` (share of labels ranked first).

    Args:
        scorer: the model.
        batch: its inputs must be those of the scorer (``DualInputs`` or ``PairInputs``).
        key: random key for dropout; None for no dropout.
        chunk: number of contexts to encode at a time, see ``polyjax.nn.scorers.in_chunks``; 0 for all. A
            cross-encoder's gradients are added up chunk by chunk instead, where the loss is a built-in one.
        loss: the loss of each context.

    Raises:
        InputError: the result of ``loss`` has another shape than [b].
    """
    if 0 < chunk < len(batch.label) and isinstance(scorer, CrossScorer) and _accumulates(scorer, loss):
        value, accuracy = accumulated_mean(
            functools.partial(_each, loss=loss), scorer, _with_full_mask(batch), key, chunk=chunk
        )
    else:
        losses, right = _each(scorer, batch, key, loss=loss, chunk=chunk)
        value, accuracy = losses.mean(), right.mean()
    return value, {"loss": value, "accuracy": accuracy}


def _accumulates(scorer: CrossScorer, loss: Loss) -> bool:
    """Whether gradients of chunks can be added: the loss of a context depends on its own scores alone.

    A user's own loss may compare contexts. Those of float16 are scaled as a whole, against underflow.
    """
    return type(loss) in typing.get_args(LossConfig) and scorer.settings.encoder.dtype != "float16"


def _with_full_mask(batch: Batch) -> Batch:
    """The batch with one row of ``where`` for each context."""
    where = jnp.asarray(batch.where)
    return dataclasses.replace(batch, where=jnp.broadcast_to(where, (len(batch.label), where.shape[1])))


def _each(
    scorer: Scorer, batch: Batch, key: Array | None, *, loss: Loss, chunk: int = 0
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The loss of each context, and 1 where its label is ranked first, otherwise 0."""
    score = typing.cast(Callable[..., Any], scorer)  # the loader made the inputs of this scorer's kind
    scores = score(batch.inputs, key=key, chunk=chunk).astype(jnp.float32)
    losses = loss(scores, batch)
    if jnp.shape(losses) != scores.shape[:1]:
        raise InputError(
            "loss",
            expected=f"a function that gives one number for each of the {len(scores)} contexts",
            got=shown(f"an array of shape {jnp.shape(losses)}"),
        )
    masked = jnp.where(batch.where, scores, -jnp.inf)
    ahead = (masked >= _at(scores, batch.label)[:, None]).sum(axis=1) - 1  # a tie counts against the label
    return losses, (ahead == 0).astype(jnp.float32)
