"""One training step: loss -> gradients -> parameters. A pure function of the state and a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array

from polyjax.mesh.placement import used
from polyjax.train.state import TrainState

BatchLoss = Callable[[Any, Any, Array | None], tuple[Array, dict[str, Array]]]
"""(model, batch, random key for dropout or None) -> the loss (nats) and the metrics, including the loss."""


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    loss: BatchLoss,
    *,
    shardings: tuple[TrainState, NamedSharding] | None = None,
    on_trace: Callable[[], None] = lambda: None,
) -> jax.stages.Wrapped:
    """The jitted step, (state, batch) -> (state, metrics). It donates the memory of its state.

    The optimiser also gets the loss, as ``value``. With a loss scale, a step whose gradients are not finite
    is skipped: only the scale and the step number change, and the metric ``skipped`` is 1.

    Args:
        graph: graph definition of the model.
        optimizer: the optimiser of the trained parameters.
        loss: the loss of the model on a batch.
        shardings: shardings of the resulting state and of the metrics; None to let XLA choose.
        on_trace: called for each new shape, that is once per compilation.
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
            (value, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        else:
            was = jnp.asarray(scale.scale)
            with jax.numpy_dtype_promotion("standard"):  # flax mixes dtypes here
                scaled = scale.value_and_grad(loss_of, has_aux=True)(state.trained)
            scale, finite, (value, metrics), gradients = scaled
            metrics |= {"loss_scale": was, "skipped": 1.0 - finite.astype(jnp.float32)}
        if shardings is not None:  # with fsdp each device updates, and stores, only its part
            gradients = jax.lax.with_sharding_constraint(gradients, shardings[0].trained)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counters and float32
            updates, optimizer_state = optimizer.update(
                gradients, state.optimizer, state.trained, value=value
            )
            updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
            metrics["gradient_norm"] = optax.tree.norm(gradients)
            trained = optax.apply_updates(state.trained, updates)
        if finite is not None:
            trained, optimizer_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (trained, optimizer_state),
                (state.trained, state.optimizer),
            )
        return dataclasses.replace(
            state, trained=trained, optimizer=optimizer_state, step=state.step + 1, loss_scale=scale
        ), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=shardings)
