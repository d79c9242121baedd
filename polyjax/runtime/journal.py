"""Results of long work, kept as they come, so that a killed process resumes."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyjax.runtime.files import written_to


class Journal:
    """A file of JSON lines: a header that says which work it is, then a line for each result.

    Args:
        path: of the file, whose folder exists.
        header: JSON data; what is there of other work, or is cut off in the middle of a line, is dropped.

    Attributes:
        done: results so far, in their order.
    """

    def __init__(self, path: Path, header: Any):
        self._path = path
        wanted = json.dumps(header, ensure_ascii=False)
        content = path.read_bytes() if path.exists() else b""
        kept, self.done = 0, []
        for number, line in enumerate(content.splitlines(keepends=True)):
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # a crash of the machine may leave anything
                value = None
            if value is None or (number == 0 and value != json.loads(wanted)):
                break
            kept += len(line)
            if number:
                self.done.append(value)
        if not kept:
            with written_to(path, full="make room"):
                path.write_text(wanted + "\n", encoding="utf-8")
        elif kept < len(content):
            with path.open("rb+") as file:
                file.truncate(kept)

    def add(self, results: Iterable[Any]) -> None:
        """Keep further results; they are on disk when this returns.

        Raises:
            InputError: they cannot be written, for example because the disk is full.
        """
        results = list(results)
        full = f"make room and run it again: {len(self.done):,} results are kept"
        with written_to(self._path, full=full), self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in results)
            file.flush()
            os.fsync(file.fileno())
        self.done += results
