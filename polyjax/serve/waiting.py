"""What waits for the model, and what goes through it next. No threads here: ``Worker`` holds the lock."""

import heapq
import itertools
from collections.abc import Sequence

from polyjax.serve.work import Job, Key, Unit

QUANTUM = 4
"""Full batches that a job gets in the order of its arrival; what it has beyond comes later.

So a request of thousands of texts does not hold up those that arrive after it.
"""
PENALTY = 3.0
"""Seconds later that work counts as having arrived, for each second of its own job's work before it."""


class Waiting:
    """Units of all jobs, sorted by length.

    Batches hold sequences of one padded length, of whatever jobs. Which length is next is said by the unit
    that has waited longest; rows that would be padding are filled with shorter sequences that wait.

    Attributes:
        seconds_per_token: of padded tokens, as measured; it converts a job's own work to seconds.
    """

    def __init__(self) -> None:
        self.seconds_per_token = 1e-4
        self._heaps: dict[Key, list[tuple[float, int, Unit]]] = {}
        self._numbers = itertools.count()

    def add(self, job: Job) -> None:
        """Let a job's units wait."""
        quantum = QUANTUM * job.model.tokens_per_batch
        before = 0
        for unit in job.units:
            own_work = before // quantum * quantum * self.seconds_per_token
            priority = job.arrived + PENALTY * own_work
            heap = self._heaps.setdefault(unit.key, [])
            heapq.heappush(heap, (priority, next(self._numbers), unit))
            before += unit.length

    def take(self) -> list[Unit]:
        """The units of the next batch; its padded length is that of the first. None where nothing waits."""
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

    def sweep(self) -> None:
        """Forget the units of ended jobs, wherever they are, once they are as many as the others."""
        dead = sum(unit.job.ended for heap in self._heaps.values() for _, _, unit in heap)
        if 2 * dead <= len(self):
            return
        for key, heap in list(self._heaps.items()):
            self._heaps[key] = [entry for entry in heap if not entry[2].job.ended]
            heapq.heapify(self._heaps[key])

    def _settled(self, key: Key) -> bool:
        """Whether a heap has a unit that somebody waits for, which is then its first."""
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
        """Units that wait, those of ended jobs included."""
        return sum(map(len, self._heaps.values()))


def jobs_of(units: Sequence[Unit]) -> list[Job]:
    """The jobs of a batch, each once."""
    return list(dict.fromkeys(unit.job for unit in units))
