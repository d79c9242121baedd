"""The rows that a caller of ``fit`` gives: files, rows in memory, the name of a data set, or a task."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyjax.data.tasks import NAMED, OWN, Task, task_named
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.errors import InputError
from polyjax.interop.hub import local_name
from polyjax.recipes.rows_in_memory import ROWS, RowFiles, as_jsonl
from polyjax.recipes.settings import RunConfig

Rows = str | os.PathLike[str] | Sequence[Any]


def row_files(data: Any, valid: Rows | None, test: Rows | None) -> RowFiles | None:
    """Rows in memory, as the files to write; None if all rows are in files already."""
    content = {}
    for split, rows in (("train", data), ("valid", valid), ("test", test)):
        if rows is None or isinstance(rows, str | os.PathLike) or _is_task(rows):
            continue
        name = "data" if split == "train" else split
        content[ROWS[split]] = as_jsonl(name, rows)
    return RowFiles(content) if content else None


def _is_task(data: object) -> bool:
    return isinstance(data, Task)


def training_task(data: Any, valid: Rows | None, test: Rows | None) -> Task:
    """The task for the data; paths of rows in memory are set later, by ``in_its_folder``."""
    if _is_task(data) or (isinstance(data, str) and data in NAMED):
        if valid is not None or test is not None:
            raise InputError(
                "valid" if valid is not None else "test",
                problem="the data set has rows of its own",
                fix="leave it out, or give the training rows as a file",
            )
        return task_named(data) if isinstance(data, str) else data

    def path(split: str, rows: Any) -> Path | None:
        if rows is None:
            return None
        if isinstance(rows, str | os.PathLike):
            return Path(os.fspath(rows).removeprefix(OWN))
        return Path(ROWS[split])

    train = path("train", data)
    assert train is not None
    return OwnDataConfig(train=train, valid=path("valid", valid), test=path("test", test))


def in_its_folder(config: RunConfig, files: RowFiles | None) -> RunConfig:
    """The settings with paths in the run directory for rows that were in memory."""
    if files is None:
        return config
    if config.run_dir is None and ROWS["train"] in files.content:
        source = local_name(config.encoder.name) if config.init is None else config.init.name
        taught = "" if config.teacher is None else "-distilled"
        name = f"{config.preset}-{files.digest}-{config.arch}-{source}{taught}"
        config = dataclasses.replace(config, run_dir=Path("runs") / name)
    kept = {split: config.folder / name for split, name in ROWS.items() if name in files.content}
    task: Any = config.task  # its paths change
    return dataclasses.replace(config, task=dataclasses.replace(task, **kept))
