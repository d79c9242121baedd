"""The index that a server searches, which may change while it is searched."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

from polyjax.errors import InputError
from polyjax.ranker import Ranker
from polyjax.retrieval import Index, Method, Results


class UnknownCandidate(Exception):
    """A candidate that is to be removed is not in the index."""


@dataclasses.dataclass(frozen=True)
class _Opened:
    """An index whose searches are compiled.

    Attributes:
        index: searched, and never changed.
        only_scans: a scan is its fastest search; the programs of others are not compiled.
    """

    index: Index
    only_scans: bool = True


class LiveIndex:
    """An index of a ranker. A search keeps the candidates that it began with.

    Args:
        ranker: what the index was made with.
        index: from ``Ranker.index`` or ``Ranker.open_index``; it can change where it is kept in a folder.
        max_top_n: results of a search at most.
    """

    def __init__(self, ranker: Ranker, index: Index, *, max_top_n: int = 100):
        self._ranker, self._most = ranker, max_top_n
        self._opened = _Opened(index)
        self._changing = threading.Lock()

    @property
    def can_change(self) -> bool:
        """Whether it is kept on disk."""
        return self._opened.index.folder is not None

    def __len__(self) -> int:
        """Candidates that can be found."""
        return len(self._opened.index)

    @property
    def dtype(self) -> str:
        """Of the kept vectors."""
        return self._opened.index.dtype

    def compile(self) -> int:
        """Compile what searches need; the number of programs."""
        self._opened, programs = _compiled(self._opened.index, self._most)
        return programs

    def search(self, turns: Sequence[str], top_n: int, method: Method) -> Results:
        """The best candidates of a context.

        Where a scan is the fastest, every method is a scan, which is certified by its nature.
        """
        opened = self._opened
        return opened.index.search(list(turns), top_n, method="scan" if opened.only_scans else method)

    def add(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        """Add candidates: how many are new, and the id of each text, new or not.

        Raises:
            InputError: the index cannot be changed.
        """
        with self._changing:
            index = self._ranker.open_index(self._folder())
            before = len(index)
            # Nobody sends again what a kill interrupted.
            ids = index.add(texts, resume=False)
            self._opened, _ = _compiled(index, self._most)
            return len(index) - before, ids

    def remove(self, *, ids: Sequence[int] = (), texts: Sequence[str] = ()) -> int:
        """Take candidates out, by number or by text, all or none; how many there were.

        Raises:
            UnknownCandidate: one of them was never there.
            InputError: the index cannot be changed.
        """
        with self._changing:
            index = self._ranker.open_index(self._folder())
            try:
                n = index.remove(texts=texts) if texts else index.remove(ids=ids)
            except InputError as error:
                if not error.argument.startswith(("ids", "texts")):
                    raise
                if texts:
                    problem = "`documents`: one of them is not in the index, or may be several"
                else:
                    problem = "`ids`: one of them was never given"
                raise UnknownCandidate(problem) from error
            self._opened, _ = _compiled(index, self._most)
            return n

    def _folder(self) -> Path:
        folder = self._opened.index.folder
        if folder is None:
            raise InputError("index", problem="it is in memory only", fix="build it in a folder")
        return folder


def _compiled(index: Index, most: int) -> tuple[_Opened, int]:
    """An index with all programs of searches for up to so many candidates, and their number."""
    before, only_scans = index.compilations, True
    for top_n in sorted({min(1 << n, most) for n in range(most.bit_length() + 1)}):
        index.compile(top_n)
        only_scans = index.search("a", top_n).rank is None
        if not only_scans:
            index.search("a", top_n, method="quick")
    return _Opened(index, only_scans), index.compilations - before
