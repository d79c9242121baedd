"""The index that a server searches; it may change during a search."""

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from polyjax.errors import InputError
from polyjax.ranker import Ranker
from polyjax.retrieval import Index, Method, Results


class UnknownCandidate(Exception):
    """A candidate to be removed is not in the index."""


class RebuiltIndex(Exception):
    """Another process built the index again, so that clients know ids of other candidates."""


@dataclasses.dataclass(frozen=True)
class _Opened:
    """An index with its compiled search programs.

    Attributes:
        index: the index; it is never changed.
        only_scans: whether a scan is its fastest search, so that programs of other methods are not compiled.
    """

    index: Index
    only_scans: bool = True


class LiveIndex:
    """An index that can change while it is searched; a search uses the candidates at its start.

    Args:
        ranker: the ranker that the index was built with.
        index: from ``Ranker.index`` or ``Ranker.open_index``. It can only change if it is in a folder.
        max_top_n: maximum number of results of a search.
    """

    def __init__(self, ranker: Ranker, index: Index, *, max_top_n: int = 100):
        self._ranker, self.max_top_n = ranker, max_top_n
        self._opened = _Opened(index)
        self._changing = threading.Lock()

    @property
    def can_change(self) -> bool:
        """Whether candidates can be added and removed: only if the index is on disk."""
        return self._opened.index.folder is not None

    def __len__(self) -> int:
        """Number of candidates, without removed ones."""
        return len(self._opened.index)

    @property
    def dtype(self) -> str:
        """The dtype of the stored vectors."""
        return self._opened.index.dtype

    def compile(self) -> int:
        """Compile the programs of searches; returns their number."""
        self._opened, programs = _compiled(self._opened.index, self.max_top_n)
        return programs

    def search(self, vectors: np.ndarray, mask: np.ndarray, top_n: int, method: Method) -> Results:
        """The best candidates of a context.

        If a scan is the fastest method, it is used whatever ``method`` is; its results are always exact.

        Args:
            vectors: of the context, float32 [m, d].
            mask: which of them there are, [m].
            top_n: maximum number of results.
            method: see ``Index.search``.
        """
        opened = self._opened
        method = "scan" if opened.only_scans else method
        return opened.index.search_encoded(vectors[None], mask[None], top_n, method=method)[0]

    def add(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        """Add candidates; returns the number of new ones, and the id of each text, new or not.

        Raises:
            InputError: the index is in memory only, or cannot be written.
            RebuiltIndex: another process built it again.
        """
        with self._changing:
            index = self._current()
            before = len(index)
            # Clients do not repeat a request that a kill interrupted: discard unfinished additions.
            ids = index.add(texts, resume=False)
            self._opened, _ = _compiled(index, self.max_top_n)
            return len(index) - before, ids

    def remove(self, *, ids: Sequence[int] = (), texts: Sequence[str] = ()) -> int:
        """Remove candidates, by id or by text, all or none; returns the number of candidates removed.

        Raises:
            UnknownCandidate: an id was never assigned, or a text is not in the index or is ambiguous.
            InputError: the index is in memory only, or cannot be written.
            RebuiltIndex: another process built it again.
        """
        with self._changing:
            index = self._current()
            try:
                n = index.remove(texts=texts) if texts else index.remove(ids=ids)
            except InputError as error:
                if not error.argument.startswith(("ids", "texts")):
                    raise
                where = error.argument.replace("texts", "documents")
                what = "is not in the index, or may be several" if texts else "was never given"
                raise UnknownCandidate(f"`{where}`: {what}") from error
            self._opened, _ = _compiled(index, self.max_top_n)
            return n

    def _current(self) -> Index:
        """The index as it is on disk now: other processes may have changed it.

        Raises:
            InputError: it is in memory only.
            RebuiltIndex: another process built it again.
        """
        opened = self._opened.index
        if opened.folder is None:
            raise InputError("index", problem="it is in memory only", fix="build it in a folder")
        index = self._ranker.open_index(opened.folder)
        if index.build != opened.build:
            raise RebuiltIndex("the index was built again by another process; the server must be restarted")
        return index


def _compiled(index: Index, most: int) -> tuple[_Opened, int]:
    """Compile the programs of searches for up to ``most`` results; returns the index and their number."""
    before, only_scans = index.compilations, True
    for top_n in sorted({min(1 << n, most) for n in range(most.bit_length() + 1)}):
        index.compile(top_n)
        only_scans = index.search("a", top_n).rank is None
        if not only_scans:
            index.search("a", top_n, method="quick")
    return _Opened(index, only_scans), index.compilations - before
