"""An index with the model that it was built with: search, add, remove."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from polyjax.errors import InputError, shown
from polyjax.inference.arguments import Context, as_contexts, as_texts, as_turns, check_choice, check_count
from polyjax.inference.scorer import Progress, TextScorer, check_scorer, ignore
from polyjax.retrieval.index.build import add_to_index
from polyjax.retrieval.index.change import compact, removable, remove
from polyjax.retrieval.index.manifest import rebuilt
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.store import CandidateIndex, memory_segment, open_index
from polyjax.retrieval.index.texts import added, ids_of
from polyjax.retrieval.reranking import Reranker, reranked
from polyjax.retrieval.search.programs import SearchPrograms
from polyjax.retrieval.search.searcher import Method, Results, Searcher
from polyjax.retrieval.stages.faiss import FirstStage, check_stage
from polyjax.runtime.forks import OfThisProcess
from polyjax.types import AnyArray


class Index(OfThisProcess):
    """Encoded candidates and the model that searches them. Several threads may use one index.

    Create it with ``Ranker.index`` or ``Ranker.open_index``. The id of a candidate is its index in the list
    that the index was built from; additions get the following ids, and no id is reused. Of several copies of
    a text (``polyjax.data.identity``), the first is kept.

    >>> index = Ranker.load("my-encoder").index(["we went hiking", "see you"])
    >>> index.add(["no rain at all"])
    [2]
    >>> [found.id for found in index.search("no rain at all", top_k=1)]
    [2]

    Args:
        scorer: the model that the candidates were encoded with.
        candidates: the candidates with their vectors.
        folder: folder of the index; None for an index in memory.
        mesh: devices that share the candidates.
        next_id: for an index in memory, id of the next candidate to be added; None for the last id plus 1.
        programs: compiled programs to share with other indexes of the scorer.
    """

    def __init__(
        self,
        scorer: TextScorer,
        candidates: CandidateIndex,
        *,
        folder: Path | None = None,
        mesh: Mesh | None = None,
        next_id: int | None = None,
        programs: SearchPrograms | None = None,
    ):
        self.folder = folder
        self._scorer, self._mesh = check_scorer(scorer), mesh
        self._programs = programs or SearchPrograms(scorer.head)
        self._candidates = candidates
        self._searcher: Searcher | None = None  # made on first use
        self._next_id = int(candidates.segments[-1].ids[-1]) + 1 if next_id is None else next_id
        self._changing, self._making = threading.Lock(), threading.Lock()

    def __repr__(self) -> str:
        """The number of candidates, their dtype and where they are kept."""
        place = "in memory" if self.folder is None else f"in {str(self.folder)!r}"
        return f"<Index of {len(self):,} candidates, {self.dtype}, {place}>"

    def __len__(self) -> int:
        """Number of candidates, without removed ones."""
        return len(self.candidates)

    @property
    def candidates(self) -> CandidateIndex:
        """The candidates with their vectors, after all changes so far."""
        return self._candidates

    @property
    def build(self) -> str:
        """Random name of the build that gave the ids; "" in memory, and on disk before polyjax wrote it."""
        manifest = self._candidates.manifest
        return "" if manifest is None else manifest.build

    @property
    def dtype(self) -> IndexDtype:
        """The dtype of the stored vectors."""
        return self.candidates.dtype

    @property
    def texts(self) -> list[str]:
        """The texts of all candidates that are not removed, in the order of their ids."""
        return [text for _, text in self.items()]

    @property
    def ids(self) -> list[int]:
        """The ids of all candidates that are not removed, increasing."""
        return [id_ for id_, _ in self.items()]

    def items(self) -> Iterator[tuple[int, str]]:
        """Ids and texts of all candidates that are not removed, by increasing id."""
        return self.candidates.items()

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far, including those for encoding and for other indexes."""
        return self._scorer.compilations if self._searcher is None else self._searcher.compilations

    def search(
        self,
        context: Context,
        top_k: int = 10,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
        rerank: Reranker | None = None,
        rerank_top: int = 50,
    ) -> Results:
        """The best candidates of a context, best first.

        By default, and with float32 vectors, they are exactly those that ranking all candidates puts first.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            top_k: maximum number of candidates.
            method: ``scan`` scores every candidate. ``certified`` finds the same candidates with a bound on
                those that it does not score. ``auto`` chooses the faster of the two. ``quick`` scores all in
                bfloat16 and at least the 1,024 best of these exactly; if there are more candidates, the
                result is not proven to be exact.
            first_stage: an index of inner products, such as FAISS's, that proposes candidates instead. Then
                ``Results.certified`` says whether the result is exact. If it is not, ``Results.recall`` is
                the recall from ``measure_recall``.
            rerank: another model, such as a cross-encoder's Ranker, that re-ranks the best candidates.
            rerank_top: number of candidates to re-rank; at least ``top_k``.

        Raises:
            InputError: the context has no turn, or an argument is out of range.
        """
        turns = [as_turns("context", context)]
        return self._found(turns, top_k, method, first_stage, rerank, rerank_top)[0]

    def search_batch(
        self,
        contexts: Sequence[Context],
        top_k: int = 10,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
        rerank: Reranker | None = None,
        rerank_top: int = 50,
    ) -> list[Results]:
        """The best candidates of several contexts; arguments and errors as for ``search``.

        It is faster than single searches: the contexts share the scan and the batches of the re-ranker.
        """
        return self._found(as_contexts(contexts), top_k, method, first_stage, rerank, rerank_top)

    def search_encoded(
        self,
        vectors: Float[AnyArray, "b m d"],
        mask: Bool[AnyArray, "b m"],
        top_k: int = 10,
        *,
        method: Method = "auto",
    ) -> list[Results]:
        """The best candidates of contexts that were encoded elsewhere, as in a server's batches.

        Args:
            vectors: of the contexts, as the scorer's model returns them.
            mask: which of the vectors there are.
            top_k: maximum number of candidates.
            method: see ``search``.

        Raises:
            InputError: an argument is out of range, or a vector is not finite.
        """
        check_count("top_k", top_k)
        check_choice("method", method, get_args(Method))
        return self._searching().search_encoded(vectors, mask, top_k, method=method)

    def _found(
        self,
        turns: Sequence[Sequence[str]],
        top_k: int,
        method: Method,
        first_stage: FirstStage | None,
        rerank: Reranker | None,
        rerank_top: int,
    ) -> list[Results]:
        check_count("top_k", top_k)
        check_choice("method", method, get_args(Method))
        if first_stage is not None:
            check_stage(first_stage)
        searcher = self._searching()
        if rerank is None:
            return searcher.search(turns, top_k, method=method, first_stage=first_stage)
        if not isinstance(rerank, Reranker):
            got = shown(f"a value of type {type(rerank).__name__}")
            raise InputError("rerank", expected="a Ranker, as Ranker.load returns", got=got)
        check_count("rerank_top", rerank_top)
        if rerank_top < top_k:
            raise InputError("rerank_top", expected=f"at least `top_k`, which is {top_k}", got=rerank_top)
        found = searcher.search(turns, rerank_top, method=method, first_stage=first_stage)
        return reranked(rerank, turns, found, top_k)

    def measure_recall(
        self, contexts: Sequence[Context], first_stage: FirstStage, *, top_k: int = 10
    ) -> float:
        """Share of the scan's best candidates that searches through a first stage find.

        Later searches through this first stage report it as ``Results.recall`` if they are not certified.

        Args:
            contexts: contexts like those of later searches.
            first_stage: as for ``search``.
            top_k: number of best candidates of each context.

        Raises:
            InputError: there is no context, or the first stage was made for another index.
        """
        check_count("top_k", top_k)
        check_stage(first_stage)
        turns = as_contexts(contexts)
        if not turns:
            raise InputError("contexts", expected="at least one", got=turns)
        return self._searching().measure_recall(turns, top_k, first_stage)

    def compile(self, top_k: int = 10) -> int:
        """Compile the programs for searches of single contexts ahead of time; returns their number.

        Programs in the compilation cache are loaded from there.

        Args:
            top_k: as in later searches.

        Raises:
            InputError: ``top_k`` is below 1.
        """
        check_count("top_k", top_k)
        return self._searching().compile(top_k)

    def add(self, texts: Sequence[str], *, resume: bool = True, progress: Progress = ignore) -> list[int]:
        """Encode more candidates; those that the index already holds are skipped.

        Args:
            texts: candidates.
            resume: for an index on disk: what to do if an addition of other candidates is unfinished. True
                raises an error, False discards it.
            progress: called with the number of candidates done since the last call.

        Returns:
            The id of each text. For a copy of another text, or of a candidate in the index, it is that
            candidate's id.

        Raises:
            InputError: a text is invalid; or the index on disk is broken, another process is writing it, or
                it was built again.
        """
        texts = as_texts("texts", texts)
        with self._changing:
            if self.folder is not None:
                ids = add_to_index(
                    self.folder, texts, self._scorer, resume=resume, build=self.build, progress=progress
                )
                self._reopen(self.folder)
                return ids
            index = self.candidates
            ids, new = added(index, texts, next_id=self._next_id)
            progress(len(texts) - len(new))
            if new:
                vectors = self._scorer.encode_candidates(new, progress=progress)
                new_ids = np.arange(self._next_id, self._next_id + len(new))
                segment = memory_segment(new, vectors, index.dtype, ids=new_ids)
                changed = CandidateIndex([*index.segments, segment], index.dtype, removed=index.removed)
                self._take(changed)
                self._next_id += len(new)
            return ids

    def remove(self, *, ids: Sequence[int] | None = None, texts: Sequence[str] | None = None) -> int:
        """Remove candidates, given by their ids or texts; returns the number of candidates removed.

        Args:
            ids: ids of the candidates.
            texts: texts of the candidates.

        Raises:
            InputError: neither or both are given, an id was never assigned, or a text is not in the index or
                matches several candidates; or the index on disk was built again.
        """
        if (ids is None) == (texts is None):
            raise InputError("ids", problem="give what to remove: either `ids` or `texts`")
        with self._changing:
            if self.folder is not None:
                self._reopen(self.folder)  # other processes may have changed it
            index = self.candidates
            if texts is not None:
                ids = ids_of(index, as_texts("texts", texts))
            assert ids is not None
            if self.folder is not None:
                count = remove(self.folder, ids, build=self.build)
                self._reopen(self.folder)
                return count
            fresh = removable(index, ids, next_id=self._next_id)
            if len(fresh):
                removed = np.union1d(index.removed, fresh)
                self._take(CandidateIndex(index.segments, index.dtype, removed=removed))
            return len(fresh)

    def compact(self) -> int:
        """Rewrite an index on disk without the removed candidates; returns the number dropped.

        Raises:
            InputError: all candidates were removed, another process is writing the index, or it is in memory.
        """
        if self.folder is None:
            raise InputError("folder", problem="an index in memory cannot be compacted", fix="build it again")
        with self._changing:
            dropped = compact(self.folder, build=self.build)
            self._reopen(self.folder)
            return dropped

    def _reopen(self, folder: Path) -> None:
        candidates = open_index(folder, scorer=self._scorer)
        if candidates.manifest is not None and candidates.manifest.build != self.build:
            raise rebuilt(folder)
        if candidates.manifest != self._candidates.manifest:
            self._take(candidates)

    def _take(self, candidates: CandidateIndex) -> None:
        """Use other candidates from now on; a search in progress continues with the old ones."""
        with self._making:
            if self._searcher is not None:
                self._searcher = self._searcher_of(candidates)
            self._candidates = candidates

    def _searching(self) -> Searcher:
        if self._searcher is None:
            with self._making:
                self._searcher = self._searcher or self._searcher_of(self._candidates)
        return self._searcher

    def _searcher_of(self, candidates: CandidateIndex) -> Searcher:
        return Searcher(self._scorer, candidates, mesh=self._mesh, programs=self._programs)
