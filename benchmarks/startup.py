"""Time from ``import polyjax`` to the first answer, in fresh processes with a warm compilation cache.

    python benchmarks/startup.py runs/chitchat-poly-minilm                          # ranking two texts
    python benchmarks/startup.py runs/chitchat-poly-minilm --index replies-index    # searching an index

Prints a table and writes results/startup/HOST.json; with an index results/startup_search/HOST.json.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro
from record import RESULTS, Record
from rich.console import Console
from rich.table import Table

from polyjax.evaluation.report import hardware

MEASURES = ("polyjax",)
PROGRAM = """
import json, sys, time
began = time.perf_counter()
import polyjax, polyjax.runtime.compilation
imported = time.perf_counter()
polyjax.runtime.compilation.enable_compilation_cache()  # as the commands do
ranker = polyjax.Ranker.load(sys.argv[1])
loaded = time.perf_counter()
if len(sys.argv) > 2:
    ranker.open_index(sys.argv[2])
    ranker.compile()
    answer = lambda text: ranker.search(text)
else:
    answer = lambda text: ranker.rank(text, ["great!", "a red car"])
opened = time.perf_counter()
answer("hi, how are you?")
first = time.perf_counter()
answer("hi, how are you today?")
second = time.perf_counter()
times = {"import": imported - began, "load": loaded - imported}
if len(sys.argv) > 2:
    times["open, compile"] = opened - loaded
times |= {"first answer": first - opened, "in all": first - began, "second answer": second - first}
print(json.dumps(times | {"programs": ranker.compilations}))
"""


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        run_dir: a trained run.
        index: search this index instead of ranking two texts.
        repeats: processes, after one that fills the cache.
        out: folder of the results.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    index: Path | None = None
    repeats: int = 5
    out: Path = RESULTS


def main(config: BenchmarkConfig) -> None:
    """Start processes, print and write medians."""
    name = "startup_search" if config.index else "startup"
    record = Record(name, measures=MEASURES, settings=config)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(config.run_dir),
        *([str(config.index)] if config.index else []),
    ]
    rows = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(config.repeats + 1)
    ][1:]
    table = Table(title="seconds, medians", title_justify="left")
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    record.add({}, "s", {name: [row[name] for row in rows] for name in figures if name != "programs"})
    record.add({}, "programs", {"compiled": [figures["programs"]]})
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(
        *(f"{value:.2f}" if name != "programs" else f"{value:.0f}" for name, value in figures.items())
    )
    Console().print(table)
    record.write(config.out, {"hardware": hardware(), **figures})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
