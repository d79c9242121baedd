"""The contract of a task: what a data set states about itself, and the defaults for what it does not."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from polyjax.data.rows import RankConfig, Rows, ranked_among
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.types import Example

Split = Literal["train", "valid", "test"]
"""A part of a data set's rows."""


@runtime_checkable
class Task(Protocol):
    """A data set's settings, which also describe it.

    A task may also have the members that the functions of this module ask for: ``read_listed``, ``describe``,
    ``training_texts``, ``conversations``, ``listed``, ``beside`` and ``data_dir``. Their defaults are stated
    there.
    """

    @property
    def name(self) -> str:
        """A short name, for folders and tables."""
        ...

    @property
    def licence(self) -> str:
        """The licence of its texts."""
        ...

    @property
    def lengths(self) -> TextConfig | None:
        """Numbers of turns and tokens that suit its texts; None for the preset's."""
        ...

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of the recall@k that are reported, 1 first."""
        ...

    def read(self, split: Split) -> Rows:
        """The rows of a split: to train on, or to rank with their candidates.

        Raises:
            InputError: a file is missing, not the official one, or broken.
        """
        ...


KS = (1, 2, 5, 10)
"""The default k of recall@k."""

T = TypeVar("T")


def _own(task: Task, member: str, default: Callable[..., T]) -> Callable[..., T]:
    """An optional method of a task, or its default."""
    return getattr(task, member, default)


def read_to_rank(task: Task, split: Split, rank: RankConfig) -> Rows:
    """The rows of a split with the requested candidates.

    Raises:
        InputError: a file is missing, unofficial or broken, or the rows cannot have such candidates.
    """
    rows = task.read(split) if rank.candidates == "task" else read_listed(task, split)
    return ranked_among(rows, rank)


def read_listed(task: Task, split: Split) -> Rows:
    """The rows of a split without the candidates that a task draws for rows that list none.

    The task's ``read_listed(split)``; by default what it reads.
    """
    return _own(task, "read_listed", task.read)(split)


def describe(task: Task, split: Split, n: int) -> str:
    """A line about n rows of a split, for a report: the task's ``describe(split, n)``."""
    return _own(task, "describe", lambda split, n: f"{n:,} {task.name} {split} rows")(split, n)


def training_texts(task: Task, examples: Sequence[Example]) -> Iterator[str]:
    """Texts of the training split that give a vocabulary and its frequencies.

    The task's ``training_texts(examples)``; by default each row's newest turn and label, since the rows of a
    dialogue repeat its turns.

    Args:
        task: the settings.
        examples: its training split.
    """

    def newest(examples: Sequence[Example]) -> Iterator[str]:
        for example in examples:
            yield example.context[-1]
            yield example.label_text

    return _own(task, "training_texts", newest)(examples)


def conversations(task: Task) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """The training split as dialogues, to pre-train on: a name, the turns, and the first that is a label.

    The task's ``conversations()``; by default each row's context and label, named by the row's group, so that
    the rows of one dialogue are held out together.
    """

    def rows() -> Iterator[tuple[str, tuple[str, ...], int]]:
        for example in task.read("train").examples:
            yield example.group, (*example.context, example.label_text), len(example.context)

    return _own(task, "conversations", rows)()


def listed_in_training(task: Task) -> int | None:
    """How many candidates each training row lists: the task's ``listed``; None if only the rows show it."""
    return getattr(task, "listed", None)


def beside(task: Task, trained: Task | None) -> Task:
    """The settings with which a task's rows test a model that was trained on another task's rows, or on none.

    The task's ``beside(trained)``, which may take in rows that ``read`` would leave to training.
    """
    return _own(task, "beside", lambda trained: task)(trained)


def prepared_in(task: Any, folder: Path) -> Any:
    """A task whose prepared rows are kept in another folder: with another ``data_dir``.

    Raises:
        InputError: the task keeps no prepared rows.
    """
    if not hasattr(task, "data_dir"):
        raise InputError(
            "data_dir", problem=f"the rows of {task.name} are not kept prepared", fix="leave it out"
        )
    return dataclasses.replace(task, data_dir=folder)
