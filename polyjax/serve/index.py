"""The index that a server searches, which may change while it is searched."""

import threading
from collections.abc import Sequence
from pathlib import Path

from polyjax.errors import InputError
from polyjax.ranker import Ranker
from polyjax.retrieval.index.build import add_to_index, check_dual
from polyjax.retrieval.index.change import remove
from polyjax.retrieval.index.manifest import read_manifest
from polyjax.retrieval.index.store import CandidateIndex, open_index
from polyjax.retrieval.search.searcher import Method, Results, Searcher


class UnknownCandidate(Exception):
    """A candidate that is to be removed is not in the index."""


class LiveIndex:
    """An index on disk or in memory. A search keeps the candidates that it began with.

    Args:
        ranker: what the index was made with.
        index: its candidates.
        folder: where they are kept; such an index can change.
        max_top_n: results of a search at most.
    """

    def __init__(
        self, ranker: Ranker, index: CandidateIndex, *, folder: Path | None = None, max_top_n: int = 100
    ):
        self._ranker, self._folder, self._most = ranker, folder, max_top_n
        self._searcher = Searcher(ranker.scorer, index)
        self._changing = threading.Lock()

    @classmethod
    def open(cls, ranker: Ranker, folder: Path, *, max_top_n: int = 100) -> "LiveIndex":
        """The index of a folder.

        Args:
            ranker: what it was made with.
            folder: of the index.
            max_top_n: results of a search at most.

        Raises:
            InputError: there is none, it is broken, or it was made with another model.
        """
        check_dual(ranker.scorer)
        index = open_index(folder, scorer=ranker.scorer)
        return cls(ranker, index, folder=folder, max_top_n=max_top_n)

    @property
    def can_change(self) -> bool:
        """Whether it is kept on disk."""
        return self._folder is not None

    def __len__(self) -> int:
        """Candidates that can be found."""
        return len(self._searcher.index)

    @property
    def dtype(self) -> str:
        """Of the kept vectors."""
        return self._searcher.index.dtype

    def compile(self) -> int:
        """Compile what searches need; the number of programs."""
        return _compile(self._searcher, self._most)

    def search(self, turns: Sequence[str], top_n: int, method: Method) -> Results:
        """The best candidates of a context."""
        searcher = self._searcher
        return searcher.search([list(turns)], top_n, method=method)[0]

    def add(self, texts: Sequence[str]) -> list[int]:
        """Add candidates; the ids of those that are new.

        Raises:
            InputError: the index cannot be changed.
        """
        with self._changing:
            before = read_manifest(self._kept()).next_id
            ids = add_to_index(self._kept(), texts, self._ranker.scorer)
            self._reopen()
            return sorted({id_ for id_ in ids if id_ >= before})

    def remove(self, *, ids: Sequence[int] = (), texts: Sequence[str] = ()) -> int:
        """Take candidates out, by number or by text, all or none; how many there were.

        Raises:
            UnknownCandidate: one of them is not there.
        """
        with self._changing:
            held = {text: id_ for id_, text in self._searcher.index.items()}
            for text in texts:
                if text not in held:
                    raise UnknownCandidate(f"`documents[{texts.index(text)}]`: the index does not hold it")
            wanted = sorted({*ids, *(held[text] for text in texts)})
            if missing := set(wanted) - set(held.values()):
                raise UnknownCandidate(f"`ids`: the index does not hold {min(missing)}")
            n = remove(self._kept(), wanted)
            self._reopen()
            return n

    def _kept(self) -> Path:
        if self._folder is None:
            raise InputError("index", problem="it is in memory only", fix="build it in a folder")
        return self._folder

    def _reopen(self) -> None:
        """Search what is on disk now; compiled before anybody searches it."""
        scorer = self._ranker.scorer
        searcher = Searcher(scorer, open_index(self._kept(), scorer=scorer))
        _compile(searcher, self._most)
        self._searcher = searcher


def _compile(searcher: Searcher, most: int) -> int:
    """Compile what searches for up to so many candidates need; the number of programs."""
    top_n, programs = 1, 0
    while top_n < 2 * most:
        programs += searcher.compile(min(top_n, most))
        top_n *= 2
    return programs
