"""Rows that a Python caller passes in memory, and the files that a run keeps of them."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.data.known import changed_rows
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import NAMED, OWN, Task, task_named
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.data.tasks.own_rows import (
    HEADER_AGAIN,
    KEYS,
    REQUIRED,
    cells_object,
    check_header,
    example_of,
    repeats_header,
)
from polyjax.errors import InputError, first_line
from polyjax.inference.arguments import check_folder
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.recipes.changes import changed
from polyjax.runtime.files import temporary_folder, written_to
from polyjax.types import Example

ROWS = {"train": "rows.jsonl", "valid": "valid.jsonl", "test": "test.jsonl"}
"""Names of the files in a run directory for rows that were in memory, by split."""


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """Rows as the bytes of JSONL files.

    Attributes:
        content: bytes of each file, by its name.
    """

    content: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify these rows."""
        found = hashlib.sha256()
        for name, data in sorted(self.content.items()):
            found.update(name.encode() + b"\0" + data)
        return found.hexdigest()[:8]

    def write(self, folder: Path, *, begun: bool) -> None:
        """Write the files into a run directory, unless they exist.

        Args:
            folder: the run directory.
            begun: whether the run has a checkpoint, so that its rows must not change.

        Raises:
            InputError: the run was trained on other rows.
        """
        for name, data in self.content.items():
            path = folder / name
            if path.is_file() and path.read_bytes() == data:
                continue
            if begun:
                other = "it had none in memory"
                if path.is_file() and not (other := _difference(path.read_bytes(), data)):
                    continue
                raise InputError(
                    "data" if name == ROWS["train"] else name.removesuffix(".jsonl"),
                    problem=f"{folder} belongs to a run with other rows: {other}",
                    fix=f"choose another `run_dir`, or remove {folder} to start again",
                )
            path.write_bytes(data)


def _difference(before: bytes, now: bytes) -> str:
    """How rows differ from those in a file, in words; "" where they are the same, however written."""
    was, now_is = ([json.loads(line) for line in content.splitlines()] for content in (before, now))
    numbered = [[_normal(row, f"line-{i}") for i, row in enumerate(rows, 1)] for rows in (was, now_is)]
    if numbered[0] == numbered[1]:
        return ""
    old, new = ([_normal(row, "-") for row in rows] for rows in (was, now_is))
    added, missing = Counter(new) - Counter(old), Counter(old) - Counter(new)
    if not added and not missing:
        return "the same in another order"
    return changed_rows(added.total(), len(new), missing.total(), len(old))


def _normal(row: Any, default_id: str) -> str:
    """A row in the one form of all that say the same; ``default_id`` is its id if it has none."""
    try:
        example = example_of(row, default_id)
    except InputError:  # refused when it is read
        return json.dumps(row, sort_keys=True)
    return json.dumps(as_dict(example), sort_keys=True)


