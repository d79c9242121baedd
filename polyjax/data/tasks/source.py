"""The files of a published data set: found, and checked to be the official ones."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.errors import InputError

SourceFolder = Annotated[Path, tyro.conf.arg(name="data-dir", prefix_name=False)]
"""Where the user keeps a data set's files: ``--data-dir``."""

PreparedFolder = Annotated[Path, tyro.conf.arg(name="prepared-dir", prefix_name=False)]
"""Where rows are kept, prepared: ``--prepared-dir``."""

Unverified = Annotated[bool, tyro.conf.arg(name="unverified", prefix_name=False)]
"""Whether to accept files that are not known to be the official ones: ``--unverified``."""


@dataclasses.dataclass(frozen=True)
class OfficialFile:
    """A file as it was published.

    Attributes:
        name: of the file.
        size: bytes; None where it is not known.
        md5: of the bytes; None where it is not known.
    """

    name: str
    size: int | None = None
    md5: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set was published.

    Attributes:
        task: its name here.
        title: its name there.
        page: where it is described.
    """

    task: str
    title: str
    page: str


class MissingFile(InputError):
    """A file of a published data set is not where it should be."""


def find(folder: Path, file: OfficialFile, source: Source) -> Path:
    """The file's path in the user's folder, whatever its content.

    Raises:
        MissingFile: the message says where it was published.
    """
    path = folder / file.name
    if not path.is_file():
        raise MissingFile.in_file(
            path,
            problem=f"the file is missing; it is part of {source.title}, see {source.page}",
            fix="put it there, or name its folder: `task.source`",
        )
    return path


def locate(folder: Path, file: OfficialFile, source: Source, *, unverified: bool) -> tuple[Path, bool]:
    """The file in the user's folder, and whether it is known to be the official one.

    Args:
        folder: where the user keeps the data set.
        file: what is looked for.
        source: of the data set.
        unverified: accept a file that is not, or not known to be, the official one.

    Raises:
        InputError: it is not the official file and ``unverified`` was not asked for.
        MissingFile: it is not there.
    """
    path = find(folder, file, source)
    if file.size is None or file.md5 is None:
        difference = "its official size and md5 are not known"
    elif (size := path.stat().st_size) != file.size:
        difference = f"it has {size:,} bytes, the official file {file.size:,}"
    elif (md5 := _md5(path)) != file.md5:
        difference = f"it has md5 {md5}, the official file {file.md5}"
    else:
        return path, True
    if not unverified:
        raise InputError.in_file(
            path,
            problem=f"not known to be the official file of {source.title}: {difference}",
            fix="set `task.unverified` to use it anyway (the report will say so)",
        )
    return path, False


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def check_fractions(valid: float, test: float) -> None:
    """Raise InputError for fractions of a training file that cannot be set aside."""
    for name, share in (("valid_fraction", valid), ("test_fraction", test)):
        if not 0 < share < 1:
            raise InputError(f"task.{name}", expected="more than 0 and less than 1", got=share)
    if valid + test >= 1:
        raise InputError(
            "task.valid_fraction",
            problem=f"with a `task.test_fraction` of {test} it leaves nothing to train on",
            got=valid,
        )


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; without a byte order mark.

    Raises:
        InputError: a line is not UTF-8; raised when it is reached.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problem = f"not valid UTF-8: {error.reason} at byte {error.start}"
                raise InputError.in_file(path, number, problem=problem) from None


def note_of(name: str, official: bool) -> str:
    """What a report says of a split's files."""
    if official:
        return ""
    return f"{name}: not known to be the official file; do not compare with published results"
