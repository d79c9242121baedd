"""Any index of inner products as the first stage of a search.

The m context vectors are searched one by one, and the union of what is found is scored exactly. A score is
a weighted mean of the m products, so that a candidate that none of m exact lists holds scores at most the
largest of their cut-offs (the product of each list's last entry). If the k-th best score reaches that, the
result is certified. Otherwise the lists are made longer, up to a limit.

A vector store over the network is attached in the same way, by a class with ``search``, ``exact`` and
``made_for``, whose search returns the index's row numbers.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from polyjax.errors import InputError, shown
from polyjax.nn.heads import DualHead
from polyjax.retrieval.index.rows import decode
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.bounds import ROUND_OFF
from polyjax.retrieval.search.outcome import Outcome
from polyjax.retrieval.search.scan import Scan
from polyjax.types import AnyArray


@runtime_checkable
class FirstStage(Protocol):
    """Finds vectors with large inner products.

    Attributes:
        exact: whether its lists are the true best ones; only then can a result be certified. A store that
            claims this wrongly makes wrong certificates.
        made_for: the ``identity`` of the candidate index whose rows it holds, at the time they were added.
    """

    exact: bool
    made_for: str

    def search(self, vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the largest products of each vector and the products, [m, depth] each, largest first.

        Args:
            vectors: float32 [m, d].
            depth: length of the lists, at most the number of the index's rows, removed candidates included;
                places that cannot be filled come last, with row -1 and any product.
        """
        ...


def check_stage(first_stage: object) -> None:
    """Raise InputError unless it is a first stage."""
    if not isinstance(first_stage, FirstStage):
        raise InputError(
            "first_stage",
            expected="an object with `search`, `exact` and `made_for`, as FaissStage",
            got=shown(type(first_stage).__name__),
        )


@runtime_checkable
class HasCandidates(Protocol):
    """An object with candidates to search, such as an ``Index``."""

    @property
    def candidates(self) -> CandidateIndex:
        """The candidates."""
        ...


