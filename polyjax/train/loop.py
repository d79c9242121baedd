"""Training from beginning to end: steps, and after each what is due."""

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
        steps: steps made in all, earlier sessions included.
        seconds: time of training and validating, earlier sessions included.
        compilations: programs compiled in this session.
        stopped_by: why the run ended.
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
    """Train a model, or resume the run that the directory holds.

    What it leaves in the directory is all that a loader needs: card, tokenizer, checkpoints. Hold
    ``run_lock`` meanwhile, so that no other process writes there.

    Args:
        objective: the model, what it is to learn and from what.
        run_dir: where metrics and checkpoints go.
        optim: optimiser and schedule.
        config: length, validation, checkpoints.
        optimizer: takes the place of the optimiser and schedule of ``optim``; see ``Trainer``. A run resumes
            with the one that it began with.
        callbacks: called as ``callback(step, kind, metrics)`` for every line of the log, of kind ``train`` or
            ``valid``. One that raises ``StopTraining`` ends the run after that step: it is validated, saved,
            and finished, as by early stopping.
        quiet: print nothing; what a damaged checkpoint makes necessary is then a warning.

    Raises:
        InputError: settings are invalid, the loss stopped being finite, memory ran out, a checkpoint could
            not be saved, or another process of the run is gone.
        Preempted: SIGTERM came; the state is saved.
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
