"""Files that are written atomically (beside their place, then renamed), and locks between processes."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from polyjax.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file that is full."""
PARTIAL = ".partial"
"""Ending of a file or folder that is still being written."""


def is_possible(path: str | os.PathLike[str]) -> bool:
    r"""Whether a file or folder could have this path; ``Path.is_file`` raises for such as could not.

    >>> is_possible("nowhere"), is_possible("a" * 5000), is_possible("a\0b")
    (True, False, False)
    """
    try:
        os.stat(path)
    except ValueError:  # a null character
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end.

    Raises:
        InputError: the system has no folder for temporary files that can be written.
    """
    try:
        made = tempfile.TemporaryDirectory()
    except OSError as error:
        raise InputError(
            "TMPDIR",
            problem=f"no temporary folder can be made ({error.strerror})",
            fix="set it to a folder that can be written",
            is_argument=False,
        ) from None
    with made as folder:
        yield Path(folder)


@contextlib.contextmanager
def written_to(place: str | Path, *, full: str) -> Iterator[None]:
    """Turn an OSError inside, such as that of a full disk, into an InputError.

    Args:
        place: the file or folder that is written.
        full: what to do if the disk is full.

    >>> with written_to("out.jsonl", full="make room"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    polyjax.errors.InputError: out.jsonl: cannot be written (No space left on device); make room
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        fix = full if error.errno in FULL else None
        raise InputError.in_file(place, problem=problem, fix=fix) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all."""
    aside = path.with_name(path.name + PARTIAL)
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, complete or not at all; see ``utf8`` for what has no UTF-8."""
    write_bytes(path, utf8(text))


def utf8(text: str) -> bytes:
    r"""A text in UTF-8, lone surrogates included.

    Python names a path whose bytes the locale does not know by such surrogates. Where they stand for UTF-8,
    its bytes are written; otherwise they are escaped, as JSON escapes them.

    >>> utf8("h\udcc3\udca9") == "hé".encode(), utf8("\udce9 \ud83d")
    (True, b'\\udce9 \\ud83d')
    """
    return _ESCAPED.sub(_unescaped, text).encode("utf-8", "backslashreplace")


_ESCAPED = re.compile("[\udc80-\udcff]+")


def _unescaped(found: re.Match[str]) -> str:
    """The characters of escaped bytes; the surrogates themselves if the bytes are not UTF-8."""
    try:
        return found[0].encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        return found[0]


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array, complete or not at all."""
    aside = path.with_name(path.name + PARTIAL)
    with aside.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, complete or not at all; a file onto itself is left alone."""
    if source.resolve() == target.resolve():
        return
    aside = target.with_name(target.name + PARTIAL)
    shutil.copyfile(source, aside)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, target)


def check_new(folder: Path) -> None:
    """Raise InputError where a folder that is to be made is there."""
    if folder.exists():
        fix = "choose another folder, or remove this one"
        raise InputError.in_file(folder, problem="the folder already exists", fix=fix)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: what is written into the folder given is renamed at the end.

    Args:
        folder: must not exist yet.

    Raises:
        InputError: it exists, or cannot be written.
    """
    check_new(folder)
    aside = folder.with_name(folder.name + PARTIAL)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, folder)
    except OSError as error:
        raise InputError.in_file(folder, problem=f"cannot be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(
    path: Path, problem: str, *, fix: str = "wait for it", waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock file; the system frees it when this process ends, killed or not.

    Args:
        path: of the lock file; its folder exists, and errors name it.
        problem: what is wrong while another process holds the lock.
        fix: what to do then.
        waiting: called with the message instead of raising it; then the lock is waited for.

    Raises:
        InputError: another process holds it, and ``waiting`` is not given.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        held = InputError.in_file(path.parent, problem=problem, fix=fix)
        if waiting is None:
            raise held from None
        waiting(str(held))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
