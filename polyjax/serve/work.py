"""The work of a request: sequences for the model, and how their results are combined."""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from polyjax.serve.model import Kind, Model, Rows
from polyjax.serve.problems import Problem, failed

UnitKind = Kind | Literal["call"]
Key = tuple[int, UnitKind, int]
"""Units with the same key may share a batch: the model's id, the kind, the padded length."""


@dataclasses.dataclass(eq=False, slots=True)
class Unit:
    """A sequence of a job, or a call.

    Attributes:
        job: the job.
        kind: kind of sequence, or ``call``.
        place: index of its result in the job.
        length: padded length in tokens; 0 for a call.
        row: input of the model, or the function to call.
    """

    job: "Job"
    kind: UnitKind
    place: int
    length: int
    row: Any

    @property
    def key(self) -> Key:
        """Units with the same key may share a batch."""
        return id(self.job.model), self.kind, self.length


class Job(abc.ABC):
    """The work of a request for one model; its result is an array, or what a call returns.

    Args:
        model: the model that computes.
        deadline: time on the monotonic clock at which the request gives up and its waiting units are dropped.
        arrived: arrival of the request on the monotonic clock.

    Attributes:
        units: the units to compute.
        on_done: called once with the job, when it is done or has failed.
        result: the result, once the job is done.
        problem: why there is no result.
        ended: whether the job is done, has failed, or is no longer waited for.
        began: start of its first batch on the monotonic clock; None before.
    """

    def __init__(self, model: Model, *, arrived: float, deadline: float):
        self.model, self.arrived, self.deadline = model, arrived, deadline
        self.units: list[Unit] = []
        self.on_done: Callable[[Job], None] = lambda job: None
        self.result: Any = None
        self.problem: Problem | None = None
        self.ended = False
        self.began: float | None = None
        self._left = 0

    def _planned(self, units: list[Unit]) -> None:
        """Set the units, longest first, so that shorter ones can fill the remaining rows of a batch."""
        self.units = sorted(units, key=lambda unit: -unit.length)
        self._left = len(units)

    def take(self, unit: Unit, result: Any) -> None:
        """Store the result of a unit; the last one completes the job."""
        if self.ended:
            return
        self._keep(unit, result)
        self._left -= 1
        if not self._left:
            self.result = self._combined()
            if self.problem is None:
                self._end()

    def fail(self, problem: Problem) -> None:
        """End without a result."""
        if not self.ended:
            self.problem = problem
            self._end()

    def drop(self) -> None:
        """End the job because nobody waits for its result."""
        self.ended = True

    def _end(self) -> None:
        self.ended = True
        self.on_done(self)

    @abc.abstractmethod
    def _keep(self, unit: Unit, result: Any) -> None:
        """Keep the result of a unit."""

    @abc.abstractmethod
    def _combined(self) -> Any:
        """The result of all units."""


class Scoring(Job):
    """Scores of pairs of a context and a candidate, float32 [n].

    Sequences with equal ids are computed once, so that their scores are bit-identical.

    Args:
        model: the model that computes.
        rows: token ids of the texts.
        pairs: indices of context and candidate, [n, 2].
        arrived: see ``Job``.
        deadline: see ``Job``.
    """

    def __init__(
        self, model: Model, rows: Rows, pairs: Sequence[tuple[int, int]], *, arrived: float, deadline: float
    ):
        super().__init__(model, arrived=arrived, deadline=deadline)
        contexts, context_of = _distinct(rows.contexts)
        candidates, candidate_of = _distinct(rows.candidates)
        self._pairs = [(context_of[c], candidate_of[d]) for c, d in pairs]
        self._distinct = list(dict.fromkeys(self._pairs))
        units: list[Unit] = []
        if model.is_dual:
            for place, row in enumerate(contexts):
                units.append(Unit(self, "context", place, model.padded("context", len(row)), row))
            for place, row in enumerate(candidates):
                units.append(Unit(self, "candidate", place, model.padded("candidate", len(row)), row))
            self._contexts: list[Any] = [None] * len(contexts)
            self._candidates = np.empty((len(candidates), model.dim), np.float32)
        else:
            for place, (c, d) in enumerate(self._distinct):
                pair = model.pair(contexts[c], candidates[d], rows.side)
                units.append(Unit(self, "pair", place, model.padded("pair", len(pair[0])), pair))
            self._scores = np.empty(len(units), np.float32)
        self._planned(units)

    def _keep(self, unit: Unit, result: Any) -> None:
        match unit.kind:
            case "context":
                self._contexts[unit.place] = result
            case "candidate":
                self._candidates[unit.place] = result
            case _:
                self._scores[unit.place] = result

    def _combined(self) -> np.ndarray:
        if self.model.is_dual:
            found: dict[tuple[int, int], np.float32] = {}
            for c, pairs in itertools.groupby(sorted(self._distinct), key=lambda pair: pair[0]):
                candidates = [d for _, d in pairs]
                vectors, mask = self._contexts[c]
                scores = self.model.scores(vectors, mask, self._candidates[candidates])
                found |= {(c, d): score for d, score in zip(candidates, scores, strict=True)}
        else:
            found = dict(zip(self._distinct, self._scores, strict=True))
        scores = np.array([found[pair] for pair in self._pairs], np.float32)
        if not np.isfinite(scores).all():
            self.fail(failed())
        return scores


