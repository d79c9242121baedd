"""Whether a checkpoint's files are as they were written."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from polyjax.files import write_text
from polyjax.types import InputError

FOLDER = "checksums"
_AT_ONCE = 1 << 22


class Checksums:
    """sha256 of the files of each saved step, in a folder beside the checkpoints.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path):
        self._folder = run_dir / FOLDER

    def write(self, step: Path, *, keep: Iterable[int]) -> None:
        """Note the files of a step's folder, and forget all steps but those to keep."""
        self._folder.mkdir(exist_ok=True)
        kept = {str(number) for number in keep} | {step.name}
        for old in self._folder.glob("*.txt"):
            if old.stem not in kept:
                old.unlink()
        lines = [f"{_digest(file)} {file.stat().st_size} {file.relative_to(step)}\n" for file in _files(step)]
        write_text(self._folder / f"{step.name}.txt", "".join(lines))

    def check(self, step: Path) -> bool:
        """Whether a step's files are known to be as they were written.

        Of a step that was saved just before a kill, or by an earlier version, nothing is known: False.

        Raises:
            InputError: a file is missing or damaged.
        """
        noted = self._folder / f"{step.name}.txt"
        if not noted.exists():
            return False
        for line in noted.read_text(encoding="utf-8").splitlines():
            digest, size, name = line.split(" ", 2)
            file = step / name
            if not file.is_file():
                raise InputError(f"{file} is missing")
            if file.stat().st_size != int(size):
                raise InputError(
                    f"{file} is damaged: it has {file.stat().st_size} bytes, {size} were written"
                )
            if _digest(file) != digest:
                raise InputError(f"{file} is damaged: its sha256 is not that of what was written")
        return True


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE):
            found.update(part)
    return found.hexdigest()
