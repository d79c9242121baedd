"""What is due after a step: a pure function of the step, the clock, and whether the run must stop."""

import dataclasses
import math

from polyjax.train.config import TrainConfig

LOG_EVERY_STEPS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Due:
    """What is due after a step, in this order.

    Attributes:
        log: write the means since the last log line; always true if ``save`` is.
        validate: validate the model.
        save: save a checkpoint.
        last: end the run, whatever the validation says.
        timed_out: the run ends because of its time limit.
    """

    log: bool
    validate: bool
    save: bool
    last: bool
    timed_out: bool = False

    @classmethod
    def ending(cls) -> "Due":
        """What is due when a callback ends the run: validation and a checkpoint."""
        return cls(log=True, validate=True, save=True, last=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """When a run logs, validates, saves and ends.

    Attributes:
        steps: total number of steps.
        validate_every: steps between validations.
        save_every: steps between additional checkpoints; 0 for none.
        time_limit: seconds after which the run ends; 0 for no limit.
        log_every: steps between log lines.

    >>> events = Events(steps=100, validate_every=50, save_every=20, time_limit=60.0)
    >>> events.at(20, 1.0)
    Due(log=True, validate=False, save=True, last=False, timed_out=False)
    >>> events.at(21, 61.0)
    Due(log=True, validate=True, save=True, last=True, timed_out=True)
    """

    steps: int
    validate_every: int
    save_every: int = 0
    time_limit: float = 0.0
    log_every: int = LOG_EVERY_STEPS

    def at(self, step: int, seconds: float, *, preempted: bool = False) -> Due:
        """What is due after a step.

        Args:
            step: number of the step, from 1.
            seconds: training time of the run, including earlier sessions.
            preempted: whether the process received SIGTERM, so that it saves before it exits.
        """
        timed_out = 0.0 < self.time_limit < seconds
        last = step >= self.steps or timed_out
        validate = last or step % self.validate_every == 0
        save = validate or preempted or (self.save_every > 0 and step % self.save_every == 0)
        log = save or step % self.log_every == 0
        return Due(log=log, validate=validate, save=save, last=last, timed_out=timed_out)

    def reads_clock(self, step: int, *, processes: int) -> bool:
        """Whether to read the clock at a step; several processes must agree on it, which costs time."""
        return self.time_limit > 0 and (processes == 1 or step % self.log_every == 0)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress data that is saved with the state.

    Attributes:
        best: best validation metric so far; larger is better.
        bad_validations: number of validations since then.
        seconds: time of training and validation.
        finished: why the run ended; empty if it has not.
    """

    best: float = -math.inf
    bad_validations: int = 0
    seconds: float = 0.0
    finished: str = ""

    def validated(self, best_by: float) -> "Progress":
        """The progress after a validation.

        Args:
            best_by: the validation's metric; larger is better.
        """
        better = best_by > self.best
        return dataclasses.replace(
            self, best=max(best_by, self.best), bad_validations=0 if better else self.bad_validations + 1
        )

    @classmethod
    def of_saved(cls, saved: dict) -> "Progress":
        """The progress from a checkpoint; entries that only earlier versions wrote are ignored."""
        return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)})


def why_ended(config: TrainConfig, events: Events, step: int, due: Due, progress: Progress) -> str:
    """Why a run ends after a step, as a text for people; empty if it does not end.

    Args:
        config: the run's limits.
        events: the run's events.
        step: number of the step, from 1.
        due: what was due after the step.
        progress: progress after the validation that was due.
    """
    if step >= events.steps:
        shortened = step < config.steps
        return f"{config.most_epochs:g} epochs made" if shortened else "all steps made"
    if due.timed_out:
        return f"time limit of {events.time_limit:g} s"
    patience = config.early_stopping
    if due.validate and patience and progress.bad_validations >= patience:
        return f"{progress.bad_validations} validations without a better {config.best_by}"
    return ""
