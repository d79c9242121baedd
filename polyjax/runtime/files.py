"""Files written whole or not at all: aside first, then renamed, so that no reader sees half of one."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from polyjax.errors import InputError

PARTIAL = ".partial"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(path.name + PARTIAL)
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array whole or not at all."""
    aside = path.with_name(path.name + PARTIAL)
    with aside.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all; a file onto itself is left alone."""
    if source.resolve() == target.resolve():
        return
    aside = target.with_name(target.name + PARTIAL)
    shutil.copyfile(source, aside)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, target)


@contextlib.contextmanager
def exclusive_lock(
    path: Path, message: str, *, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock file; the system frees it when this process ends, killed or not.

    Args:
        path: of the lock file, whose folder exists.
        message: of the error.
        waiting: told the message instead, while another process holds the lock, and then it is waited for.

    Raises:
        InputError: another process holds it, and it is not waited for.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if waiting is None:
                raise InputError(message) from None
            waiting(message)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