@contextlib.contextmanager
def kept_rows(folder: Path, files: RowFiles | None) -> Iterator[None]:
    """A context in which rows that were in memory can be read from files in the run directory.

    Args:
        folder: the run directory.
        files: the rows; None if all rows are in files already.

    Raises:
        InputError: the rows are invalid (then their files are removed), or the run was trained on other rows.
    """
    if files is None:
        yield
        return
    begun = any((folder / "checkpoints").glob("[0-9]*"))
    with primary_first("rows in memory"):
        if is_primary():
            files.write(folder, begun=begun)
    try:
        with rows_named({folder / ROWS[split]: "data" if split == "train" else split for split in ROWS}):
            yield
    except InputError:
        for name in files.content if is_primary() and not begun else ():
            (folder / name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def rows_named(places: Mapping[Path, str]) -> Iterator[None]:
    """A context in which errors name a caller's row, ``data[2]``, instead of a line of a file.

    Args:
        places: for each file, the name of the argument with its rows.
    """
    try:
        yield
    except InputError as error:
        for path, name in places.items():
            if found := re.fullmatch(rf"{re.escape(str(path))}(?::(\d+))?(.*)", error.argument, re.DOTALL):
                line = "" if found[1] is None else f"[{int(found[1]) - 1}]"
                raise error.renamed(f"{name}{line}{found[2]}") from None
        raise


def as_jsonl(name: str, data: object) -> bytes:
    """Rows as JSON lines.

    Args:
        name: the caller's argument, for error messages.
        data: Examples, or dicts with the keys of a JSONL file's rows (docs/howto/own-data.md), or a
            DataFrame of pandas or polars with such columns.

    Raises:
        InputError: ``data`` is something else or empty, or a row has values that JSON cannot represent.

    >>> as_jsonl("data", [{"context": "hi", "label": "hello"}])
    b'{"context": "hi", "label": "hello"}\\n'
    """
    if hasattr(data, "columns"):
        data = _table_rows(name, data)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise InputError(
            name,
            expected="the path of a file, a task, or a list of rows (dicts or Examples)",
            got=type(data).__name__,
            is_argument=True,
        )
    lines = [_line(f"{name}[{i}]", row) for i, row in enumerate(data)]
    if not lines:
        raise InputError(name, expected="at least one row", got=0)
    return "".join(lines).encode("utf-8", "surrogatepass")


def _table_rows(name: str, table: Any) -> Any:
    """The rows of a pandas or polars DataFrame as dicts, without importing either; else the object itself.

    They are read as those of a file with a table: texts in cells may be lists, the lines of a context are its
    turns, further columns are ignored. Missing values are left out.

    Raises:
        InputError: a column is missing, there twice or nearly named as one of ours, or a cell is not a list.
    """
    columns = list(table.columns)
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise InputError(name, problem=f"the column {twice[0]!r} is there twice")
    if hasattr(table, "to_dicts"):
        records = table.to_dicts()
    elif hasattr(table, "to_dict"):
        records = table.to_dict("records")
    else:
        return table
    try:
        check_header([str(column) for column in columns])
    except InputError as error:
        raise error.at(name) from None
    rows = []
    for i, record in enumerate(records):
        row = {key: record[key] for key in KEYS if key in record and not _is_missing(record[key])}
        if repeats_header(record.values()):
            raise InputError(f"{name}[{i}]", problem=HEADER_AGAIN, fix="remove this row")
        numbers = (key for key in REQUIRED if isinstance(row.get(key), int | np.bool_))
        row |= {key: str(row[key]) for key in numbers}  # a label 4 is "4" in the file
        try:
            texts = cells_object({key: value for key, value in row.items() if isinstance(value, str)})
        except InputError as error:
            raise error.at(f"{name}[{i}]") from None
        names = {key: int(row[key]) for key in ("id", "group") if _is_whole(row.get(key))}
        rows.append({key: value for key, value in row.items() if not isinstance(value, str)} | texts | names)
    return rows


def _is_missing(value: Any) -> bool:
    """Whether a cell has no value: None, NaN, NaT or NA."""
    if value is None or isinstance(value, str | list | tuple | np.ndarray):
        return value is None
    try:
        return bool(value != value)  # noqa: PLR0124
    except TypeError:  # pandas.NA
        return True
    except ValueError:  # an array or a series
        return False


def _is_whole(value: Any) -> bool:
    """Whether it is a float of a whole number, as pandas makes them of a column with missing values."""
    return isinstance(value, float) and value.is_integer()


def _plain(value: Any) -> Any:
    """A numpy array or number as JSON data.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")


def _line(name: str, row: object) -> str:
    if isinstance(row, Example):
        for field in ("context", "candidates", "answers", "negatives"):
            if isinstance(value := getattr(row, field), str) or not isinstance(value, Iterable):
                raise InputError(f"{name}.{field}", expected="a tuple of texts", got=value)
        if isinstance(row.label, bool) or not isinstance(row.label, int | np.integer):
            raise InputError(f"{name}.label", expected="the place of the right candidate", got=row.label)
        if not 0 <= row.label < len(row.candidates):
            raise InputError(
                f"{name}.label", expected=f"a place among {len(row.candidates)} candidates", got=row.label
            )
        row = as_dict(row)
    if not isinstance(row, Mapping):
        raise InputError(name, expected="a dict or an Example", got=type(row).__name__)
    try:
        return json.dumps(dict(row), ensure_ascii=False, default=_plain) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"cannot be written as JSON ({first_line(error)})"
        raise InputError(name, problem=problem, fix="use texts and lists of texts") from None


def as_dict(example: Example) -> dict[str, Any]:
    """An example as a row of a JSONL file."""
    row: dict[str, Any] = {
        "id": example.id,
        "context": list(example.context),
        "label": example.label_text,
    }
    if len(example.candidates) > 1:
        row["candidates"] = list(example.candidates)
    if example.group not in ("", example.id):
        row["group"] = example.group
    for name in ("answers", "negatives", "scores"):
        value = getattr(example, name)
        if value is not None and len(value):
            row[name] = list(value)
    return row


@contextlib.contextmanager
def task_of(data: Any, *, all_tested: bool = True) -> Iterator[Task]:
    """A context with the task for some data; rows in memory are in a temporary file until it ends.

    Args:
        data: the path of a file, rows in memory, the name of a data set, or a task.
        all_tested: whether all rows of a file, or in memory, are validation and test rows; otherwise some
            are held out, as in training.

    Raises:
        InputError: the data are something else.
    """
    if isinstance(data, Task):
        yield data
    elif isinstance(data, str) and data in NAMED:
        yield task_named(data)
    elif isinstance(data, str | os.PathLike):
        check_folder(data, "data")
        yield _task_of_file(Path(os.fspath(data).removeprefix(OWN)), all_tested=all_tested)
    else:
        content = as_jsonl("data", data)
        with temporary_folder() as folder:  # only for rows in memory: not every system has one
            path = folder / ROWS["train"]
            full = "make room there, set TMPDIR, or give the path of a file"
            with written_to(path, full=full):
                path.write_bytes(content)
            with rows_named({path: "data"}):
                yield _task_of_file(path, all_tested=all_tested)


def drawn_among(task: Task, rank: Any) -> tuple[Task, Any]:
    """The task and the ``rank`` of a Python caller, whose number alone is for candidates that the task draws.

    Args:
        task: the task.
        rank: None, a RankConfig or a dict of its changes.
    """
    given, default = changed(RankConfig(), rank, "rank"), RankConfig()
    if given == default or dataclasses.replace(given, n=default.n) != default:
        return task, rank
    if not hasattr(task, "n_candidates"):
        return task, rank
    own: Any = task
    return dataclasses.replace(own, n_candidates=given.n), None


def _task_of_file(path: Path, *, all_tested: bool) -> OwnDataConfig:
    held_out = path if all_tested else None
    return OwnDataConfig(train=path, valid=held_out, test=held_out)
