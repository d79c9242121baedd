"""Training from beginning to end: batches, validations, checkpoints, stopping. It owns time."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx

from polyjax.errors import InputError, Preempted
from polyjax.mesh.placement import everywhere, placed, shardings_of
from polyjax.mesh.processes import agreed, is_primary
from polyjax.runs import Checkpoints, MetricsLog
from polyjax.runtime.progress import console, meter
from polyjax.train.faults import (
    check_finite,
    errors_named,
    finite_means,
    raise_unless_finite,
    validation_errors_named,
)
from polyjax.train.interrupt import Notice
from polyjax.train.objective import Objective, Validation
from polyjax.train.optim import (
    OptimConfig,
    Trainable,
    make_loss_scale,
    make_optimizer,
    plateau,
    schedule,
    trainable_filter,
    updates_made,
)
from polyjax.train.speed import Profile, Speed
from polyjax.train.state import TrainState, init_state, restore_state, trees_of
from polyjax.train.step import make_train_step

LOG_EVERY_STEPS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, validation, checkpoints.

    Attributes:
        steps: updates in all; 0 to give ``epochs`` instead.
        epochs: passes over the training split instead of ``steps``; with neither, one pass.
        most_epochs: passes after which ``steps`` end early, as further ones over a few rows teach nothing;
            0 for no limit.
        seed: of initial values, shuffling, dropout and sampled negatives.
        trainable: ``all``, ``all-but-embeddings``, or a number k: the top k layers (and the head).
        validate_every_steps: updates between validations; 0 to give ``validate_every_epochs`` instead.
        validate_every_epochs: passes between validations instead; with neither, half a pass.
        validate_examples: at most so many examples of the valid split, drawn once.
        save_every_steps: updates between checkpoints besides those at validations; 0 for none.
        best_by: validation figure that chooses the checkpoint to use.
        early_stopping: stop after so many validations without a better figure; 0 never stops early.
        time_limit: seconds of training after which a run stops, validates and saves; 0 for no limit.
        profile_steps: updates to trace, as ``10-12``; the trace is put into the run directory's ``profile``.
    """

    steps: int = 0
    epochs: float = 0.0
    most_epochs: float = 0.0
    seed: int = 0
    trainable: Trainable = "all"
    validate_every_steps: int = 0
    validate_every_epochs: float = 0.0
    validate_examples: int = 1000
    save_every_steps: int = 200
    best_by: Literal["recall@1", "mrr", "loss"] = "recall@1"
    early_stopping: int = 0
    time_limit: float = 0.0
    profile_steps: Annotated[str, tyro.conf.arg(name="profile-steps", prefix_name=False)] = ""

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (0 <= value < math.inf):
                raise InputError(f"train {field.name} must be 0 or more and finite, got {value}")
        self.profiled()
        if self.validate_examples < 1:
            raise InputError(f"train validate_examples must be at least 1, got {self.validate_examples}")
        for steps, epochs in (("steps", "epochs"), ("validate_every_steps", "validate_every_epochs")):
            if getattr(self, steps) and getattr(self, epochs):
                raise InputError(
                    f"train {steps} of {getattr(self, steps)} and {epochs} of {getattr(self, epochs):g} are "
                    f"both given; set {steps} to 0 to go by epochs"
                )

    def profiled(self) -> tuple[int, int] | None:
        """First and last update to trace.

        Raises:
            InputError: ``profile_steps`` is not of the form 10-12.
        """
        if not self.profile_steps:
            return None
        first, dash, last = self.profile_steps.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise InputError(
                f"--profile-steps {self.profile_steps!r}: expected the first and the last update, as 10-12"
            )
        return int(first), int(last)


