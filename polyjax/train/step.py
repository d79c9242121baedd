"""One update: scores -> loss -> gradients -> parameters. Pure, and knowing scores and labels only."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from polyjax.losses import cross_entropy, in_batch_where
from polyjax.models import Scorer
from polyjax.types import Batch


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes, and all that it needs besides the batch.

    Attributes:
        trained: parameters that learn (nnx.State).
        frozen: parameters that do not.
        optimizer: state of the optimiser.
        plateau: state of the plateau rule, whose ``scale`` multiplies the learning rate.
        step: updates made so far, int32 [].
        key: from which the dropout of each step is drawn.
    """

    trained: nnx.State
    frozen: nnx.State
    optimizer: optax.OptState
    plateau: optax.contrib.ReduceLROnPlateauState
    step: Array
    key: Array


def init_state(
    scorer: Scorer,
    optimizer: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    trainable: nnx.filterlib.Filter,
    *,
    seed: int,
) -> tuple[nnx.GraphDef, TrainState]:
    """The scorer's graph, and the state before the first update."""
    graph, trained, frozen = nnx.split(scorer, trainable, ...)
    return graph, TrainState(
        trained=trained,
        frozen=frozen,
        optimizer=optimizer.init(trained),
        plateau=typing.cast(optax.contrib.ReduceLROnPlateauState, plateau.init(jnp.zeros((), jnp.float32))),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
    )


def batch_loss(
    scorer: Scorer, batch: Batch, key: Array | None, *, chunk: int = 0
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of a batch (nats), and its figures.

    Args:
        scorer: the model.
        batch: its inputs are of the scorer's kind.
        key: draws the dropout; None for none.
        chunk: contexts to encode at once, see ``polyjax.models.in_chunks``; all where 0.
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


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    chunk: int = 0,
    on_trace: Callable[[], None] = lambda: None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted update. It gives its state's memory away: use the state it returns.

    Args:
        graph: of the scorer.
        optimizer: from ``make_optimizer``.
        chunk: contexts to encode at once, to save memory; all where 0.
        on_trace: called at each new shape, that is once a compilation.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        on_trace()
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def loss_of(trained: nnx.State) -> tuple[Array, dict[str, Array]]:
            return batch_loss(nnx.merge(graph, trained, state.frozen), batch, key, chunk=chunk)

        (_, figures), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counters and float32
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
            updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
            figures["gradient_norm"] = optax.tree.norm(gradients)
            trained = optax.apply_updates(state.trained, updates)
        return dataclasses.replace(
            state, trained=trained, optimizer=optimizer_state, step=state.step + 1
        ), figures

    return jax.jit(train_step, donate_argnums=0)
