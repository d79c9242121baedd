"""The state of a training, and the trees in which it is saved."""

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
    """What a step changes, and all that it needs besides the batch.

    Attributes:
        trained: parameters that learn (nnx.State).
        frozen: parameters that do not.
        optimizer: state of the optimiser.
        plateau: state of the plateau rule, whose ``scale`` multiplies the learning rate.
        step: steps made so far, int32 [].
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


def trees_of(state: TrainState) -> dict[str, Any]:
    """A state as the trees of a checkpoint: dicts of arrays, which can be read without this package.

    The optimiser's leaves are numbered: their structure is that of the optimiser that the code makes.
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
    """The state that ``trees_of`` made trees of.

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
    """The latest saved state that is whole, and its progress data.

    Args:
        checkpoints: of a run.
        like: a state of the same structure; the arrays are restored to where its arrays are.

    Raises:
        InputError: none is whole.
    """
    saved = checkpoints.restore(trees_of(like))
    return state_of(saved.trees, like), saved.progress
