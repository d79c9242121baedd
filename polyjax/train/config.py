"""Settings of a run: its length, and when it validates, saves and stops."""

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from polyjax.errors import InputError, shown
from polyjax.train.optim import Trainable


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, validation, checkpoints.

    Attributes:
        steps: total number of steps; 0 to give ``epochs`` instead.
        epochs: epochs to train instead of ``steps``; with neither, one epoch.
        most_epochs: upper limit of the length, in epochs, because a small training set soon overfits; 0 for
            no limit.
        seed: seed of initial values, shuffling, dropout and sampled negatives.
        trainable: ``all``, ``all-but-embeddings``, or a number k: only the top k layers are trained, with the
            head and all parameters outside embeddings and layers (such as a final norm).
        validate_every_steps: steps between validations; 0 to give ``validate_every_epochs`` instead.
        validate_every_epochs: epochs between validations instead; with neither, half an epoch.
        validate_examples: maximum number of examples of the valid split to validate on, drawn once.
        save_every_steps: steps between additional checkpoints; each validation saves one too. 0 for none.
        best_by: validation metric by which the best checkpoint is chosen.
        early_stopping: stop after this many validations without a better ``best_by``; 0 to never stop early.
        time_limit: seconds of training after which a run validates, saves and stops; 0 for no limit.
        profile_steps: steps to trace, as ``10-12``; the trace is written to ``profile`` in the run directory.
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
        """Raise InputError for an invalid value."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (0 <= value < math.inf):
                raise InputError(f"train.{field.name}", expected="0 or more, and finite", got=value)
        if isinstance(self.seed, int) and self.seed >= 1 << 32:  # of SentencePiece's vocabularies, too
            raise InputError("train.seed", expected=f"less than {1 << 32}", got=self.seed)
        self.profiled()
        if self.validate_examples < 1:
            raise InputError("train.validate_examples", expected="at least 1", got=self.validate_examples)
        for steps, epochs in (("steps", "epochs"), ("validate_every_steps", "validate_every_epochs")):
            if getattr(self, steps) and getattr(self, epochs):
                raise InputError(
                    f"train.{epochs}",
                    expected=f"0 where `train.{steps}` is given ({getattr(self, steps)})",
                    got=getattr(self, epochs),
                    fix=f"set `train.{steps}` to 0 to count in epochs",
                )

    def profiled(self) -> tuple[int, int] | None:
        """First and last step to trace, from 1; None for no trace.

        Raises:
            InputError: ``profile_steps`` is not of the form 10-12.
        """
        if not self.profile_steps:
            return None
        first, dash, last = self.profile_steps.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise InputError(
                "profile_steps", expected="the first and the last step, as 10-12", got=self.profile_steps
            )
        return int(first), int(last)

    def profiled_of(self, steps: int, *, made: int) -> tuple[int, int] | None:
        """The result of ``profiled``, checked against the length of a run.

        Args:
            steps: total number of steps of the run.
            made: number of steps made in earlier sessions.

        Raises:
            InputError: none of the steps to trace remains to be made.
        """
        profiled = self.profiled()
        if profiled is not None and (profiled[0] > steps or profiled[1] <= made):
            expected = f"some of the steps {made + 1}-{steps}"
            done = shown(f"{self.profile_steps}, and {made} of {steps} steps are done")
            raise InputError("profile_steps", expected=expected, got=done)
        return profiled


def steps_of(config: TrainConfig, batch_size: int, n_examples: int) -> tuple[int, int]:
    """The total number of steps of a run, and the number of steps between validations.

    Args:
        config: settings of the run.
        batch_size: examples in a batch.
        n_examples: number of training examples.
    """
    per_epoch = n_examples // batch_size
    steps = config.steps or max(1, round((config.epochs or 1.0) * per_epoch))
    every = config.validate_every_steps or max(1, round((config.validate_every_epochs or 0.5) * per_epoch))
    most = max(1, round(config.most_epochs * per_epoch))
    if config.most_epochs and most < steps:
        # Validate halfway at the latest, so that there are two checkpoints to choose from.
        return most, min(every, -(-most // 2))
    return steps, every