class Embedding(Job):
    """Vectors of contexts or of candidates, float32 [n, d]; for a poly-encoder candidates only.

    Args:
        model: the model that computes.
        rows: token ids of contexts or of candidates, not both.
        arrived: see ``Job``.
        deadline: see ``Job``.
    """

    def __init__(self, model: Model, rows: Rows, *, arrived: float, deadline: float):
        super().__init__(model, arrived=arrived, deadline=deadline)
        kind: Kind = "context" if rows.contexts else "candidate"
        distinct, self._of = _distinct(rows.contexts or rows.candidates)
        self._vectors = np.empty((len(distinct), model.dim), np.float32)
        self._planned(
            [Unit(self, kind, i, model.padded(kind, len(row)), row) for i, row in enumerate(distinct)]
        )

    def _keep(self, unit: Unit, result: Any) -> None:
        self._vectors[unit.place] = result[0][0] if unit.kind == "context" else result

    def _combined(self) -> np.ndarray:
        if not np.isfinite(self._vectors).all():
            self.fail(failed())
        return self._vectors[self._of]


class Searching(Job):
    """A search with a context that is encoded in a batch with those of other requests.

    Args:
        model: the model that computes.
        rows: token ids of the context.
        search: called in the model's thread with the context's vectors, float32 [m, d], and their mask [m].
        arrived: see ``Job``.
        deadline: see ``Job``.
    """

    def __init__(
        self,
        model: Model,
        rows: Rows,
        search: Callable[[np.ndarray, np.ndarray], Any],
        *,
        arrived: float,
        deadline: float,
    ):
        super().__init__(model, arrived=arrived, deadline=deadline)
        self._search = search
        (row,) = rows.contexts
        self._planned([Unit(self, "context", 0, model.padded("context", len(row)), row)])

    def _keep(self, unit: Unit, result: Any) -> None:
        self._encoded = result

    def _combined(self) -> Any:
        return self._search(*self._encoded)


class Call(Job):
    """A function that must run in the model's thread, such as an explanation.

    Args:
        model: the model that the function uses.
        function: called without arguments.
        arrived: see ``Job``.
        deadline: see ``Job``.
    """

    def __init__(self, model: Model, function: Callable[[], Any], *, arrived: float, deadline: float):
        super().__init__(model, arrived=arrived, deadline=deadline)
        self._planned([Unit(self, "call", 0, 0, function)])

    def _keep(self, unit: Unit, result: Any) -> None:
        self._found = result

    def _combined(self) -> Any:
        return self._found


def _distinct(rows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The distinct rows, and the index of each row among them."""
    places: dict[bytes, int] = {}
    distinct, of = [], []
    for row in rows:
        place = places.setdefault(row.tobytes(), len(places))
        if place == len(distinct):
            distinct.append(row)
        of.append(place)
    return distinct, of


def compute(units: Sequence[Unit], length: int) -> list[Any]:
    """Compute units of one model and kind, padded to one length, in one batch; their results in order."""
    model, kind = units[0].job.model, units[0].kind
    if kind == "call":
        return [units[0].row()]
    rows = [unit.row for unit in units]
    size = next(size for size in model.sizes(length) if size >= len(units))
    match kind:
        case "context":
            return list(zip(*model.context_vectors(rows, length, size), strict=True))
        case "candidate":
            return list(model.candidate_vectors(rows, length, size))
        case _:
            return list(model.pair_scores(rows, length, size))
