"""The state of a training, and its form in a checkpoint."""

import dataclasses
import typing
from typing import Any

import jax
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from jaxtyping import Array

from polyjax.runs import Checkpoints, fill_parameters, flat_parameters


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a training: all that a step needs besides the batch.

    Attributes:
        trained: trained parameters (nnx.State).
        frozen: the other parameters.
        optimizer: state of the optimiser.
        plateau: state of the plateau rule, whose ``scale`` multiplies the learning rate.
        step: number of steps made so far, int32 [].
        key: data of the random key from which each step derives its dropout key.
        loss_scale: the dynamic loss scale; None unless the computation is in float16.
    """

    trained: nnx.State
    frozen: nnx.State
    optimizer: optax.OptState
    plateau: optax.contrib.ReduceLROnPlateauState
    step: Array
    key: Array
    loss_scale: DynamicScale | None = None


def trees_of(state: TrainState) -> dict[str, Any]:
    """A state as the trees of a checkpoint: dicts of arrays that can be read without this package.

    The leaves of the optimiser's state are numbered; loading takes their structure from a new optimiser.
    """
    leaves, scale = jax.tree.leaves(state.optimizer), state.loss_scale
    training = {
        "optimizer": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)},
        "plateau": state.plateau._asdict(),
        "step": state.step,
        "key": state.key,
    }
    if scale is not None:
        training["loss_scale"] = {"scale": scale.scale, "fin_steps": scale.fin_steps}
    return {
        "model": {**flat_parameters(state.trained), **flat_parameters(state.frozen)},
        "training": training,
    }


def state_of(trees: dict[str, Any], like: TrainState) -> TrainState:
    """The state from the trees of a checkpoint, the inverse of ``trees_of``.

    Args:
        trees: dicts of arrays.
        like: a state of the same structure.
    """
    model, training = trees["model"], trees["training"]
    structure = jax.tree.structure(like.optimizer)
    scale = like.loss_scale
    return TrainState(
        trained=fill_parameters(like.trained, model),
        frozen=fill_parameters(like.frozen, model),
        optimizer=structure.unflatten(training["optimizer"][f"{i:04d}"] for i in range(structure.num_leaves)),
        plateau=type(like.plateau)(**training["plateau"]),
        step=training["step"],
        key=training["key"],
        loss_scale=None if scale is None else scale.replace(**training["loss_scale"]),
    )


def restore_state(checkpoints: Checkpoints, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The latest saved state that is not damaged, and its progress data.

    Args:
        checkpoints: the checkpoints of a run.
        like: a state of the same structure; its shardings are used.

    Raises:
        InputError: all saved states are damaged.
    """
    saved = checkpoints.restore(trees_of(like))
    return state_of(saved.trees, like), saved.progress
