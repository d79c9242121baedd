"""Failures during training, as errors that say what is saved and what to do."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyjax.errors import OUT_OF_MEMORY, InputError
from polyjax.mesh.processes import losses_named
from polyjax.train.optim import OptimConfig
from polyjax.train.state import TrainState

LEAST_LOSS_SCALE = 1.0
"""Above this loss scale, an overflow of gradients may be due to the scale."""
LatestStep = Callable[[], int | None]
"""Returns the last saved step; None if nothing was saved."""


@contextlib.contextmanager
def errors_named(latest_step: LatestStep, too_much: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn exhausted device memory and the loss of another process into errors that say what to do.

    Args:
        latest_step: returns the last saved step of the run.
        too_much: returns what does not fit in memory, and what to do; see ``Objective``.

    Raises:
        InputError: device memory is exhausted, or another process of the run is gone.
    """
    try:
        with losses_named("start all of them again with the same command; what was saved is kept"):
            yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        what, fix = too_much()
        raise out_of_memory(f"{what} per step", latest_step(), "no batch was skipped", fix=fix) from None


@contextlib.contextmanager
def validation_errors_named(latest_step: LatestStep) -> Iterator[None]:
    """Turn device memory exhausted by a validation into an error; there a smaller chunk does not help.

    Raises:
        InputError: device memory is exhausted.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise out_of_memory(
            "the validation", latest_step(), fix="resume with a `mesh` of more devices"
        ) from None


def out_of_memory(what: str, saved: int | None, *more: str, fix: str) -> InputError:
    """The error for exhausted device memory.

    Args:
        what: what did not fit.
        saved: the last saved step; None if nothing was saved.
        more: further facts about what is kept.
        fix: what to do.
    """
    kept = "; ".join(["nothing was saved yet" if saved is None else f"step {saved} is saved", *more])
    return InputError("device memory", problem=f"exhausted with {what} ({kept})", fix=fix, is_argument=False)


class FiniteChecks:
    """Checks that losses, gradients and parameters are finite, so that no other state is saved.

    Args:
        optim: settings whose learning rate and clipping the error mentions.
        own_optimizer: whether the caller passed an optimiser, so that ``optim`` does not apply.
        latest_step: returns the last saved step of the run.
    """

    def __init__(self, optim: OptimConfig, *, own_optimizer: bool, latest_step: LatestStep):
        self._latest_step = latest_step
        lower = (
            "a lower learning rate in `optimizer`"
            if own_optimizer
            else f"a lower `optim.learning_rate` than {optim.learning_rate:g}, "
            f"a lower `optim.clip` than {optim.clip:g}"
        )
        self._argument = "optimizer" if own_optimizer else "optim.learning_rate"
        self._fix = f"in another `run_dir`, try {lower}, or float32"

    def means(self, window: Sequence[dict[str, jax.Array]], step: int) -> dict[str, Any]:
        """Means of the metrics over a window of steps; the last one is ``step``.

        With a loss scale, overflows are expected until the scale is low enough. Then ``loss_scale`` is the
        last scale, ``skipped`` the number of skipped steps, and ``gradient_norm`` the mean over the others.

        Raises:
            InputError: a loss or the norm of a gradient is not finite.
        """
        values = jax.device_get(list(window))
        self.check("loss", [float(v["loss"]) for v in values], step)
        norms = [
            0.0 if v.get("skipped") and v["loss_scale"] > LEAST_LOSS_SCALE else float(v["gradient_norm"])
            for v in values
        ]
        self.check("gradient's norm", norms, step)
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        if "skipped" in means:
            skipped = sum(float(v["skipped"]) for v in values)
            means |= {
                "gradient_norm": sum(norms) / max(len(values) - skipped, 1),
                "loss_scale": float(values[-1]["loss_scale"]),
                "skipped": skipped,
            }
        return means

    def parameters(self, state: TrainState, step: int) -> None:
        """Check all trained parameters.

        Raises:
            InputError: one is not finite.
        """
        if not _all_finite(jax.tree.leaves(state.trained)):
            self.check("value of a parameter", [math.nan], step)

    def check(self, what: str, values: Sequence[float], step: int) -> None:
        """Check values of consecutive steps; the last one is that of ``step``.

        Raises:
            InputError: a value is not finite; the message names the first such step.
        """
        place = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if place is None:
            return
        saved = self._latest_step()
        kept = "nothing was saved" if saved is None else f"the last saved step is {saved}"
        at = step - len(values) + 1 + place
        problem = f"the {what} became {values[place]} at step {at} ({kept})"
        raise InputError(self._argument, problem=problem, fix=self._fix)


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
