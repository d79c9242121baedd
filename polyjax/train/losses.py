"""Losses: scores and a batch -> one number a context (arXiv 1905.01969 §4.1, and what teaches from scores).

A loss is a function of the scores [b, c] and of the batch: where the label and the negatives are, and what a
teacher scored. Those of the library are frozen dataclasses, so that a run can record their settings; any
function of the same form can be passed. What needs vectors instead of scores is an objective, not a loss.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polyjax.errors import InputError, shown
from polyjax.nn.scorers import Scorer
from polyjax.train.listwise import ListwiseLoss, taught_scores
from polyjax.types import AnyArray, Batch, DualInputs

Loss = Callable[[Float[Array, "b c"], Batch], Float[Array, " b"]]
"""Scores [b, c] and the batch -> one number for each context, [b]; a batch's loss is their mean.

A loss that has ``needs_teacher`` set to True gets rows with a teacher's scores only.
"""


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
    return jax.nn.logsumexp(masked, axis=1) - _at(masked, label)


def _at(values: Float[Array, "b c"], label: Int[AnyArray, " b"]) -> Float[Array, " b"]:
    return jnp.take_along_axis(values, jnp.asarray(label)[:, None], axis=1)[:, 0]


def _mean(values: Float[Array, "b c"], where: Bool[AnyArray, "#b c"]) -> Float[Array, " b"]:
    """The mean over the places that count; 0 if no place counts."""
    where = jnp.broadcast_to(jnp.asarray(where), values.shape)
    return jnp.where(where, values, 0.0).sum(1) / jnp.maximum(where.sum(1), 1).astype(values.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxLoss:
    """Cross-entropy of the label among its candidates (§4.1), in nats.

    Attributes:
        label_smoothing: share of the target that all real candidates have evenly, the label among them.
        both_directions: the mean of that and of the context's cross-entropy among the batch's contexts for
            its label; it needs the labels of the batch as candidates.
    """

    label_smoothing: float = 0.0
    both_directions: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if not 0 <= self.label_smoothing < 1:
            raise InputError("loss.label_smoothing", expected="a share in [0, 1)", got=self.label_smoothing)

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """One number for each context, [b]."""
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
        # -sum_j log p_j / k = the label's cross-entropy + (its score - the mean score of the real ones).
        evenly = entropy + _at(scores, label) - _mean(scores, where)
        return (1 - self.label_smoothing) * entropy + self.label_smoothing * evenly


def labels_of_rows(batch: Batch) -> int:
    """How many rows a batch has whose labels are all contexts' candidates.

    Raises:
        InputError: the candidates are others.
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
    """Binary cross-entropy of every candidate for itself, in nats; the mean over a context's candidates.

    -pos_weight log sigmoid(s) of the label, -log sigmoid(-s) of the others.

    Attributes:
        pos_weight: factor of the label's part.
    """

    pos_weight: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        _check_positive("pos_weight", self.pos_weight)

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """One number for each context, [b]."""
        is_label = jnp.asarray(batch.label)[:, None] == jnp.arange(scores.shape[1])[None]
        scores = jnp.where(batch.where, scores, 0.0)
        wrong = jax.nn.softplus(jnp.where(is_label, -scores, scores))
        return _mean(jnp.where(is_label, self.pos_weight * wrong, wrong), batch.where)


@dataclasses.dataclass(frozen=True)
class _FromTeacher:
    """What losses that learn a teacher's scores have in common."""

    needs_teacher: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarginLoss(_FromTeacher):
    """Margin-MSE (arXiv 2010.02666): the teacher's distances between the label and its negatives.

    The mean over the scored negatives of ((s_label - s) - (t_label - t))^2; scores may be shifted, but not
    scaled.
    """

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """One number for each context, [b]."""
        taught, where = taught_scores(batch)
        is_label = jnp.asarray(batch.label)[:, None] == jnp.arange(scores.shape[1])[None]
        margin = _at(scores, batch.label)[:, None] - scores
        wanted = _at(taught, batch.label)[:, None] - taught
        return _mean(jnp.square(jnp.where(where, margin - wanted, 0.0)), where & ~is_label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationLoss(_FromTeacher):
    """KL divergence of the student's distribution over the scored candidates from the teacher's, in nats.

    With p the softmax of the teacher's scores over their temperature, and q the student's over its own:
    temperature * teacher_temperature * sum_j p_j (log p_j - log q_j). The factor keeps the size of gradients
    (arXiv 1503.02531 §2).

    Attributes:
        temperature: by which the student's scores are divided.
        teacher_temperature: by which the teacher's are.
        label_weight: of the label's cross-entropy among all candidates, which is added: a teacher scores a
            row's own negatives only, and among those of the batch the student learns from the labels.
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
        """One number for each context, [b]."""
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
    """Mean squared difference between the scores and the teacher's, over the scored candidates."""

    def __call__(self, scores: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
        """One number for each context, [b]."""
        taught, where = taught_scores(batch)
        return _mean(jnp.square(jnp.where(where, scores - taught, 0.0)), where)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"loss.{name}", expected="a positive number", got=value)


LossConfig = SoftmaxLoss | BinaryLoss | MarginLoss | DistillationLoss | LogitLoss | ListwiseLoss
"""The library's own losses, which the command line and config.json know by name."""

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
    """The loss of a name, or the one that is passed.

    >>> loss_of("kl") == DistillationLoss() and loss_of(DistillationLoss()) == DistillationLoss()
    True

    Raises:
        InputError: no loss has that name.
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
    """Mean loss of a batch, and its metrics.

    Args:
        scorer: the model.
        batch: its inputs are of the scorer's kind.
        key: draws the dropout; None for none.
        chunk: contexts to encode at once, see ``polyjax.nn.scorers.in_chunks``; all where 0.
        loss: of the scores.
    """
    score = typing.cast(Callable[..., Any], scorer)  # the loader made the inputs of this scorer's kind
    scores = score(batch.inputs, key=key, chunk=chunk).astype(jnp.float32)
    losses = loss(scores, batch)
    if jnp.shape(losses) != scores.shape[:1]:
        raise InputError(
            "loss",
            expected=f"a function that gives one number for each of the {len(scores)} contexts",
            got=shown(f"an array of shape {jnp.shape(losses)}"),
        )
    value = losses.mean()
    masked = jnp.where(batch.where, scores, -jnp.inf)
    ahead = (masked >= _at(scores, batch.label)[:, None]).sum(axis=1) - 1  # a tie counts against the label
    return value, {"loss": value, "accuracy": (ahead == 0).astype(jnp.float32).mean()}
