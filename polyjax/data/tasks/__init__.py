"""Data sets: one file each, whose settings keep the contract ``Task`` and are named in ``registry``."""

from polyjax.data.tasks.protocol import (
    Split,
    Task,
    beside,
    conversations,
    describe,
    listed_in_training,
    prepared_in,
    read_listed,
    read_to_rank,
    training_texts,
)
from polyjax.data.tasks.registry import NAMED, OWN, TASK_NAMES, TaskConfig, task_named
from polyjax.data.tasks.source import MissingFile

__all__ = [
    "NAMED",
    "OWN",
    "MissingFile",
    "TASK_NAMES",
    "Split",
    "Task",
    "TaskConfig",
    "beside",
    "conversations",
    "describe",
    "listed_in_training",
    "prepared_in",
    "read_listed",
    "read_to_rank",
    "task_named",
    "training_texts",
]
