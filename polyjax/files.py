"""Files written whole or not at all: aside first, then renamed, so that no reader sees half of one."""

import os
import shutil
from pathlib import Path

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


def copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all; a file onto itself is left alone."""
    if source.resolve() == target.resolve():
        return
    aside = target.with_name(target.name + PARTIAL)
    shutil.copyfile(source, aside)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, target)