def updates_of(config: TrainConfig, batch_size: int, n_examples: int) -> tuple[int, int]:
    """Updates in all, and between validations, of a run on so many training examples."""
    per_epoch = n_examples // batch_size
    steps = config.steps or max(1, round((config.epochs or 1.0) * per_epoch))
    every = config.validate_every_steps or max(1, round((config.validate_every_epochs or 0.5) * per_epoch))
    most = max(1, round(config.most_epochs * per_epoch))
    if config.most_epochs and most < steps:
        # Halfway at the latest: the best checkpoint is to be chosen among two.
        return most, min(every, -(-most // 2))
    return steps, every


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run of the loop did.

    Attributes:
        steps: updates made in all, earlier sessions included.
        seconds: time of training and validating, earlier sessions included.
        compilations: programs compiled in this session.
        stopped_by: why the run ended.
    """

    steps: int
    seconds: float
    compilations: int
    stopped_by: str


@dataclasses.dataclass
class _Progress:
    """What is saved beside the state, as plain data."""

    best: float = -math.inf
    bad_validations: int = 0
    seconds: float = 0.0
    finished: str = ""


def train(
    objective: Objective,
    run_dir: Path,
    *,
    optim: OptimConfig,
    config: TrainConfig,
    on_log: Callable[[int, str, dict[str, Any]], None] = lambda step, kind, figures: None,
) -> TrainResult:
    """Train a model, or go on with the run that the directory holds.

    Hold ``run_lock`` meanwhile, so that no other process writes there.
    The checkpoints of the run directory hold the result; ``Checkpoints.restore_parameters`` reads it.

    Args:
        objective: the model, what it is to learn and from what.
        run_dir: where metrics and checkpoints go.
        optim: optimiser and schedule.
        config: length, validation, checkpoints.
        on_log: called with (step, kind, figures) for every line of the log.

    Raises:
        InputError: settings cannot work, the loss stopped being finite, memory ran out, a checkpoint could
            not be saved, or another process of the run is gone.
        Preempted: SIGTERM came; the state is saved.
    """
    encoder, mesh = objective.encoder, objective.mesh
    n_steps, validate_every = updates_of(config, objective.batch_size, objective.n_examples)
    optimizer, plateau_rule = make_optimizer(optim, n_steps), plateau(optim)
    trained = trainable_filter(config.trainable, encoder.n_layers)
    loss_scale = make_loss_scale(optim, encoder.dtype)
    graph, state = init_state(
        objective.model, optimizer, plateau_rule, trained, seed=config.seed, loss_scale=loss_scale
    )
    if not jax.tree.leaves(state.trained):
        raise InputError(
            f"train trainable of {config.trainable}: the head of this architecture has no parameters, and "
            "nothing would be trained; train a layer at least"
        )
    shardings = shardings_of(state, mesh)
    state = placed(state, shardings)
    progress = _Progress()
    checkpoints = Checkpoints(run_dir)
    if checkpoints.latest_step is not None:
        state, saved = restore_state(checkpoints, state)
        # What an earlier version saved besides is not needed any more.
        progress = _Progress(**{f.name: saved[f.name] for f in dataclasses.fields(_Progress)})
    first = int(state.step)
    profiled = config.profiled()
    if profiled is not None and (profiled[0] > n_steps or profiled[1] <= first):
        made = f", of which {first} are made" if first else ""
        raise InputError(f"--profile-steps {config.profile_steps}: the run has {n_steps} updates{made}")
    batches = objective.batches(first, n_steps, seed=config.seed)
    log = MetricsLog(run_dir, resume_step=first, write=is_primary())
    traces: list[int] = []
    step_fn = make_train_step(
        graph,
        optimizer,
        objective.loss,
        shardings=(shardings, everywhere(mesh)),
        on_trace=lambda: traces.append(1),
    )
    rate = schedule(optim, n_steps)
    began = time.monotonic() - progress.seconds
    speed = Speed(
        encoder,
        n_devices=mesh.size,
        batch_size=objective.batch_size,
        trained_layers=config.trainable if isinstance(config.trainable, int) else None,
    )
    profile = Profile(profiled if is_primary() else None, str(run_dir / "profile"))

    def record(kind: str, step: int, figures: dict[str, Any]) -> None:
        log.write(step, kind, figures)
        on_log(step, kind, figures)

    if first and not progress.finished:
        console.print(f"resuming {run_dir} after step {first} of {n_steps}")
    with (
        meter("training", n_steps, unit="steps", start=first) as shown,
        Notice() as notice,
        errors_named(checkpoints, lambda: objective.at_once),
        contextlib.closing(profile),
    ):
        window: list[dict[str, jax.Array]] = []
        for step in range(first + 1, n_steps + 1):
            if progress.finished:
                break
            profile.before(step)
            waiting = time.monotonic()
            local = next(batches)
            speed.waited(time.monotonic() - waiting)
            state, figures = step_fn(state, objective.place(local))
            profile.after(step, figures)
            speed.add(objective.work(local))
            window.append(figures)
            timed_out = False
            if config.time_limit and (jax.process_count() == 1 or step % LOG_EVERY_STEPS == 0):
                timed_out = agreed(time.monotonic() - began > config.time_limit)
            told_to_stop = notice.given(step)
            last = step == n_steps or timed_out
            due = last or step % validate_every == 0
            save = due or told_to_stop
            save = save or (config.save_every_steps and step % config.save_every_steps == 0)
            if save or step % LOG_EVERY_STEPS == 0:
                means = finite_means(window, step, optim, saved=checkpoints.latest_step)
                means |= {
                    **speed.figures(),
                    "learning_rate": float(
                        # The schedule does not count skipped updates.
                        rate(updates_made(state.optimizer) - 1) * jnp.asarray(state.plateau.scale)
                    ),
                    "seconds": time.monotonic() - began,
                    "compilations": len(traces) + objective.compilations,
                }
                record("train", step, means)
                window = []
                speed.restart()
                pace = (means[f"{what}_per_second"] for what in ("examples", "tokens"))
                shown.move_to(
                    step, "{:.3g} examples/s, {:.3g} tokens/s".format(*pace) + f"  loss {means['loss']:.3f}"
                )
            if save:
                check_finite(state, step, optim, saved=checkpoints.latest_step)
                best_by = None
                if due:
                    with validation_errors_named(checkpoints):
                        outcome = objective.validate(nnx.merge(graph, state.trained, state.frozen))
                    raise_unless_finite(
                        "validation loss", [outcome.loss], step, optim, saved=checkpoints.latest_step
                    )
                    best_by = _better_is_larger(outcome, config.best_by)
                    state = _step_plateau(plateau_rule, state, outcome.loss)
                    improved = best_by > progress.best
                    progress.best = max(best_by, progress.best)
                    progress.bad_validations = 0 if improved else progress.bad_validations + 1
                    record("valid", step, outcome.figures | {"seconds": time.monotonic() - began})
                    console.print(f"step {step}: valid loss {outcome.loss:.3f}, {outcome.summary}")
                progress.seconds = time.monotonic() - began
                out_of_patience = (
                    bool(config.early_stopping) and progress.bad_validations >= config.early_stopping
                )
                if last or (due and out_of_patience):
                    progress.finished = _ending(config, progress, step, n_steps, timed_out=timed_out)
                checkpoints.save(step, trees_of(state), dataclasses.asdict(progress), best_by=best_by)
                if told_to_stop:
                    raise Preempted(step)
                speed.restart()
    return TrainResult(
        int(state.step), progress.seconds, len(traces) + objective.compilations, progress.finished
    )


def _ending(config: TrainConfig, progress: _Progress, step: int, n_steps: int, *, timed_out: bool) -> str:
    """Why a run ends after a step, in words."""
    if step == n_steps:
        if step < config.steps:
            return f"{config.most_epochs:g} passes over the training rows made"
        return "all steps made"
    if timed_out:
        return f"time limit of {config.time_limit:g} s"
    return f"{progress.bad_validations} validations without a better {config.best_by}"


def _better_is_larger(outcome: Validation, name: str) -> float:
    if name == "loss":
        return -outcome.loss
    # A recall's name goes on with the number of candidates.
    return next(value for key, value in outcome.figures.items() if key.partition("/")[0] == name)


def _step_plateau(rule: optax.GradientTransformationExtraArgs, state: TrainState, loss: float) -> TrainState:
    """Tell the plateau rule a validation loss."""
    with jax.numpy_dtype_promotion("standard"):
        _, new = rule.update(jnp.zeros((), jnp.float32), state.plateau, value=jnp.float32(loss))
    return dataclasses.replace(state, plateau=placed(new, jax.tree.map(lambda x: x.sharding, state.plateau)))
