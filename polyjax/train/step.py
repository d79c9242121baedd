"""One update: scores -> loss -> gradients -> parameters. Pure, and knowing scores and labels only."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import NamedSharding
from jaxtyping import Array

from polyjax.losses import cross_entropy, in_batch_where
from polyjax.models import Scorer
from polyjax.train.sharding import used
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
        loss_scale: what the loss is multiplied with, and what changes it; None outside float16.
    """

    trained: nnx.State
    frozen: nnx.State
    optimizer: optax.OptState
    plateau: optax.contrib.ReduceLROnPlateauState
    step: Array
    key: Array
    loss_scale: DynamicScale | None = None


def init_state(
    scorer: Scorer,
    optimizer: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    trainable: nnx.filterlib.Filter,
    *,
    seed: int,
    loss_scale: DynamicScale | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """The scorer's graph, and the state before the first update.

    Args:
        scorer: with its initial parameters.
        optimizer: from ``make_optimizer``.
        plateau: from ``plateau``.
        trainable: which parameters learn, from ``trainable_filter``.
        seed: of the dropout.
        loss_scale: from ``make_loss_scale``.
    """
    graph, trained, frozen = nnx.split(scorer, trainable, ...)
    return graph, TrainState(
        trained=trained,
        frozen=frozen,
        optimizer=optimizer.init(trained),
        plateau=typing.cast(optax.contrib.ReduceLROnPlateauState, plateau.init(jnp.zeros((), jnp.float32))),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        loss_scale=loss_scale,
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
    shardings: tuple[TrainState, NamedSharding] | None = None,
    on_trace: Callable[[], None] = lambda: None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted update. It gives its state's memory away: use the state it returns.

    With a loss scale, an update whose gradients are not finite is skipped: nothing but the scale and the
    number of the step changes, and the figure ``skipped`` is 1.

    Args:
        graph: of the scorer.
        optimizer: from ``make_optimizer``.
        chunk: contexts to encode at once, to save memory; all where 0.
        shardings: of the state that comes out, and of its figures; chosen by XLA where None.
        on_trace: called at each new shape, that is once a compilation.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        on_trace()
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def loss_of(trained: nnx.State) -> tuple[Array, dict[str, Array]]:
            parameters = trained, state.frozen
            if shardings is not None:
                kept = shardings[0].trained, shardings[0].frozen
                parameters = jax.lax.with_sharding_constraint(parameters, used(kept))
            return batch_loss(nnx.merge(graph, *parameters), batch, key, chunk=chunk)

        scale, finite = state.loss_scale, None
        if scale is None:
            (_, figures), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        else:
            was = jnp.asarray(scale.scale)
            with jax.numpy_dtype_promotion("standard"):  # as flax's arithmetic is
                scaled = scale.value_and_grad(loss_of, has_aux=True)(state.trained)
            scale, finite, (_, figures), gradients = scaled
            figures |= {"loss_scale": was, "skipped": 1.0 - finite.astype(jnp.float32)}
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counters and float32
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
            updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
            figures["gradient_norm"] = optax.tree.norm(gradients)
            trained = optax.apply_updates(state.trained, updates)
        if finite is not None:
            trained, optimizer_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (trained, optimizer_state),
                (state.trained, state.optimizer),
            )
        return dataclasses.replace(
            state, trained=trained, optimizer=optimizer_state, step=state.step + 1, loss_scale=scale
        ), figures

    return jax.jit(train_step, donate_argnums=0, out_shardings=shardings)
