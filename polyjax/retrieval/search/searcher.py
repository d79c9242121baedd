"""Searches an index: contexts in, their best candidates out."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, overload

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.blocks import power_of_two
from polyjax.retrieval.search.certified import CertifiedSearch
from polyjax.retrieval.search.coarse import CoarseRows
from polyjax.retrieval.search.outcome import Outcome
from polyjax.retrieval.search.programs import SearchPrograms
from polyjax.retrieval.search.quick import QuickSearch
from polyjax.retrieval.search.scan import BLOCK_ROWS, FEW_ROWS, Scan
from polyjax.retrieval.search.sharded import ShardedScan
from polyjax.retrieval.stages.faiss import FirstStage, StagedSearch, check_stage
from polyjax.types import AnyArray, score_lines

Method = Literal["auto", "scan", "certified", "quick"]
"""Method of a search; see ``Index.search``."""

VECTORS_AT_ONCE = 512
"""Number of context vectors that are scored together; their products with a block take 8 MB."""

FEWEST_WANTED = 32
"""Smallest number of rows to search for; this many cost no more than one."""

WORTH_CERTIFYING = 1.5e9
"""Size of a scan (candidates x context vectors x width) from which a certified search is faster.

Its fixed cost, for choosing the rank and scoring the survivors, is 3 to 5 ms (benchmarks/certified.py).
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """A candidate of an index with its score and its id.

    Attributes:
        text: text of the candidate.
        score: score of the model, or of the re-ranker.
        id: index in the list that the index was built from; additions have the following ids.
        first_score: the model's score before re-ranking; None without a re-ranker.

    >>> Found("we went hiking", score=0.71, id=2).text
    'we went hiking'
    """

    text: str
    score: float
    id: int
    first_score: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Results(Sequence[Found]):
    """The best candidates of a context, best first, and how they were found.

    Attributes:
        found: the candidates.
        certified: whether they are proven to be the same as from scoring every candidate; False after
            re-ranking.
        rank: rank of the pass of a certified search (number of directions); None without a pass.
        rescored: share of the candidates that were scored exactly; 1 for a scan.
        recall: share of the best candidates that such searches find: 1 for certified ones; otherwise the
            result of ``Index.measure_recall`` for this first stage; None if it was not measured.
    """

    found: tuple[Found, ...]
    certified: bool
    rank: int | None
    rescored: float
    recall: float | None

    def __repr__(self) -> str:
        exact = "certified: as if every candidate had been scored"
        return f"{score_lines(self.found)}\n({exact if self.certified else 'not certified'})"

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.found)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | Sequence[Found]:
        """A candidate, or several."""
        return self.found[index]


