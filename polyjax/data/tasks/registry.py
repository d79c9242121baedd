"""All tasks by name, and what a run needs of one: rows, texts to learn words from, a line about the data."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from polyjax.data.rows import RankConfig, Rows, ranked_among
from polyjax.data.tasks import chitchat, convai2, dstc7, jsonl, ubuntu_v2, wikipedia_search
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.tasks.convai2 import ConvAI2Config
from polyjax.data.tasks.dstc7 import DSTC7Config
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.data.tasks.ubuntu_v2 import UbuntuV2Config
from polyjax.data.tasks.wikipedia_search import WikipediaSearchConfig
from polyjax.errors import InputError
from polyjax.types import Example

Split = Literal["train", "valid", "test"]
TaskConfig = (
    ChitchatConfig | ConvAI2Config | DSTC7Config | UbuntuV2Config | WikipediaSearchConfig | OwnDataConfig
)

OWN = "jsonl:"
"""Before the path of a file of one's own."""

NAMED: dict[str, Callable[[], TaskConfig]] = {
    "chitchat": ChitchatConfig,
    "convai2": ConvAI2Config,
    "dstc7": DSTC7Config,
    "ubuntu_v2": UbuntuV2Config,
    "wikipedia_search": WikipediaSearchConfig,
}


TASK_NAMES = f"{', '.join(NAMED)} or {OWN}PATH"
"""What --task may be, for readers."""


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
        raise InputError(f"--task {name!r}: expected {TASK_NAMES}")
    return NAMED[name]()


def name_of(task: TaskConfig) -> str:
    """A short name, for folders and tables."""
    match task:
        case OwnDataConfig():
            return task.train.stem
        case _:
            return next(name for name, kind in NAMED.items() if isinstance(task, kind))  # pyright: ignore[reportArgumentType]


def read_to_rank(task: TaskConfig, split: Split, rank: RankConfig) -> Rows:
    """The rows of a split with the candidates that are asked for.

    Raises:
        InputError: a file is missing, not the official one, or broken; the rows cannot have such candidates.
    """
    return ranked_among(read(task, split, as_listed=rank.candidates != "task"), rank)


def read(task: TaskConfig, split: Split, *, as_listed: bool = False) -> Rows:
    """The rows of a split, as the task has them.

    Args:
        task: the settings.
        split: which.
        as_listed: without the candidates that a task draws for rows that list none.

    Raises:
        InputError: a file is missing, not the official one, or broken.
    """
    match task:
        case ChitchatConfig():
            return Rows(chitchat.read(task, split, as_listed=as_listed))
        case OwnDataConfig():
            return Rows(jsonl.read(task, split, as_listed=as_listed))
        case ConvAI2Config():
            return convai2.read(task, split)
        case DSTC7Config():
            return dstc7.read(task, split)
        case UbuntuV2Config():
            return ubuntu_v2.read(task, split)
        case WikipediaSearchConfig():
            return wikipedia_search.read(task, split)


def training_texts(task: TaskConfig, examples: Sequence[Example]) -> Iterator[str]:
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


def ks_of(task: TaskConfig) -> tuple[int, ...]:
    """The k of the recalls that are reported for a task, as in the paper; 1 first."""
    match task:
        case ConvAI2Config():
            return (1, 5)
        case DSTC7Config():
            return (1, 10, 50)
        case UbuntuV2Config():
            return (1, 2, 5)
        case WikipediaSearchConfig():
            return (1, 10, 100)
        case _:
            return (1, 2, 5, 10)


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
