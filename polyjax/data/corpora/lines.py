"""Lines of files that may be compressed, and compressed files cut into plain ones of bounded size."""

import contextlib
import dataclasses
import gzip
import io
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polyjax.errors import InputError
from polyjax.runtime.files import PARTIAL, write_text
from polyjax.runtime.progress import meter

MAX_LINE = 10 * 2**20
"""Bytes of a line; a longer line is not a conversation."""
MB = 10**6
DONE = "done.json"
"""In a folder of parts: what they are. It stays when they are removed."""
REMOVED = "removed"
"""In a folder of parts that are no longer there."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A plain file that was cut out of a compressed one.

    Attributes:
        path: of the file.
        origin: its first byte in the unpacked whole.
        size: in bytes.
    """

    path: str
    origin: int
    size: int


def is_compressed(path: str) -> bool:
    """Whether a file's name says so."""
    return path.endswith((".gz", ".zst"))


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """All lines of a file, decompressed, and the byte where each begins; shows progress.

    Raises:
        InputError: the file is damaged or cannot be read, or a line is too long.
    """
    at = 0
    with reading(path), open(path, "rb") as packed, _unpacked(packed, path) as file:
        seen = 0
        with meter(f"reading {Path(path).name}", Path(path).stat().st_size // MB, unit="MB") as shown:
            while line := file.readline(MAX_LINE + 1):
                yield at, _checked(line, path, at)
                at += len(line)
                if (done := packed.tell() // MB) > seen:
                    shown.move_to(done)
                    seen = done


def lines_between(path: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines of a plain file that begin from byte ``start`` on and before ``end``, and where each begins."""
    with reading(path), open(path, "rb") as file:
        at = start
        if at:  # the line that the piece before ends with
            file.seek(at - 1)
            at += len(file.readline(MAX_LINE + 1)) - 1
        while at < end and (line := file.readline(MAX_LINE + 1)):
            yield at, _checked(line, path, at)
            at += len(line)


def _checked(line: bytes, path: str, at: int) -> bytes:
    if len(line) > MAX_LINE:
        problem = f"longer than {MAX_LINE / 2**20:.0f} MB"
        raise InputError.in_row(problem=problem).at(f"{path}, the line at byte {at}")
    return line


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Errors of reading and decompressing become an InputError that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # of an optional package
            raise
        raise InputError.in_file(path, problem=f"cannot be read: {error}") from None


def unpack(path: str, folder: Path, *, size: int) -> list[Part]:
    """A compressed file as plain ones of about ``size`` bytes, cut between lines; made once.

    One line is in memory at a time. An interrupted unpacking starts again; the folder appears when complete.

    Raises:
        InputError: the file is damaged.
    """
    if not (folder / DONE).exists():
        with new_folder(folder) as aside:
            parts = _cut(path, aside, size)
            write_text(aside / DONE, json.dumps(parts))
    parts = json.loads((folder / DONE).read_text(encoding="utf-8"))
    return [Part(str(folder / str(number)), *part) for number, part in enumerate(parts)]


def _cut(path: str, folder: Path, size: int) -> list[tuple[int, int]]:
    """Origin and size of each part."""
    parts: list[tuple[int, int]] = []
    begun = at = 0
    with contextlib.ExitStack() as stack:
        part: Any = None
        for at, line in lines(path):
            if part is None or at - begun >= size:
                if part is not None:
                    parts.append((begun, at - begun))
                stack.close()
                part, begun = stack.enter_context((folder / str(len(parts))).open("wb")), at
            part.write(line)
            at += len(line)
        if part is not None:
            parts.append((begun, at - begun))
    return parts


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, renamed to its final name at the end; what a killed process left is removed."""
    aside = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.replace(folder)


def remove_parts(folder: Path) -> None:
    """Remove a folder's parts, and keep the record of what they were."""
    if not is_removed(folder):
        write_text(folder / REMOVED, "")
    for path in folder.iterdir():
        if path.name not in (DONE, REMOVED):
            path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder of parts; it is renamed first, so that a partly removed one is never used."""
    aside = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def is_removed(folder: Path) -> bool:
    """Whether ``remove_parts`` emptied this folder."""
    return (folder / REMOVED).exists()


def _unpacked(packed: BinaryIO, path: str) -> Any:
    """A file's bytes, decompressed as its name says."""
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=packed)
    if path.endswith(".zst"):
        try:
            import zstandard  # pyright: ignore[reportMissingImports]  (extra beam)
        except ModuleNotFoundError:
            fix = "run: pip install 'polyjax[beam]'"
            raise InputError.in_file(path, problem="reading it needs zstandard", fix=fix) from None
        # Reddit's dumps are compressed with a window of 2 GiB.
        return io.BufferedReader(
            _Unpacked(packed, zstandard.ZstdDecompressor(max_window_size=2**31)), 1 << 20
        )
    return packed


class _Unpacked(io.RawIOBase):
    """The bytes of a .zst file; unlike zstandard's own reader it detects a truncated file."""

    def __init__(self, packed: BinaryIO, unpacker: Any):
        self._packed, self._unpacker = packed, unpacker
        self._frame: Any = None
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        while not self._left:
            packed = self._packed.read(1 << 16)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of its data")
                return 0
            found = b""
            while packed:
                if self._frame is None or self._frame.eof:
                    self._frame = self._unpacker.decompressobj()
                found += self._frame.decompress(packed)
                packed = self._frame.unused_data if self._frame.eof else b""
            self._left = memoryview(found)
        n = min(len(buffer), len(self._left))
        buffer[:n] = self._left[:n]
        self._left = self._left[n:]
        return n