class Searcher:
    """Searches an index for the best candidates of contexts. Several threads may use one searcher.

    Args:
        scorer: the model that the index was built with.
        index: the candidates.
        mesh: devices that share the candidates; every search is then a scan.
        programs: programs of the head, to share with other searches.
    """

    def __init__(
        self,
        scorer: TextScorer,
        index: CandidateIndex,
        *,
        mesh: Mesh | None = None,
        programs: SearchPrograms | None = None,
    ):
        self.index, self._scorer, self._mesh = index, scorer, mesh
        head = scorer.head
        # A head without product form may keep a vector for each row and context, as multi-head attention
        # does. So score one context at a time, in smaller blocks.
        self._scan_only = head.product_form is None
        rows = FEW_ROWS if self._scan_only else BLOCK_ROWS
        self._scan: Scan | ShardedScan
        self._certified: CertifiedSearch | None = None
        self._quick: QuickSearch | None = None
        self._recalls = _Recalls()
        if mesh is not None:
            self._scan = ShardedScan(head, index, mesh, rows=rows)
            return
        self._scan = Scan(head, index, rows=rows, programs=programs)
        if not self._scan_only:
            coarse = CoarseRows(index)
            self._certified = CertifiedSearch(self._scan, head, coarse)
            self._quick = QuickSearch(self._scan, coarse)

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far, including those of encoding."""
        searches = self._scan.programs if isinstance(self._scan, Scan) else self._scan
        return self._scorer.compilations + searches.compilations

    def compile(self, top_k: int = 10) -> int:
        """Compile the programs for searches with single contexts ahead of time; returns their number.

        Args:
            top_k: as in later searches.
        """
        before = self.compilations
        vectors, mask = self._scorer.compile_contexts()
        k = self.rows_wanted(top_k)
        self._scan(vectors, mask, k)
        if self._certified is not None and self._worth_certifying(vectors):
            self._certified.compile(*vectors.shape[1:])
            self._certified.scan.among(vectors, mask, np.arange(1), k)
        return self.compilations - before

    def search(
        self,
        contexts: Sequence[Sequence[str]],
        top_k: int,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
    ) -> list[Results]:
        """The best candidates of each context; fewer than ``top_k`` if the index holds fewer.

        Args:
            contexts: turns of each context, oldest first.
            top_k: at least 1.
            method: see ``Index.search``.
            first_stage: an index of inner products that proposes candidates instead.

        Raises:
            InputError: the method or the first stage does not suit the model or the index, or the model's
                vectors of a context are not finite.
        """
        outcomes = self.outcomes(contexts, top_k, method=method, first_stage=first_stage)
        return [self._results(outcome, top_k) for outcome in outcomes]

    def outcomes(
        self,
        contexts: Sequence[Sequence[str]],
        top_k: int,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
    ) -> list[Outcome]:
        """As ``search``, but with rows of the index and scores as arrays, of at least ``top_k`` candidates.

        Where there are many candidates and few of their texts are needed, this takes much less time.
        """
        staged = None if first_stage is None else self._through(first_stage)
        if staged is not None and method != "auto":
            raise InputError(
                "method",
                problem=f"{method!r} has no effect with a `first_stage`",
                fix="leave out one of them",
            )
        self._check_method(method)
        results: dict[int, Outcome] = {}
        for places, vectors, mask in self._batches(contexts):
            _check_finite(places, vectors)
            if staged is not None:
                n = len(places)
                outcomes = staged(vectors[:n], mask[:n], self.rows_wanted(top_k))
            else:
                outcomes = self._outcomes(vectors, mask, len(places), self.rows_wanted(top_k), method)
            results.update(zip(places, outcomes, strict=False))
        return [results[i] for i in range(len(contexts))]

    def search_encoded(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], top_k: int, *, method: Method
    ) -> list[Results]:
        """The best candidates of contexts that the model has encoded; each is searched for separately.

        Args:
            vectors: of the contexts.
            mask: which of the vectors there are.
            top_k: see ``search``.
            method: see ``search``.

        Raises:
            InputError: see ``search``.
        """
        self._check_method(method)
        _check_finite(np.arange(len(vectors)), vectors)
        found = []
        for i in range(len(vectors)):
            one = slice(i, i + 1)
            (outcome,) = self._outcomes(vectors[one], mask[one], 1, self.rows_wanted(top_k), method)
            found.append(self._results(outcome, top_k))
        return found

    def _check_method(self, method: Method) -> None:
        if method in ("certified", "quick") and self._certified is None:
            why = "over a mesh" if self._mesh is not None else "with a head that has no product form"
            raise InputError("method", expected=f"auto or scan for a search {why}", got=method)

    def measure_recall(self, contexts: Sequence[Sequence[str]], top_k: int, first_stage: FirstStage) -> float:
        """Share of the scan's ``top_k`` best candidates that a search through a first stage finds.

        Args:
            contexts: turns of each context, oldest first; at least one context.
            top_k: number of best candidates of each context.
            first_stage: the first stage to measure.
        """
        staged, shares = self._through(first_stage), []
        for places, vectors, mask in self._batches(contexts):
            n = len(places)
            shares += [n * staged.measure_recall(vectors[:n], mask[:n], min(top_k, len(self.index)))]
        recall = sum(shares) / len(contexts)
        self._recalls.keep(first_stage, recall)
        return recall

    def _through(self, first_stage: FirstStage) -> StagedSearch:
        """A search through a first stage, with its measured recall if there is one."""
        check_stage(first_stage)
        if not isinstance(self._scan, Scan):
            raise InputError(
                "first_stage",
                problem="a search over a mesh cannot use one",
                fix="open the index without `mesh`",
            )
        recall = self._recalls.of(first_stage)
        return StagedSearch(self._scan, self._scorer.head, first_stage, recall=recall)

    def _batches(
        self, contexts: Sequence[Sequence[str]]
    ) -> Iterator[tuple[np.ndarray, Float[AnyArray, "b m d"], Bool[AnyArray, "b m"]]]:
        """Batches of contexts that are scored together: their indices, vectors and masks.

        The last vectors of a batch may be padding.
        """
        for places, vectors, mask in self._scorer.context_batches(contexts):
            alone = len(places) == 1 or self._scan_only
            together = 1 if alone else max(VECTORS_AT_ONCE // vectors.shape[1], 1)
            for start in range(0, len(places), together):
                # With numpy, because jax would compile a program for each of these small operations.
                chosen = np.arange(start, start + together).clip(max=len(places) - 1)
                given = np.asarray(vectors)[chosen], np.asarray(mask)[chosen]
                yield places[start : start + together], *given

    def _outcomes(
        self,
        vectors: Float[AnyArray, "b m d"],
        mask: Bool[AnyArray, "b m"],
        n: int,
        k: int,
        method: Method,
    ) -> list[Outcome]:
        """The results of the first n contexts; the others are padding."""
        if method == "quick" and self._quick is not None:
            return self._quick(vectors[:n], mask[:n], k)
        certify = method == "certified" or (method == "auto" and self._worth_certifying(vectors))
        if certify and self._certified is not None:
            return self._certified(vectors[:n], mask[:n], k)
        scores, rows = self._scan(vectors, mask, k)
        return [Outcome(*pair, None, len(self.index)) for pair in zip(scores, rows, strict=True)]

    def _worth_certifying(self, vectors: Float[AnyArray, "b m d"]) -> bool:
        return self.index.rows * vectors.shape[1] * vectors.shape[2] >= WORTH_CERTIFYING

    def rows_wanted(self, top_k: int) -> int:
        """The number of rows to search for: a power of two, so that few values need a compiled program."""
        return power_of_two(int(min(max(top_k, FEWEST_WANTED), self.index.rows)))

    def _results(self, outcome: Outcome, top_k: int) -> Results:
        rows, scores = np.asarray(outcome.rows[:top_k]), np.asarray(outcome.scores[:top_k])
        scores, named = scores[rows >= 0].tolist(), self.index.texts_and_ids(rows[rows >= 0])
        found = tuple(Found(text, score, id_) for score, (text, id_) in zip(scores, named, strict=True))
        share = outcome.rescored / max(len(self.index), 1)
        return Results(found, outcome.certified, outcome.rank, share, outcome.recall)


class _Recalls:
    """Measured recalls of first stages, kept as long as the first stages exist."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[Callable[[], FirstStage | None], float]] = {}

    def keep(self, stage: FirstStage, recall: float) -> None:
        """Keep a first stage's recall until the stage is gone."""
        number = id(stage)
        try:
            there = weakref.ref(stage, lambda _: self._measured.pop(number, None))
        except TypeError:  # a class with __slots__ may not allow weak references
            there = lambda: stage  # noqa: E731
        self._measured[number] = there, recall

    def of(self, stage: FirstStage) -> float | None:
        """The kept recall of a first stage; None if none was measured."""
        there, recall = self._measured.get(id(stage), (None, None))
        return recall if there is not None and there() is stage else None


def _check_finite(places: np.ndarray, vectors: Float[AnyArray, "b m d"]) -> None:
    """Raise InputError unless the vectors of a batch are finite."""
    finite = np.isfinite(np.asarray(vectors)[: len(places)]).all(axis=(1, 2))
    if not finite.all():
        raise InputError(
            f"contexts[{places[int(np.argmin(finite))]}]",
            problem="the model gives vectors that are not finite",
            fix="check the model's parameters, and that its values do not overflow in float16",
        )
