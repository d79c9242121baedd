"""Token ids of texts, each text tokenised once: arrays in memory, or files for the next run.

Ids of training texts are kept permanently, those of a ranker's requests until newer texts need the room.
"""

import hashlib
import itertools
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.data.tokenizers import Tokenizer, tokenizer_files
from polyjax.errors import first_line
from polyjax.runtime.files import PARTIAL
from polyjax.runtime.progress import console

Ids = np.ndarray
"""Token ids, int32 [t]. Read-only: several sequences may share their memory."""
CACHE_BYTES = 64 << 20
"""Bytes for the ids of texts that are not kept permanently, and for these texts."""
LARGE_BYTES = 1 << 20
"""A text that takes more than this, with its ids, is kept until the next ``add`` only."""
LEAST_FILED = 5_000
"""Number of new texts from which they are kept as one flat array and a file."""
FORMAT = b"1"
_OVERHEAD = 250
"""Bytes of a text's entry besides the text and its ids: the objects and their place in a dictionary."""


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A sha256 of all that a tokenizer depends on."""
    return _with_tokenizer(hashlib.sha256(), tokenizer).hexdigest()


def _with_tokenizer(digest: Any, tokenizer: Tokenizer) -> Any:
    for name, content in sorted(tokenizer_files(tokenizer).items()):
        digest.update(name.encode() + content)
    return digest


class TokenStore:
    """Texts -> ids without special tokens. Threads may share one.

    Many new texts added together become a table, one flat int32 array. With a folder the array is a
    memory-mapped file there, named by a hash of the tokenizer and the texts, and made once for all runs,
    processes and workers that share the folder. Few texts are kept one by one.

    Args:
        tokenizer: makes the ids.
        folder: of the files; None for memory only.
        limit: bytes of what is not kept permanently; the texts of the latest ``add`` may take more.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path | None = None, *, limit: int = CACHE_BYTES):
        self.tokenizer = tokenizer
        self._folder, self._limit = folder, limit
        self._tables: tuple[_Table, ...] = ()  # replaced, never changed: readers need no lock
        self._kept: dict[str, Ids] = {}
        self._recent: dict[str, Ids] = {}  # the least recently added first
        self._recent_bytes = 0
        self._large: set[str] = set()  # of the recent ones
        self._lock = threading.Lock()

    def add(self, texts: Iterable[str], *, keep: bool = False) -> None:
        """Tokenise those of the texts that are new, all at once.

        Args:
            texts: in any number.
            keep: keep them permanently, not only until newer texts need the room.
        """
        asked = dict.fromkeys(texts)
        with self._lock:
            new = self._refresh(asked, keep)
        found: Mapping[str, Ids] = {}
        table = None
        if len(new) < LEAST_FILED:
            encoded = self.tokenizer.encode(new) if new else []
            found = {text: np.array(ids, np.int32) for text, ids in zip(new, encoded, strict=True)}
        else:
            table = _Table(new, self._flat(new), kept=keep)
        with self._lock:
            if table is not None:
                self._tables = (*self._tables, table)
            elif keep:
                self._kept |= found
            else:
                for text, ids in found.items():
                    self._remember(text, ids)
            self._forget(asked, table)

    def ids(self, text: str) -> Ids:
        """A text's ids, int32 [t]; tokenised now if it was not added or was dropped."""
        for table in self._tables:
            place = table.places.get(text)
            if place is not None:
                return table.flat[table.starts[place] : table.starts[place + 1]]
        found = self._kept.get(text)
        if found is None:
            found = self._recent.get(text)
        return np.array(self.tokenizer.encode([text])[0], np.int32) if found is None else found

    def length(self, text: str) -> int:
        """How many ids a text has."""
        return len(self.ids(text))

    @property
    def n_bytes(self) -> int:
        """Bytes of what is not kept permanently."""
        return self._recent_bytes + sum(table.n_bytes for table in self._tables if not table.kept)

    def __getstate__(self) -> dict:
        """Locks are not pickled to worker processes."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        """Restore with a lock of its own."""
        vars(self).update(state)
        self._lock = threading.Lock()

    def _refresh(self, asked: Iterable[str], keep: bool) -> list[str]:
        """The texts that are new; the others become the most recent ones, or are kept permanently."""
        new = []
        used: dict[int, _Table] = {}
        for text in asked:
            table = next((table for table in self._tables if text in table.places), None)
            if table is not None:
                used[id(table)] = table
            elif text in self._kept:
                pass
            elif (ids := self._forget_one(text)) is None:
                new.append(text)
            elif keep:
                self._kept[text] = ids
            else:
                self._remember(text, ids)
        for table in used.values():
            table.kept |= keep
        if used:
            self._tables = (*(t for t in self._tables if id(t) not in used), *used.values())
        return new

    def _remember(self, text: str, ids: Ids) -> None:
        self._forget_one(text)  # another thread may have added them meanwhile
        self._recent[text] = ids
        self._recent_bytes += _n_bytes(text, ids)
        if _n_bytes(text, ids) > LARGE_BYTES:
            self._large.add(text)

    def _forget_one(self, text: str) -> Ids | None:
        ids = self._recent.pop(text, None)
        if ids is not None:
            self._recent_bytes -= _n_bytes(text, ids)
            self._large.discard(text)
        return ids

    def _forget(self, asked: Mapping[str, None], newest: "_Table | None") -> None:
        """Drop large texts, and the least recent ones beyond the limit, except those just added."""
        for text in self._large - asked.keys():
            self._forget_one(text)
        for table in self._tables:
            if self.n_bytes <= self._limit:
                return
            if not table.kept and table is not newest and not any(text in table.places for text in asked):
                self._tables = tuple(t for t in self._tables if t is not table)
        while self._recent and self.n_bytes > self._limit:
            text = next(iter(self._recent))
            if text in asked:
                return
            self._forget_one(text)

    def _flat(self, texts: Sequence[str]) -> np.ndarray:
        """Lengths of all texts, then their ids, int32; read from the folder if they are there."""
        if self._folder is None:
            return self._tokenised(texts)
        path = self._folder / f"{self._name(texts)}.npy"
        if (found := _mapped(path, len(texts))) is None:
            flat = self._tokenised(texts)
            try:
                _write(path, flat)
            except OSError as error:  # keep it in memory instead
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
        digest = _with_tokenizer(hashlib.sha256(FORMAT), self.tokenizer)
        for text in texts:
            digest.update(b"\0" + text.encode("utf-8"))
        return digest.hexdigest()[:32]


class _Table:
    """Texts and their ids in one array.

    Attributes:
        kept: whether permanently.
    """

    def __init__(self, texts: Sequence[str], flat: np.ndarray, *, kept: bool):
        self.kept = kept
        self.places = {text: place for place, text in enumerate(texts)}
        self.flat = np.asarray(flat)  # slices of a memmap take several times as long
        n = len(texts)
        self.starts = np.concatenate([[n], n + np.cumsum(flat[:n], dtype=np.int64)])
        self.n_bytes = self.flat.nbytes + sum(sys.getsizeof(text) + _OVERHEAD for text in texts)


def _n_bytes(text: str, ids: Ids) -> int:
    return sys.getsizeof(text) + ids.nbytes + _OVERHEAD


def _mapped(path: Path, n: int) -> np.ndarray | None:
    """The array of n texts in a file; None if it is absent, or damaged, which is reported."""
    if not path.exists():
        return None
    try:
        flat = np.load(path, mmap_mode="r", allow_pickle=False)
        if flat.dtype == np.int32 and flat.ndim == 1 and len(flat) == n + flat[:n].sum(dtype=np.int64):
            return flat
        problem = "its content does not match"
    except (OSError, ValueError, EOFError) as error:
        problem = first_line(error)
    console.print(f"{path} is made again: {problem}")
    return None


def _write(path: Path, flat: np.ndarray) -> None:
    """Write the whole file or nothing, even if other processes write the same file."""
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
