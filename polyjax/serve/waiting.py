"""The queue of the model, and the choice of the next batch. It is not thread-safe: ``Worker`` locks it."""

import heapq
import itertools
import math
from collections.abc import Sequence

from polyjax.serve.work import Job, Key, Unit

QUANTUM = 4
"""Number of full batches of a job that keep its arrival time; further batches count as arriving later.

So a request with thousands of texts does not delay those that arrive after it.
"""
PENALTY = 3.0
"""By how many seconds the arrival of work is delayed, for each second of work of the same job before it."""


class Waiting:
    """The waiting units of all jobs, by length.

    A batch has sequences of one padded length, from any jobs. The unit that has waited longest determines the
    length of the next batch. Rows that would be padding are filled with shorter waiting sequences.

    Attributes:
        seconds_per_token: measured time per padded token; it converts a job's work to seconds.
        tokens_per_batch: of the model with the largest batches so far; 0 before the first job.
    """

    def __init__(self) -> None:
        self.seconds_per_token, self.tokens_per_batch = 1e-4, 0
        self._heaps: dict[Key, list[tuple[float, int, Unit]]] = {}
        self._numbers = itertools.count()

    def add(self, job: Job) -> None:
        """Add the units of a job."""
        quantum = QUANTUM * job.model.tokens_per_batch
        self.tokens_per_batch = max(self.tokens_per_batch, job.model.tokens_per_batch)
        before = 0
        for unit in job.units:
            own_work = before // quantum * quantum * self.seconds_per_token
            priority = job.arrived + PENALTY * own_work
            heap = self._heaps.setdefault(unit.key, [])
            heapq.heappush(heap, (priority, next(self._numbers), unit))
            before += unit.length

    @property
    def most_before_a_newcomer(self) -> float:
        """Seconds of work of one job, at most, that keep their place before a job that arrives now."""
        if not self.tokens_per_batch:
            return math.inf
        return QUANTUM * self.tokens_per_batch * self.seconds_per_token

    def take(self) -> list[Unit]:
        """The units of the next batch, padded to the length of the first; empty if nothing is waiting."""
        best: Key | None = None
        for key in list(self._heaps):
            if not self._settled(key):
                del self._heaps[key]
            elif best is None or self._heaps[key][0] < self._heaps[best][0]:
                best = key
        if best is None:
            return []
        model, kind, length = best
        first = self._heaps[best][0][2].job.model
        units = self._pop(best, 1 if kind == "call" else first.full(length))
        if kind == "call":
            return units
        room = next(size for size in first.sizes(length) if size >= len(units)) - len(units)
        shorter = sorted(
            (key for key in self._heaps if key[:2] == (model, kind) and key[2] < length),
            key=lambda key: -key[2],
        )
        for key in shorter:
            more = self._pop(key, room)
            units += more
            room -= len(more)
        return units

    def left(self) -> list[Unit]:
        """All waiting units, which wait no more."""
        heaps = list(self._heaps.values())
        self._heaps.clear()
        return [unit for heap in heaps for _, _, unit in heap if not unit.job.ended]

    def sweep(self) -> None:
        """Drop the units of ended jobs if they are more than half of all units."""
        dead = sum(unit.job.ended for heap in self._heaps.values() for _, _, unit in heap)
        if 2 * dead <= len(self):
            return
        for key, heap in list(self._heaps.items()):
            self._heaps[key] = [entry for entry in heap if not entry[2].job.ended]
            heapq.heapify(self._heaps[key])

    def _settled(self, key: Key) -> bool:
        """Drop ended jobs from the front of a heap; returns whether a unit is left, now the first."""
        heap = self._heaps[key]
        while heap and heap[0][2].job.ended:
            heapq.heappop(heap)
        return bool(heap)

    def _pop(self, key: Key, n: int) -> list[Unit]:
        units: list[Unit] = []
        while len(units) < n and self._settled(key):
            units.append(heapq.heappop(self._heaps[key])[2])
        return units

    def __len__(self) -> int:
        """Number of waiting units, including those of ended jobs."""
        return sum(map(len, self._heaps.values()))


def jobs_of(units: Sequence[Unit]) -> list[Job]:
    """The jobs of a batch, each once."""
    return list(dict.fromkeys(unit.job for unit in units))
