"""The parts of the training loop: open or resume a run, step, log, validate, save."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from polyjax.mesh.processes import agreed, is_primary
from polyjax.runs import Checkpoints, MetricsLog
from polyjax.runtime.progress import Screen, console, meter
from polyjax.train.config import TrainConfig
from polyjax.train.events import Due, Events, Progress, why_ended
from polyjax.train.faults import FiniteChecks, errors_named, validation_errors_named
from polyjax.train.objective import Objective, Validation
from polyjax.train.speed import Profile, Speed
from polyjax.train.trainer import Trainer

Callback = Callable[[int, str, dict[str, Any]], object]
"""Called as (step, kind, metrics) for every log line; kind is ``train`` or ``valid``. It may raise
StopTraining. Its result is ignored."""


class StopTraining(Exception):
    """Raise it in a callback to end the run: the model is validated and saved, and the run is finished.

    Args:
        reason: becomes ``TrainResult.stopped_by``.
    """

    def __init__(self, reason: str = "a callback"):
        super().__init__(reason)
        self.reason = reason


class Session:
    """One session of a run: it resumes from the last checkpoint in the run directory, if there is one.

    Args:
        trainer: a new trainer; the saved state is loaded into it.
        objective: places batches and validates.
        run_dir: directory of the run: metrics and checkpoints are written there.
        config: limits of the run, steps to trace.
        events: when the run logs, validates, saves and ends.
        callbacks: see ``Callback``.
        quiet: print nothing.

    Attributes:
        first: number of steps made in earlier sessions.
        progress: best validation, seconds, and why the run ended.

    Raises:
        InputError: no checkpoint can be read, or the steps to trace are already made.
    """

    def __init__(
        self,
        trainer: Trainer,
        objective: Objective,
        run_dir: Path,
        *,
        config: TrainConfig,
        events: Events,
        callbacks: Sequence[Callback],
        quiet: bool,
    ):
        self._trainer, self._objective, self._config, self._events = trainer, objective, config, events
        self._callbacks, self._stopped = callbacks, ""
        self._screen = Screen(quiet=True) if quiet else console
        self._checkpoints = Checkpoints(run_dir, say=_warn if quiet else None)
        self.progress = Progress()
        if self._checkpoints.latest_step is not None:
            self.progress = Progress.of_saved(trainer.restore(self._checkpoints))
        self.first = trainer.steps_made
        if is_primary() and not self.first:
            objective.write_card(run_dir)
        profiled = config.profiled_of(events.steps, made=self.first)
        self._profile = Profile(profiled if is_primary() else None, run_dir / "profile", self._screen)
        self._log = MetricsLog(run_dir, resume_step=self.first, write=is_primary())
        self._checks = FiniteChecks(
            trainer.optim, own_optimizer=trainer.own_optimizer, latest_step=self._latest_step
        )
        self._speed = Speed(
            objective.encoder,
            n_devices=trainer.mesh.size,
            batch_size=objective.batch_size,
            trained_layers=config.trainable if isinstance(config.trainable, int) else None,
        )
        self._began = time.monotonic() - self.progress.seconds
        self._window: list[dict[str, jax.Array]] = []
        if self.first and not self.progress.finished:
            self._screen.print(f"resuming {run_dir} after step {self.first} of {events.steps}")

    def _latest_step(self) -> int | None:
        return self._checkpoints.latest_step

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Show the progress bar; turn exhausted memory and lost processes into InputErrors."""
        with (
            meter(
                "training",
                self._events.steps,
                unit="steps",
                start=self.first,
                out=self._screen,
                waiting_for="" if self.progress.finished else "compiling the step",
            ) as self._shown,
            errors_named(self._latest_step, lambda: self._objective.too_much),
            contextlib.closing(self._profile),
        ):
            yield

    def step(self, number: int, batches: Iterator[Any]) -> None:
        """Make a step with the next batch."""
        self._profile.before(number)
        waiting = time.monotonic()
        local = next(batches)
        self._speed.waited(time.monotonic() - waiting)
        metrics = self._trainer.step(self._objective.place(local))
        self._profile.after(number, metrics)
        self._speed.add(self._objective.work(local))
        self._window.append(metrics)
        # One step in flight is enough for the devices to be busy. With more, a signal, a time limit or Ctrl-C
        # would wait for all of them, which are minutes where a step is slow.
        if len(self._window) > 1:
            jax.block_until_ready(self._window[-2])

    @property
    def seconds(self) -> float:
        """Training time of the run in seconds, including earlier sessions."""
        return time.monotonic() - self._began

    def clock(self, step: int) -> float:
        """The training time in seconds, the same on all processes; 0 at steps that do not read the clock."""
        if not self._events.reads_clock(step, processes=jax.process_count()):
            return 0.0
        return agreed(self.seconds)

    @property
    def compilations(self) -> int:
        """Number of programs compiled for training and validation."""
        return self._trainer.compilations + self._objective.compilations

    def log(self, step: int) -> None:
        """Write the means of the metrics since the last log line.

        Raises:
            InputError: a loss or the norm of a gradient is not finite.
        """
        means = self._checks.means(self._window, step)
        self._window = []
        means |= {
            **self._speed.metrics(),
            **self._trainer.rates(),
            "seconds": self.seconds,
            "compilations": self.compilations,
        }
        self._record(step, "train", means)
        self._speed.restart()
        pace = (means[f"{what}_per_second"] for what in ("examples", "tokens"))
        note = "{:.3g} examples/s, {:.3g} tokens/s".format(*pace)
        self._shown.move_to(step, f"{note}  loss {means['loss']:.3f}")

    def check(self, step: int) -> None:
        """Raise InputError if a parameter is not finite, before the state is validated or saved."""
        self._checks.parameters(self._trainer.state, step)

    def validate(self, step: int) -> float:
        """Validate, and pass the loss to the plateau rule; returns the ``best_by`` metric (larger is better).

        Raises:
            InputError: the loss is not finite, or device memory is exhausted.
        """
        with validation_errors_named(self._latest_step):
            outcome = self._objective.validate(self._trainer.model)
        self._checks.check("validation loss", [outcome.loss], step)
        self._trainer.validated(outcome.loss)
        best_by = better_is_larger(outcome, self._config.best_by)
        self.progress = self.progress.validated(best_by)
        self._record(step, "valid", outcome.metrics | {"seconds": self.seconds})
        self._screen.print(f"step {step}: valid loss {outcome.loss:.3f}, {outcome.summary}")
        return best_by

    def save(self, step: int, due: Due, best_by: float | None) -> None:
        """Save a checkpoint with the progress, which says why the run ends if it does."""
        finished = self._stopped or why_ended(self._config, self._events, step, due, self.progress)
        self.progress = dataclasses.replace(self.progress, seconds=self.seconds, finished=finished)
        self._trainer.save(self._checkpoints, dataclasses.asdict(self.progress), best_by=best_by)
        self._speed.restart()

    @property
    def stopped(self) -> bool:
        """Whether a callback has ended the run."""
        return bool(self._stopped)

    def _record(self, step: int, kind: str, metrics: dict[str, Any]) -> None:
        """Write a log line and call the callbacks; only those of the first process can stop the run."""
        self._log.write(step, kind, metrics)
        reason = ""
        for callback in self._callbacks:
            try:
                callback(step, kind, dict(metrics))
            except StopTraining as stop:
                reason = reason or stop.reason
        if self._callbacks and agreed(bool(reason)):
            self._stopped = self._stopped or reason or "a callback"


def better_is_larger(outcome: Validation, name: str) -> float:
    """A metric of a validation, negated if smaller is better."""
    if name == "loss":
        return -outcome.loss
    # The name of a recall ends with the number of candidates, as recall@1/20.
    return next(value for key, value in outcome.metrics.items() if key.partition("/")[0] == name)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
