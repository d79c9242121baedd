"""Files known by what they hold: a corpus that was moved or touched is the same, an edited one is not."""

import contextlib
import hashlib
import json
from pathlib import Path

from polyjax.runtime.files import write_text
from polyjax.runtime.progress import meter

REMEMBERED = "contents.json"
BLOCK = 1 << 24
MB = 10**6
SLOW = 200 * MB
"""Bytes that take a second or so, which is worth a word."""


def content_hash(path: str, folder: Path) -> str:
    """A hash of a file's bytes, hexadecimal.

    Args:
        path: of the file.
        folder: where the hash is remembered, for as long as the file's size and time are the same.

    Raises:
        OSError: the file cannot be read, or the folder not be written.
    """
    found = Path(path).stat()
    state = [found.st_size, found.st_mtime_ns]
    remembered = _remembered(folder / REMEMBERED)
    key = str(Path(path).absolute())
    if key in remembered and remembered[key][:2] == state:
        return remembered[key][2]
    digest, done = hashlib.sha256(), 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        slow = found.st_size > SLOW
        title = f"hashing {Path(path).name}"
        shown = stack.enter_context(meter(title, found.st_size // MB, unit="MB")) if slow else None
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            if shown is not None:
                shown.move_to(done // MB)
    remembered[key] = [*state, digest.hexdigest()]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REMEMBERED, json.dumps(remembered))
    return digest.hexdigest()


def _remembered(path: Path) -> dict[str, list]:
    """What was written there; empty if it cannot be read, and then the files are hashed again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    valid = isinstance(found, dict) and all(isinstance(v, list) and len(v) == 3 for v in found.values())
    return found if valid else {}
