"""The training loop: steps, and after each one what is due (log, validate, save, end)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from polyjax.errors import Preempted
from polyjax.train.config import TrainConfig, steps_of
from polyjax.train.events import Due, Events
from polyjax.train.interrupt import Notice
from polyjax.train.objective import Objective
from polyjax.train.optim import OptimConfig
from polyjax.train.session import Callback, Session
from polyjax.train.trainer import Optimizer, Trainer


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The outcome of the loop.

    Attributes:
        steps: total number of steps, including earlier sessions.
        seconds: time of training and validation, including earlier sessions.
        compilations: number of programs compiled in this session.
        stopped_by: why the run ended, for people.
    """

    steps: int
    seconds: float
    compilations: int
    stopped_by: str


def train(
    objective: Objective,
    run_dir: Path,
    *,
    optim: OptimConfig,
    config: TrainConfig,
    optimizer: Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> TrainResult:
    """Train a model, or resume the run in the directory.

    Afterwards the directory holds all that a loader needs: card, tokenizer, checkpoints. The caller must hold
    ``run_lock``, so that no other process writes there.

    Args:
        objective: the model, its loss, its batches and its validation.
        run_dir: directory of the run: metrics and checkpoints are written there.
        optim: optimiser and schedule.
        config: length, validation, checkpoints.
        optimizer: replaces the optimiser and schedule of ``optim``; see ``Trainer``. Pass the same one to
            resume a run.
        callbacks: called as ``callback(step, kind, metrics)`` for every log line; ``kind`` is ``train`` or
            ``valid``. A callback that raises ``StopTraining`` ends the run after that step: the model is
            validated and saved, and the run counts as finished, as with early stopping.
        quiet: print nothing; a damaged checkpoint then gives a warning.

    Raises:
        InputError: settings are invalid, a loss is not finite, device memory is exhausted, a checkpoint could
            not be saved, or another process of the run is gone.
        Preempted: the process received SIGTERM; the state is saved.
    """
    steps, validate_every = steps_of(config, objective.batch_size, objective.n_examples)
    events = Events(
        steps=steps,
        validate_every=validate_every,
        save_every=config.save_every_steps,
        time_limit=config.time_limit,
    )
    trainer = Trainer.of(objective, optim=optim, config=config, optimizer=optimizer)
    session = Session(
        trainer, objective, run_dir, config=config, events=events, callbacks=callbacks, quiet=quiet
    )
    batches = objective.batches(session.first, steps, seed=config.seed)
    with session.running(), Notice() as notice:
        for step in range(session.first + 1, steps + 1):
            if session.progress.finished:
                break
            session.step(step, batches)
            preempted = notice.given(step)
            due = events.at(step, session.clock(step), preempted=preempted)
            if due.log:
                session.log(step)
            if session.stopped:
                due = Due.ending()
            if due.save:
                session.check(step)
            best_by = session.validate(step) if due.validate else None
            if due.save:
                session.save(step, due, best_by)
            if preempted:
                raise Preempted(step)
    return TrainResult(
        trainer.steps_made, session.progress.seconds, session.compilations, session.progress.finished
    )
