"""The trainer: sets up the trained parameters, optimiser, devices and step of a training."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from polyjax.errors import InputError
from polyjax.mesh.placement import everywhere, one_device, placed, placed_shapes, shardings_of
from polyjax.nn.encoders import EncoderSettings
from polyjax.runs import Checkpoints
from polyjax.runtime.forks import refuse_forked
from polyjax.train.config import TrainConfig, steps_of
from polyjax.train.objective import Objective
from polyjax.train.optim import (
    OptimConfig,
    TellsSchedule,
    Trainable,
    logged_rate,
    make_loss_scale,
    make_optimizer,
    plateau,
    schedule,
    steps_counted,
    trainable_filter,
)
from polyjax.train.state import TrainState, state_of, trees_of
from polyjax.train.step import BatchLoss, make_train_step

Optimizer = optax.GradientTransformation | Callable[[OptimConfig, int], optax.GradientTransformation]
"""An optax optimiser, or a function (settings, total number of steps) -> optimiser."""


class Trainer:
    """A model in training: its state, optimiser, plateau rule, loss scale, shardings and step.

    >>> from polyjax.nn.encoders import EncoderConfig
    >>> from polyjax.nn.linear import Linear  # any module, and any loss of it
    >>> model, ones = Linear(2, 1, rngs=nnx.Rngs(0)), jnp.ones((1, 2))
    >>> def loss(model, batch, key):
    ...     error = (model(batch) - 1.0).sum() ** 2
    ...     return error, {"loss": error}
    >>> shape = EncoderConfig(vocab_size=1, dim=2, n_layers=1, n_heads=1, mlp_dim=2, n_positions=1)
    >>> trainer = Trainer(model, loss, encoder=shape, n_steps=50, optimizer=optax.sgd(0.1))
    >>> losses = [float(trainer.step(ones)["loss"]) for _ in range(50)]
    >>> losses[0] > 0.01 and losses[-1] < 1e-6
    True

    Args:
        model: the model with its initial parameters, which are copied; or shapes only (from ``shapes_of`` or
            ``nnx.eval_shape``), to compile a step without allocating memory.
        loss: the loss of the model on a batch.
        encoder: settings of its transformer: number of layers (for ``trainable``) and dtype.
        n_steps: total number of steps, for the schedule.
        optim: optimiser, schedule, plateau rule and loss scale.
        trainable: see ``TrainConfig``.
        seed: seed of the dropout.
        mesh: devices that share the work, from ``make_mesh``; None for one device.
        optimizer: replaces the optimiser and schedule of ``optim``. Its state is saved and restored with the
            model. Of ``optim``, the plateau rule (which multiplies the updates) and the loss scale still
            apply.

    Raises:
        InputError: nothing would be trained, or a parameter cannot be split over the mesh.

    Attributes:
        state: the state before the next step; shapes if the model has shapes only.
        shardings: shardings of the state.
        update: the step as a pure, jitted function (state, batch) -> (state, metrics); it donates the memory
            of the state.
        graph: graph definition of the model.
        mesh: the devices.
        optim: the settings.
        own_optimizer: whether ``optimizer`` replaces the optimiser of ``optim``, not only its schedule.
        compilations: number of programs compiled for the step.
    """

    def __init__(
        self,
        model: nnx.Module,
        loss: BatchLoss,
        *,
        encoder: EncoderSettings,
        n_steps: int,
        optim: OptimConfig = OptimConfig(),  # noqa: B008  # frozen
        trainable: Trainable = "all",
        seed: int = 0,
        mesh: Mesh | None = None,
        optimizer: Optimizer | None = None,
    ):
        refuse_forked()
        self.mesh, self.optim = mesh or one_device(), optim
        told = isinstance(optimizer, TellsSchedule)
        self.own_optimizer = optimizer is not None and not told
        self._schedule = (optimizer.schedule if told else schedule)(optim, n_steps)
        rule, self._plateau = _rule(optimizer, optim, n_steps), plateau(optim)
        self.graph, trained, frozen = nnx.split(model, trainable_filter(trainable, encoder), ...)
        if not jax.tree.leaves(trained):
            raise InputError(
                "train.trainable",
                problem="nothing would be trained, as the head of this architecture has no parameters",
                got=trainable,
                fix="train at least one layer",
            )

        def begin(trained: nnx.State, frozen: nnx.State) -> TrainState:
            return TrainState(
                trained=trained,
                frozen=frozen,
                optimizer=jax.tree.map(_as_array, rule.init(trained)),
                plateau=typing.cast(
                    optax.contrib.ReduceLROnPlateauState, self._plateau.init(jnp.zeros((), jnp.float32))
                ),
                step=jnp.zeros((), jnp.int32),
                key=jax.random.key_data(jax.random.key(seed)),
                loss_scale=make_loss_scale(optim, encoder.dtype),
            )

        shapes = jax.eval_shape(begin, trained, frozen)
        self.shardings = _shardings(shapes, self.mesh)
        is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(trained))
        self.state = (
            placed_shapes(shapes, self.shardings)
            if is_abstract
            else placed(begin(trained, frozen), self.shardings)
        )
        self.compilations = 0
        self.update = make_train_step(
            self.graph,
            rule,
            loss,
            shardings=(self.shardings, everywhere(self.mesh)),
            on_trace=self._traced,
        )

    @classmethod
    def of(
        cls,
        objective: Objective,
        *,
        optim: OptimConfig,
        config: TrainConfig,
        optimizer: Optimizer | None = None,
        shapes_only: bool = False,
    ) -> "Trainer":
        """A trainer of an objective's model and loss.

        Args:
            objective: the model, its loss and its mesh.
            optim: as for the class.
            config: number of steps, trained parameters, seed.
            optimizer: as for the class.
            shapes_only: hold only the shapes of the state, without allocating it.

        Raises:
            InputError: as for the class.
        """
        model = objective.model
        return cls(
            shapes_of(model) if shapes_only else model,
            objective.loss,
            encoder=objective.encoder,
            n_steps=steps_of(config, objective.batch_size, objective.n_examples)[0],
            optim=optim,
            trainable=config.trainable,
            seed=config.seed,
            mesh=objective.mesh,
            optimizer=optimizer,
        )

    def _traced(self) -> None:
        self.compilations += 1

    def step(self, batch: Any) -> dict[str, jax.Array]:
        """Make a step and return its metrics.

        Args:
            batch: the global batch, placed on the mesh.
        """
        self.state, metrics = self.update(self.state, batch)
        return metrics

    def lowered(self, batch: Any) -> jax.stages.Lowered:
        """The program of a step, lowered but not run.

        Args:
            batch: a global batch, or its shapes and shardings.
        """
        return self.update.lower(self.state, batch)

    @property
    def steps_made(self) -> int:
        """Number of steps made, including earlier sessions."""
        return int(self.state.step)

    @property
    def model(self) -> nnx.Module:
        """The model with its current parameters; the next step reuses their memory, so copy what you keep."""
        return nnx.merge(self.graph, self.state.trained, self.state.frozen)

    def validated(self, loss: float) -> None:
        """Pass a validation loss to the plateau rule, if ``decay`` is ``plateau``."""
        if self.optim.decay != "plateau":
            return
        state = self.state
        with jax.numpy_dtype_promotion("standard"):
            _, new = self._plateau.update(jnp.zeros((), jnp.float32), state.plateau, value=jnp.float32(loss))
        self.state = dataclasses.replace(state, plateau=placed(new, self.shardings.plateau))

    def rates(self) -> dict[str, float]:
        """``learning_rate`` of the last step, with the plateau's factor in it.

        The rate of a custom optimiser is known if it uses ``optax.inject_hyperparams``. Otherwise the result
        is ``rate_factor``, the plateau's factor alone.
        """
        factor = jnp.asarray(self.state.plateau.scale)
        if not self.own_optimizer:
            # The schedule does not count skipped steps.
            rate = self._schedule(steps_counted(self.state.optimizer) - 1)
        else:
            rate = logged_rate(self.state.optimizer)
        if rate is None:
            return {"rate_factor": float(factor)}
        return {"learning_rate": float(jnp.float32(rate) * factor)}

    def save(self, checkpoints: Checkpoints, progress: dict[str, Any], *, best_by: float | None) -> None:
        """Save the state after a step; see ``Checkpoints.save``."""
        checkpoints.save(self.steps_made, trees_of(self.state), progress, best_by=best_by)

    def restore(self, checkpoints: Checkpoints) -> dict[str, Any]:
        """Load the latest saved state that is not damaged, and return its progress data.

        Raises:
            InputError: all saved states are damaged.
        """
        saved = checkpoints.restore(trees_of(self.state))
        self.state = state_of(saved.trees, self.state)
        return saved.progress


def _rule(
    optimizer: Optimizer | None, optim: OptimConfig, n_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The optimiser to use: that of ``optim``, or the caller's.

    Raises:
        InputError: the caller's factory returns something else than an optimiser.
    """
    if optimizer is None:
        optimizer = make_optimizer(optim, n_steps)
    elif not isinstance(optimizer, optax.GradientTransformation):
        optimizer = optimizer(optim, n_steps)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise InputError("optimizer", expected="an optax.GradientTransformation", got=optimizer)
    return optax.with_extra_args_support(optimizer)


def shapes_of(model: nnx.Module) -> nnx.Module:
    """A model with the shapes and dtypes of its parameters instead of their values."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state))


def _as_array(leaf: Any) -> jax.Array:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The shardings of a state; the optimiser's arrays for a parameter are split like the parameter."""
    return TrainState(
        **{
            field.name: shardings_of(getattr(state, field.name), mesh, optional=field.name == "optimizer")
            for field in dataclasses.fields(state)
        }
    )
