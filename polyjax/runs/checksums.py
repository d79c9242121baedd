"""Checks that a checkpoint's files are as they were written."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from polyjax.errors import InputError
from polyjax.runs.layout import CHECKSUMS
from polyjax.runtime.files import write_text

_AT_ONCE = 1 << 22


class Checksums:
    """sha256 of the files of each saved step, in a folder beside the checkpoints.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path):
        self._folder = run_dir / CHECKSUMS

    def write(self, step: Path, *, keep: Iterable[int]) -> None:
        """Record the files of a step's folder, and drop the records of all steps except those to keep."""
        self._folder.mkdir(exist_ok=True)
        kept = {str(number) for number in keep} | {step.name}
        for old in self._folder.glob("*.txt"):
            if old.stem not in kept:
                old.unlink()
        lines = [f"{_digest(file)} {file.stat().st_size} {file.relative_to(step)}\n" for file in _files(step)]
        write_text(self._folder / f"{step.name}.txt", "".join(lines))

    def check(self, step: Path, *, item: str = "", required: bool = False) -> None:
        """Raise InputError if a file of a step's folder is missing or differs from what was written.

        Args:
            step: its folder.
            item: check only this part of it.
            required: whether a step without checksums is an error: its save was not finished.
        """
        noted = self._folder / f"{step.name}.txt"
        if not noted.exists():
            if required:
                raise _damaged(step, "it has no checksums: its save was not finished")
            return
        lines = noted.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines:
            raise _damaged(noted, "it is empty")
        for line in lines:
            match = re.fullmatch(r"([0-9a-f]{64}) (\d+) (.+)", line)
            if match is None:
                raise _damaged(noted, f"{line[:60]!r} is not a checksum")
            digest, size, name = match.groups()
            if not name.startswith(item):
                continue
            file = step / name
            if not file.is_file():
                raise InputError.in_file(file, problem="missing")
            if file.stat().st_size != int(size):
                raise _damaged(file, f"it has {file.stat().st_size} bytes, {size} were written")
            if _digest(file) != digest:
                raise _damaged(file, "its sha256 differs from that of what was written")


def _damaged(path: Path, why: str) -> InputError:
    return InputError.in_file(path, problem=f"damaged ({why})")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE):
            found.update(part)
    return found.hexdigest()
