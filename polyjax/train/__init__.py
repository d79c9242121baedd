"""Training: an objective, a trainer, and a loop of steps, validations and checkpoints.

Names are imported on first use, because a loader needs the optimiser's settings but not the modules for
batches and validation.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from polyjax.train.config import TrainConfig, steps_of
    from polyjax.train.loop import TrainResult, train
    from polyjax.train.memory import Memory, PlannedStep, device_memory, step_memory
    from polyjax.train.objective import Objective, Validation, Work
    from polyjax.train.optim import OptimConfig, trainable_filter
    from polyjax.train.pretraining import LossWeights, Pretraining
    from polyjax.train.ranking import Ranking
    from polyjax.train.session import Callback, StopTraining
    from polyjax.train.trainer import Optimizer, Trainer, shapes_of

_MODULES = {
    "config": ("TrainConfig", "steps_of"),
    "loop": ("TrainResult", "train"),
    "memory": ("Memory", "PlannedStep", "device_memory", "step_memory"),
    "objective": ("Objective", "Validation", "Work"),
    "optim": ("OptimConfig", "trainable_filter"),
    "pretraining": ("LossWeights", "Pretraining"),
    "ranking": ("Ranking",),
    "session": ("Callback", "StopTraining"),
    "trainer": ("Optimizer", "Trainer", "shapes_of"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Callback",
    "LossWeights",
    "Memory",
    "Objective",
    "OptimConfig",
    "Optimizer",
    "PlannedStep",
    "Pretraining",
    "Ranking",
    "StopTraining",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "Validation",
    "Work",
    "device_memory",
    "shapes_of",
    "step_memory",
    "steps_of",
    "train",
    "trainable_filter",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
