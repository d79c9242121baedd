"""What can go wrong while training, as an error that says what is kept and what to do."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyjax.errors import OUT_OF_MEMORY, InputError
from polyjax.mesh.processes import losses_named
from polyjax.runs import Checkpoints
from polyjax.train.optim import OptimConfig
from polyjax.train.state import TrainState

LEAST_LOSS_SCALE = 1.0
"""At which an overflow is no fault of the loss's scale."""


@contextlib.contextmanager
def errors_named(checkpoints: Checkpoints, at_once: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Errors of the device and of the other processes as one line that names the way out.

    Args:
        checkpoints: of the run.
        at_once: what is too much where memory is exhausted, and the way out of it.
    """
    try:
        with losses_named("what was saved is kept: start all of them again with the same command"):
            yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        saved = checkpoints.latest_step
        kept = "nothing was saved yet" if saved is None else f"step {saved} is saved"
        what, way_out = at_once()
        raise InputError(
            f"the device's memory does not do for {what} at once ({kept}, no batch was dropped); {way_out}"
        ) from None


@contextlib.contextmanager
def validation_errors_named(checkpoints: Checkpoints) -> Iterator[None]:
    """Memory that is exhausted by a validation, where no smaller chunk helps, as one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        saved = checkpoints.latest_step
        kept = "nothing was saved yet" if saved is None else f"step {saved} is saved"
        raise InputError(
            f"the device's memory does not do for validating ({kept}); the same command goes on with --mesh "
            "over more devices"
        ) from None


def finite_means(
    window: Sequence[dict[str, jax.Array]], step: int, optim: OptimConfig, *, saved: int | None
) -> dict[str, Any]:
    """Means of the figures since the last log; raise InputError if a loss or gradient is not finite.

    With a loss scale, the scale is the last one, the number of skipped updates their sum, and the gradient's
    norm the mean of the others: overflows are expected, until the scale is so low that they cannot be its
    own.
    """
    values = jax.device_get(list(window))
    raise_unless_finite("loss", [float(v["loss"]) for v in values], step, optim, saved=saved)
    norms = [
        0.0 if v.get("skipped") and v["loss_scale"] > LEAST_LOSS_SCALE else float(v["gradient_norm"])
        for v in values
    ]
    raise_unless_finite("gradient's norm", norms, step, optim, saved=saved)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    if "skipped" in means:
        skipped = sum(float(v["skipped"]) for v in values)
        means |= {
            "gradient_norm": sum(norms) / max(len(values) - skipped, 1),
            "loss_scale": float(values[-1]["loss_scale"]),
            "skipped": skipped,
        }
    return means


def check_finite(state: TrainState, step: int, optim: OptimConfig, *, saved: int | None) -> None:
    """Raise InputError if a parameter is not finite: such a state is never saved."""
    if not _all_finite(jax.tree.leaves(state.trained)):
        raise_unless_finite("value of a parameter", [math.nan], step, optim, saved=saved)


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def raise_unless_finite(
    what: str, values: Sequence[float], step: int, optim: OptimConfig, *, saved: int | None
) -> None:
    """Raise InputError naming the first step whose value is not finite; the values end at ``step``."""
    place = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if place is None:
        return
    kept = "nothing was saved" if saved is None else f"the last saved step is {saved}"
    raise InputError(
        f"the {what} became {values[place]} at step {step - len(values) + 1 + place} ({kept}); in another "
        f"--run-dir, try a lower optim.learning_rate than {optim.learning_rate:g}, a lower optim.clip than "
        f"{optim.clip:g}, or float32"
    )
