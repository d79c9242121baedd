"""What happens at a step: a pure function of the step, the clock, and whether somebody asked to stop."""

import dataclasses
import math

from polyjax.train.config import TrainConfig

LOG_EVERY_STEPS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Due:
    """What happens after a step, in this order.

    Attributes:
        log: the means since the last log are written.
        validate: the model is validated.
        save: a checkpoint is saved; what is saved was logged.
        last: the run ends here, whatever the validation says.
        timed_out: it ends for its time limit.
    """

    log: bool
    validate: bool
    save: bool
    last: bool
    timed_out: bool = False

    @classmethod
    def ending(cls) -> "Due":
        """The events when a callback ends the run: it is validated and saved."""
        return cls(log=True, validate=True, save=True, last=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """When a run logs, validates, saves and ends.

    Attributes:
        steps: in all.
        validate_every: steps between validations.
        save_every: steps between further checkpoints; 0 for none.
        time_limit: seconds after which it ends; 0 for no limit.
        log_every: steps between lines of the log.

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
            step: its number, from 1.
            seconds: that the run has trained, earlier sessions included.
            preempted: whether the process was asked to go (SIGTERM): it saves first.
        """
        timed_out = 0.0 < self.time_limit < seconds
        last = step >= self.steps or timed_out
        validate = last or step % self.validate_every == 0
        save = validate or preempted or (self.save_every > 0 and step % self.save_every == 0)
        log = save or step % self.log_every == 0
        return Due(log=log, validate=validate, save=save, last=last, timed_out=timed_out)

    def reads_clock(self, step: int, *, processes: int) -> bool:
        """Whether the clock matters at a step: several processes have to agree on it, which takes a while."""
        return self.time_limit > 0 and (processes == 1 or step % self.log_every == 0)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The plain data that is saved beside the state.

    Attributes:
        best: the best validation so far, larger is better.
        bad_validations: validations since.
        seconds: of training and validating.
        finished: why the run ended; empty before.
    """

    best: float = -math.inf
    bad_validations: int = 0
    seconds: float = 0.0
    finished: str = ""

    def validated(self, best_by: float) -> "Progress":
        """After a validation."""
        better = best_by > self.best
        return dataclasses.replace(
            self, best=max(best_by, self.best), bad_validations=0 if better else self.bad_validations + 1
        )

    @classmethod
    def of_saved(cls, saved: dict) -> "Progress":
        """The saved progress; further entries of earlier versions are ignored."""
        return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)})


def why_ended(config: TrainConfig, events: Events, step: int, due: Due, progress: Progress) -> str:
    """Why a run ends after a step, in words; empty where it does not.

    Args:
        config: its limits.
        events: of the run.
        step: the number of the step.
        due: what was due after it.
        progress: after the validation that was due.
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
