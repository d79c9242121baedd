"""The ids of texts, each tokenised once: in memory as flat arrays, on disk for the next run."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import first_line
from polyjax.runtime.files import PARTIAL
from polyjax.runtime.progress import console

Ids = list[int]
MAX_LOOSE_TEXTS = 1_000_000
"""Beyond so many, a long-lived server forgets the ids of what it was asked, and begins again."""
LEAST_FILED = 5_000
"""New texts that are worth a flat array, and a file."""
FORMAT = b"1"


class TokenStore:
    """Texts -> ids without special tokens.

    A split's texts come at once, and stay as one flat int32 array; where a folder is given that array is a
    memory-mapped file there, named by a hash of the tokenizer and the texts, and made once for all runs,
    processes and workers that share the folder. Few texts, as a server is asked, are kept one by one.

    Args:
        tokenizer: makes the ids.
        folder: of the files; None for memory only.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path | None = None):
        self.tokenizer = tokenizer
        self._folder = folder
        self._loose: dict[str, Ids] = {}
        self._tables: list[_Table] = []

    def add(self, texts: Iterable[str]) -> None:
        """Tokenise those of the texts that are new, all at once."""
        if len(self._loose) > MAX_LOOSE_TEXTS:
            self._loose.clear()
        new = list(dict.fromkeys(text for text in texts if not self._has(text)))
        if len(new) < LEAST_FILED:
            self._loose.update(zip(new, self.tokenizer.encode(new), strict=True))
        else:
            self._tables.append(_Table(new, self._flat(new)))

    def ids(self, text: str) -> Ids:
        """A text's ids; of one that was not added, made now."""
        for table in self._tables:
            place = table.places.get(text)
            if place is not None:
                return table.flat[table.starts[place] : table.starts[place + 1]].tolist()
        found = self._loose.get(text)
        return self.tokenizer.encode([text])[0] if found is None else found

    def length(self, text: str) -> int:
        """How many ids a text has."""
        for table in self._tables:
            place = table.places.get(text)
            if place is not None:
                return int(table.starts[place + 1] - table.starts[place])
        return len(self.ids(text))

    def _has(self, text: str) -> bool:
        return text in self._loose or any(text in table.places for table in self._tables)

    def _flat(self, texts: Sequence[str]) -> np.ndarray:
        """Lengths of all texts, then their ids, int32; from the folder where they are there."""
        if self._folder is None:
            return self._tokenised(texts)
        path = self._folder / f"{self._name(texts)}.npy"
        if (found := _mapped(path, len(texts))) is None:
            flat = self._tokenised(texts)
            try:
                _write(path, flat)
            except OSError as error:  # memory does as well
                console.print(f"{path} could not be written, so the next run tokenises again: {error}")
                return flat
            found = _mapped(path, len(texts))
        return self._tokenised(texts) if found is None else found

    def _tokenised(self, texts: Sequence[str]) -> np.ndarray:
        ids = self.tokenizer.encode(texts)
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        return np.concatenate(
            [lengths, np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum())]
        )

    def _name(self, texts: Sequence[str]) -> str:
        digest = hashlib.sha256(FORMAT)
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save(Path(folder))
            for path in sorted(Path(folder).iterdir()):
                digest.update(path.name.encode() + path.read_bytes())
        for text in texts:
            digest.update(b"\0" + text.encode("utf-8"))
        return digest.hexdigest()[:32]


class _Table:
    """Texts and their ids in one array."""

    def __init__(self, texts: Sequence[str], flat: np.ndarray):
        self.places = {text: place for place, text in enumerate(texts)}
        self.flat = flat
        n = len(texts)
        self.starts = np.concatenate([[n], n + np.cumsum(flat[:n], dtype=np.int64)])


def _mapped(path: Path, n: int) -> np.ndarray | None:
    """The array of n texts in a file; None where it is absent or damaged, which is said."""
    if not path.exists():
        return None
    try:
        flat = np.load(path, mmap_mode="r", allow_pickle=False)
        if flat.dtype == np.int32 and flat.ndim == 1 and len(flat) == n + flat[:n].sum(dtype=np.int64):
            return flat
        problem = "it holds something else"
    except (OSError, ValueError, EOFError) as error:
        problem = first_line(error)
    console.print(f"{path} is made again: {problem}")
    return None


def _write(path: Path, flat: np.ndarray) -> None:
    """Write whole or not at all, whatever other processes write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, flat)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
