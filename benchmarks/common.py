"""What several benchmarks need: taking turns, and a table from rows of numbers.

Turns are fair only if whoever was timed before has come to rest. The threads of OpenMP, which PyTorch
computes with, go on spinning after a product (up to 200 ms in Intel's runtime) and take the cores of the
next in turn; those of XLA sleep sooner. So each turn begins with a pause. ``Turns.neighbour`` says whether
that was enough: how much slower a part is in turns than when it runs alone.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PAUSE = 0.3
"""Seconds before a turn, in which the threads of the part before fall asleep."""
SHORT = 500.0
"""Milliseconds below which a call is made twice in a turn and timed once: threads wake up first."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """Milliseconds of what took turns.

    Attributes:
        samples: in turns, by name, in the order in which they were taken.
        alone: of the same without neighbours, right after one another.
    """

    samples: dict[str, list[float]]
    alone: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        """Of the samples in turns."""
        return {name: statistics.median(values) for name, values in self.samples.items()}

    @property
    def neighbour(self) -> dict[str, float]:
        """Time in turns over time alone: 1 where a time does not depend on its neighbours."""
        return {name: self.medians[name] / statistics.median(values) for name, values in self.alone.items()}


def in_turns(names: Iterable[str], rounds: int, *, pause: float = PAUSE) -> Iterator[tuple[str, int]]:
    """Whose turn it is, after a pause, and in which round, counted from 0.

    >>> list(in_turns(["torch", "polyjax"], 2, pause=0.0))
    [('torch', 0), ('polyjax', 0), ('torch', 1), ('polyjax', 1)]
    """
    names = list(names)
    for round_ in range(rounds):
        for name in names:
            time.sleep(pause)
            yield name, round_


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, pause: float = PAUSE, alone: int | None = None
) -> Turns:
    """Time calls that take turns, so that a noisy machine hits all of them; each has compiled before.

    Args:
        runs: by name; each returns when its result is there.
        repeats: samples of each.
        pause: seconds before a turn.
        alone: samples of each without neighbours; a third of ``repeats``, and 3 at least, where None.
    """
    first: dict[str, float] = {}

    def sample(name: str) -> float:
        if first[name] < SHORT:
            runs[name]()
        return timed(runs[name])

    by_itself: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        time.sleep(pause)
        run()  # compiles
        first[name] = timed(run)
        for _ in range(max(3, repeats // 3) if alone is None else alone):
            by_itself[name].append(sample(name))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for name, _ in in_turns(runs, repeats, pause=pause):
        samples[name].append(sample(name))
    return Turns(samples, {name: values for name, values in by_itself.items() if values})


def interval_of_median(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float]:
    """The 95% interval of a median: percentile bootstrap, seed 0.

    >>> interval_of_median([3.0] * 9)
    (3.0, 3.0)
    """
    draw = random.Random(0)
    return _middle([statistics.median(draw.choices(values, k=len(values))) for _ in range(draws)])


def interval_of_quotient(
    values: Sequence[float], others: Sequence[float], *, draws: int = 2000
) -> tuple[float, float]:
    """The 95% interval of the quotient of two medians: percentile bootstrap, seed 0.

    >>> interval_of_quotient([3.0] * 9, [2.0] * 9)
    (1.5, 1.5)
    """
    draw = random.Random(0)

    def median(of: Sequence[float]) -> float:
        return statistics.median(draw.choices(of, k=len(of)))

    return _middle([median(values) / median(others) for _ in range(draws)])


def _middle(values: list[float]) -> tuple[float, float]:
    """The bounds of the middle 95%."""
    values.sort()
    return values[round(0.025 * (len(values) - 1))], values[round(0.975 * (len(values) - 1))]


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


def print_table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of numbers.

    Args:
        title: of the table.
        columns: heading -> format of a row, as ``"{scan_ms:.1f}"``; white space around a heading only tells
            columns of one name apart.
        rows: numbers by name.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name.strip(), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(text.format(**row) for text in columns.values()))
    Console(width=120).print(table)
