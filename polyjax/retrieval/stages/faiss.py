"""An index of inner products (FAISS or any other) as the first stage of a search.

The first stage returns a list of candidates for each of the m context vectors, and the union of the lists is
scored exactly. A score is a weighted mean of the m products. So, if the lists are exact, the score of a
candidate in none of them is at most the largest cut-off (the product of a list's last entry). If the k-th
best score is above that, the result is certified. Otherwise longer lists are requested, up to a limit.

A vector store on the network can be attached in the same way, by a class with ``search``, ``exact`` and
``made_for`` whose search returns row numbers of the index.
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
        exact: whether its lists contain the true best rows; only then can results be certified. If it is
            wrongly True, certificates are wrong.
        made_for: the ``identity`` of the candidate index whose rows it holds, when they were added.
    """

    exact: bool
    made_for: str

    def search(self, vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows with the largest products for each vector, and the products; [m, depth] each.

        Lists are sorted, largest product first. Entries that cannot be filled come last, with row -1 and any
        product.

        Args:
            vectors: float32 [m, d].
            depth: length of the lists; at most the number of rows of the index, including removed candidates.
        """
        ...


def check_stage(first_stage: object) -> None:
    """Raise InputError unless an object implements ``FirstStage``."""
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
    """A FAISS index as a first stage (extra ``faiss``).

    Args:
        index: a ``faiss.Index`` with inner products, whose vector numbers are the rows of the candidate
            index.
        exact: whether it compares with every vector (``Flat``).
        made_for: the ``identity`` of the candidate index.
    """

    def __init__(self, index: Any, *, exact: bool, made_for: str):
        self.index, self.exact, self.made_for = index, exact, made_for

    @classmethod
    def build(
        cls, candidates: CandidateIndex | HasCandidates, kind: str = "Flat", *, rows_at_once: int = 65536
    ) -> "FaissStage":
        """Build a FAISS index of all rows of a candidate index.

        Args:
            candidates: the index to search.
            kind: a description for ``faiss.index_factory``: ``Flat``, ``HNSW32``, ``IVF1024,Flat``, ...
            rows_at_once: number of rows converted to float32 at a time, and at most used for training.

        Raises:
            InputError: FAISS is not installed, does not know the kind, or needs more rows for it.
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
        scan: the scan of the same candidates, which scores those that the first stage proposes.
        head: the head of the scorer.
        stage: the first stage.
        depth: length of the first lists; at least twice the wanted candidates are requested.
        deepest: share of the candidates at which lists are not made longer.
        recall: measured share of the scan's best candidates; None if it was not measured.

    Attributes:
        recall: the given recall, or the result of ``measure_recall``.

    Raises:
        InputError: the head has no product form, or the first stage was made for another index.
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
        """The k best candidates of each context, certified if the first stage is exact and lists suffice.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: True for real vectors, [b, m].
            k: at least 1.

        Raises:
            InputError: the first stage returns rows or products of another index.
        """
        return [self._one(vectors[i : i + 1], mask[i : i + 1], k) for i in range(vectors.shape[0])]

    def _one(self, vectors: Float[AnyArray, "1 m d"], mask: Bool[AnyArray, "1 m"], k: int) -> Outcome:
        real = np.asarray(vectors[0])[np.asarray(mask[0])]
        n = self.scan.index.rows
        if not len(real):
            scores, rows = self.scan(vectors, mask, k)
            return Outcome(scores[0], rows[0], None, len(self.scan.index))
        depth = min(max(self._depth, 2 * k), n)
        # Bound of the rounding errors of float32 products in the stage and the scan, and of their mean.
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
            # A list with unfilled entries holds every candidate.
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
        """Raise InputError unless the products are those of the vectors with these rows of the index."""
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
        """Share of the scan's k best candidates of some contexts that this search finds.

        Later results that are not certified report it as their recall.

        Args:
            vectors: context vectors, float32 [b, m, d].
            mask: True for real vectors, [b, m].
            k: at least 1.
        """
        expected = self.scan(vectors, mask, k)[1]
        found = [outcome.rows for outcome in self(vectors, mask, k)]
        hits = [np.isin(best[best >= 0], some) for best, some in zip(expected, found, strict=True)]
        self.recall = float(np.mean(np.concatenate(hits)))
        return self.recall