class FaissStage:
    """An index of FAISS (extra ``faiss``).

    Args:
        index: a ``faiss.Index`` with inner products whose numbers are the rows of the candidate index.
        exact: whether it compares with every vector (``Flat``).
        made_for: the identity of the candidate index.
    """

    def __init__(self, index: Any, *, exact: bool, made_for: str):
        self.index, self.exact, self.made_for = index, exact, made_for

    @classmethod
    def build(
        cls, candidates: CandidateIndex | HasCandidates, kind: str = "Flat", *, rows_at_once: int = 65536
    ) -> "FaissStage":
        """An index of all rows of a candidate index.

        Args:
            candidates: what will be searched.
            kind: as ``faiss.index_factory`` knows it: ``Flat``, ``HNSW32``, ``IVF1024,Flat``, ``SQ8``, ...
            rows_at_once: number of rows converted to float32 at a time.

        Raises:
            InputError: FAISS is not installed, does not know the kind, or has too few rows for it.
        """
        try:
            import faiss  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError:
            raise InputError(
                "kind", problem="FAISS is not installed", fix="run: pip install 'polyjax[faiss]'"
            ) from None
        candidates = candidates.candidates if isinstance(candidates, HasCandidates) else candidates
        dim, n = candidates.segments[0].vectors.shape[1], candidates.rows
        try:
            index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                sample = np.unique(np.linspace(0, n - 1, rows_at_once).astype(int))
                index.train(decode(*candidates.stored(sample)))
            for first in range(0, n, rows_at_once):
                index.add(decode(*candidates.stored(np.arange(first, min(first + rows_at_once, n)))))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                "kind",
                problem=f"FAISS cannot make {kind!r} of {n:,} rows ({reason})",
                fix="choose Flat or HNSW32, which suit any number",
            ) from None
        return cls(index, exact=kind == "Flat", made_for=candidates.identity)

    def search(self, vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``FirstStage``."""
        products, rows = self.index.search(np.ascontiguousarray(vectors, np.float32), depth)
        return rows, products


class StagedSearch:
    """Search through a first stage.

    Args:
        scan: of the same candidates; scores what the first stage proposes.
        head: its head.
        stage: the first stage.
        depth: length of the first lists.
        deepest: share of the candidates at which lists stop growing.
        recall: measured share of the scan's best; None if it was not measured.

    Attributes:
        recall: as it was given, or as ``measure_recall`` found it.
    """

    def __init__(
        self,
        scan: Scan,
        head: DualHead,
        stage: FirstStage,
        *,
        depth: int = 256,
        deepest: float = 0.25,
        recall: float | None = None,
    ):
        form = head.product_form
        if form is None:
            raise InputError(
                "first_stage",
                problem="the scores of the model's head are not means of inner products",
                fix="search without a first stage",
            )
        if stage.made_for != scan.index.identity:
            raise InputError(
                "first_stage",
                problem="it was made for another index, or for this one before candidates were added or the "
                "index was compacted",
                fix="build it again",
            )
        self.scan, self.stage, self._scale = scan, stage, form.scale
        self._depth, self._deepest, self.recall = depth, deepest, recall
        self._live = scan.index.live_rows

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> list[Outcome]:
        """Each context's best; certified where the first stage is exact and its lists are long enough."""
        return [self._one(vectors[i : i + 1], mask[i : i + 1], k) for i in range(vectors.shape[0])]

    def _one(self, vectors: Float[AnyArray, "1 m d"], mask: Bool[AnyArray, "1 m"], k: int) -> Outcome:
        real = np.asarray(vectors[0])[np.asarray(mask[0])]
        n = self.scan.index.rows
        if not len(real):
            scores, rows = self.scan(vectors, mask, k)
            return Outcome(scores[0], rows[0], None, len(self.scan.index))
        depth = min(max(self._depth, 2 * k), n)
        # The error of float32 products in the stage and the scan, and of their mean.
        longest = float(np.linalg.norm(real, axis=1).max()) * self.scan.index.longest()[0]
        slack = 4 * ROUND_OFF * (real.shape[1] + len(real) + 16) * longest
        while True:
            found, products = self.stage.search(real, depth)
            rows = np.unique(found[found >= 0])
            if len(rows) and rows[-1] >= n:
                raise InputError(
                    "first_stage",
                    expected=f"the index's rows from 0 to {n - 1}",
                    got=int(rows[-1]),
                    fix="make it for this index",
                )
            if self.stage.exact:
                self._check(real, found[:, 0], products[:, 0], slack)
            rows = rows[self._live[rows]]
            scores, best = self.scan.among(vectors, mask, rows, k)
            # A list with unfilled places holds every candidate.
            cut = np.where(found[:, -1] >= 0, products[:, -1], -np.inf).max(initial=-np.inf)
            complete = depth >= n
            certified = self.stage.exact and (complete or scores[0, -1] > self._scale * (cut + slack))
            if certified or not self.stage.exact or depth >= self._deepest * n:
                return Outcome(
                    scores[0],
                    best[0],
                    None,
                    len(rows),
                    certified=bool(certified),
                    recall=1.0 if certified else self.recall,
                )
            depth = min(4 * depth, n)

    def _check(self, vectors: np.ndarray, rows: np.ndarray, products: np.ndarray, slack: float) -> None:
        """Raise InputError unless the products of each vector with a row are those of the index's rows."""
        there = rows >= 0
        vectors, rows, products = vectors[there], rows[there], products[there]
        if not len(rows):
            return
        order, places = np.unique(rows, return_inverse=True)
        own = decode(*self.scan.index.stored(order))[places]
        if not np.abs((vectors * own).sum(1) - products).max() <= slack:
            raise InputError(
                "first_stage",
                problem="its products are not those of the index's vectors",
                fix="make it for this index",
            )

    def measure_recall(self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int) -> float:
        """Share of the scan's k best of some contexts that are found: what to expect of uncertified results.

        Later outcomes that are not certified report it.
        """
        expected = self.scan(vectors, mask, k)[1]
        found = [outcome.rows for outcome in self(vectors, mask, k)]
        hits = [np.isin(best[best >= 0], some) for best, some in zip(expected, found, strict=True)]
        self.recall = float(np.mean(np.concatenate(hits)))
        return self.recall
