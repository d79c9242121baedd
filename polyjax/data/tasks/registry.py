"""All tasks by name, and what a run needs of one: rows, texts to learn words from, a line about the data."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from polyjax.data.tasks import chitchat, convai2, dstc7, jsonl, ubuntu_v2
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.tasks.convai2 import ConvAI2Config
from polyjax.data.tasks.dstc7 import DSTC7Config
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.data.tasks.ubuntu_v2 import UbuntuV2Config
from polyjax.types import Example, InputError

Split = Literal["train", "valid", "test"]
TaskConfig = ChitchatConfig | ConvAI2Config | DSTC7Config | UbuntuV2Config | OwnDataConfig

OWN = "jsonl:"
"""Before the path of a file of one's own."""

NAMED: dict[str, Callable[[], TaskConfig]] = {
    "chitchat": ChitchatConfig,
    "convai2": ConvAI2Config,
    "dstc7": DSTC7Config,
    "ubuntu_v2": UbuntuV2Config,
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """The examples of a split.

    Attributes:
        examples: with the label alone, or with listed candidates.
        note: what a report says about the data, "" where there is nothing to say.
    """

    examples: list[Example]
    note: str = ""


def task_named(name: str) -> TaskConfig:
    """The default settings of a task, or of a file of one's own, ``jsonl:PATH`` (also CSV and TSV).

    Raises:
        InputError: there is no such task.
    """
    if name == OWN:
        raise InputError(f"--task {OWN} needs the path of a file: {OWN}mine.jsonl")
    if name.startswith(OWN):
        return OwnDataConfig(train=Path(name.removeprefix(OWN)))
    if name not in NAMED:
        raise InputError(f"--task {name!r}: expected {', '.join(NAMED)} or {OWN}PATH")
    return NAMED[name]()


def name_of(task: TaskConfig) -> str:
    """A short name, for folders and tables."""
    match task:
        case OwnDataConfig():
            return task.train.stem
        case _:
            return next(name for name, kind in NAMED.items() if isinstance(task, kind))  # pyright: ignore[reportArgumentType]


def read(task: TaskConfig, split: Split) -> Rows:
    """The rows of a split.

    Raises:
        InputError: a file is missing, not the official one, or broken.
    """
    match task:
        case ChitchatConfig():
            return Rows(chitchat.read(task, split))
        case OwnDataConfig():
            return Rows(jsonl.read(task, split))
        case ConvAI2Config():
            examples, official = convai2.read(task, split)
        case DSTC7Config():
            examples, official = dstc7.read(task, split)
        case UbuntuV2Config():
            examples, official = ubuntu_v2.read(task, split)
    note = (
        ""
        if official
        else f"the {split} file is not known to be the official one: compare with no published figure"
    )
    return Rows(examples, note)


def training_texts(task: TaskConfig, examples: list[Example]) -> Iterator[str]:
    """Texts of the training split from which words and their frequencies are learnt.

    Args:
        task: the settings.
        examples: its training split.
    """
    if isinstance(task, ChitchatConfig):
        for conversation in chitchat.read_conversations("train", task.data_dir):
            yield from conversation.turns
        return
    for example in examples:
        # A dialogue's rows repeat its turns: only the newest is taken of each.
        yield example.context[-1]
        yield example.label_text


def describe(task: TaskConfig, split: Split, n: int) -> str:
    """A line about the rows of a split, for a report."""
    match task:
        case ChitchatConfig():
            return (
                f"{n:,} chitchat {split} rows; label of at least {task.min_label_words} words, "
                f"{task.n_candidates} candidates, seed {task.candidate_seed}"
            )
        case OwnDataConfig():
            file = {"train": task.train, "valid": task.valid, "test": task.test}[split] or task.train
            return f"{n:,} {split} rows of {file.name}"
        case _:
            return f"{n:,} {name_of(task)} {split} rows"
