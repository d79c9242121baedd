"""What several benchmarks need: taking turns, and a table from rows of figures."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def interleaved_medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of each, taking turns: a noisy neighbour hits all. A first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if round_:  # the first compiles
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of figures.

    Args:
        title: of the table.
        columns: heading -> format of a row, as ``"{scan_ms:.1f}"``; white space around a heading only tells
            columns of one name apart.
        rows: figures by name.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name.strip(), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(text.format(**row) for text in columns.values()))
    Console(width=120).print(table)
