"""All tasks: the one list of data sets."""

from pathlib import Path
from typing import get_args

from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.tasks.convai2 import ConvAI2Config
from polyjax.data.tasks.dstc7 import DSTC7Config
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.data.tasks.ubuntu_v2 import UbuntuV2Config
from polyjax.data.tasks.wikipedia_search import WikipediaSearchConfig
from polyjax.errors import InputError

TaskConfig = (
    ChitchatConfig | ConvAI2Config | DSTC7Config | UbuntuV2Config | WikipediaSearchConfig | OwnDataConfig
)
"""Settings that a command line can give and a run directory's config.json can hold."""

OWN = "jsonl:"
"""The prefix of a path to a user's own file."""

NAMED: dict[str, type[TaskConfig]] = {
    kind.name: kind for kind in get_args(TaskConfig) if isinstance(kind.name, str)
}
"""The published data sets by name; a user's own data has its file's name."""

TASK_NAMES = f"{', '.join(NAMED)} or {OWN}PATH"
"""What a task may be called, for readers."""


def task_named(name: str) -> TaskConfig:
    """The default settings of a task, or of a user's own file, ``jsonl:PATH`` (also CSV and TSV).

    Raises:
        InputError: there is no such task.
    """
    if name == OWN:
        raise InputError("task", expected=f"the path of a file, as in {OWN}mine.jsonl", got=name)
    if name.startswith(OWN):
        return OwnDataConfig(train=Path(name.removeprefix(OWN)))
    if name not in NAMED:
        raise InputError("task", expected=TASK_NAMES, got=name)
    return NAMED[name]()  # pyright: ignore[reportCallIssue]  # all of them have defaults
