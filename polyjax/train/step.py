"""One update: loss -> gradients -> parameters. Pure, and knowing of a model only what its loss is."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import NamedSharding
from jaxtyping import Array

from polyjax.mesh.placement import used

Loss = Callable[[Any, Any, Array | None], tuple[Array, dict[str, Array]]]
"""(model, batch, key that draws the dropout or None) -> the loss (nats) and its figures, it among them."""


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
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    trainable: nnx.filterlib.Filter,
    *,
    seed: int,
    loss_scale: DynamicScale | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's graph, and the state before the first update.

    Args:
        model: with its initial parameters.
        optimizer: from ``make_optimizer``.
        plateau: from ``plateau``.
        trainable: which parameters learn, from ``trainable_filter``.
        seed: of the dropout.
        loss_scale: from ``make_loss_scale``.
    """
    graph, trained, frozen = nnx.split(model, trainable, ...)
    return graph, TrainState(
        trained=trained,
        frozen=frozen,
        optimizer=optimizer.init(trained),
        plateau=typing.cast(optax.contrib.ReduceLROnPlateauState, plateau.init(jnp.zeros((), jnp.float32))),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        loss_scale=loss_scale,
    )


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    shardings: tuple[TrainState, NamedSharding] | None = None,
    on_trace: Callable[[], None] = lambda: None,
) -> jax.stages.Wrapped:
    """The jitted update, (state, batch) -> (state, figures). It gives its state's memory away.

    With a loss scale, an update whose gradients are not finite is skipped: nothing but the scale and the
    number of the step changes, and the figure ``skipped`` is 1.

    Args:
        graph: of the model.
        optimizer: from ``make_optimizer``.
        loss: of the model on a batch.
        shardings: of the state that comes out, and of its figures; chosen by XLA where None.
        on_trace: called at each new shape, that is once a compilation.
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        on_trace()
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def loss_of(trained: nnx.State) -> tuple[Array, dict[str, Array]]:
            parameters = trained, state.frozen
            if shardings is not None:
                kept = shardings[0].trained, shardings[0].frozen
                parameters = jax.lax.with_sharding_constraint(parameters, used(kept))
            return loss(nnx.merge(graph, *parameters), batch, key)

        scale, finite = state.loss_scale, None
        if scale is None:
            (_, figures), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        else:
            was = jnp.asarray(scale.scale)
            with jax.numpy_dtype_promotion("standard"):  # as flax's arithmetic is
                scaled = scale.value_and_grad(loss_of, has_aux=True)(state.trained)
            scale, finite, (_, figures), gradients = scaled
            figures |= {"loss_scale": was, "skipped": 1.0 - finite.astype(jnp.float32)}
        if shardings is not None:  # each device updates, and so keeps, its part of what fsdp splits
            gradients = jax.lax.with_sharding_constraint(gradients, shardings[0].trained)
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
