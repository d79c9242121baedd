"""ParlAI's warm-up of the learning rate."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from polyjax.config import part
from polyjax.errors import InputError
from polyjax.train.optim import OptimConfig, make_optimizer, schedule

FIRST = 1e-4
"""Learning rate at the first step, as a fraction of the full rate."""


@part("parlai-warmup", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ParlaiWarmup:
    """The configured optimiser with ParlAI's warm-up, for ``fit(optimizer=)``.

    The rate grows linearly from ``FIRST`` times the full rate. As in ParlAI, it stops one step before the
    full rate and stays there.

    >>> rate = ParlaiWarmup(steps=4).schedule(OptimConfig(learning_rate=1.0, warmup=0.0, decay="none"), 10)
    >>> [round(float(rate(i)), 4) for i in (0, 1, 3, 9)]
    [0.0001, 0.2501, 0.75, 0.75]

    Attributes:
        steps: length of the warm-up, in optimiser steps.
    """

    steps: int

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.steps < 1:
            raise InputError("optimizer.steps", expected="at least 1", got=self.steps)

    def schedule(self, optim: OptimConfig, n_steps: int) -> optax.Schedule:
        """The learning rate as a function of the step (from 0).

        Raises:
            InputError: ``optim`` sets a warm-up too.
        """
        for name in ("warmup", "warmup_steps"):
            if getattr(optim, name) not in (0, getattr(OptimConfig(), name)):
                raise InputError(
                    f"optim.{name}",
                    problem=f"does nothing with ParlAI's warm-up of {self.steps} steps",
                    fix="leave it out",
                )

        def warm(step: jax.Array) -> jax.Array:
            done = jnp.minimum(step, self.steps - 1.0) / self.steps
            return FIRST + (1.0 - FIRST) * done

        return schedule(optim, n_steps, warm=warm)

    def __call__(self, optim: OptimConfig, n_steps: int) -> optax.GradientTransformation:
        """The optimiser for a training of ``n_steps`` steps.

        Raises:
            InputError: ``optim`` sets a warm-up too.
        """
        return make_optimizer(optim, n_steps, rate=self.schedule(optim, n_steps))
