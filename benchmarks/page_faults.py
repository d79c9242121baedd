"""Time training steps with and without huge pages, each in a process of its own.

    python benchmarks/page_faults.py

A MiniLM-sized poly-encoder, random weights, 32 contexts of 80 and candidates of 48 tokens, bfloat16. Prints a
table with the page faults of a step, and writes results/page_faults/HOST.json.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from record import RESULTS, Record
from rich.console import Console
from rich.table import Table

from polyjax import Batch, DualInputs, EncoderConfig, PolyConfig, Shared, Tokens, make_scorer
from polyjax.evaluation.report import hardware
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.memory import TUNABLE
from polyjax.train import Trainer
from polyjax.train.losses import ranking_loss

MEASURES = ("polyjax/nn", "polyjax/train", "polyjax/runtime/memory.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        steps: timed in each process, after two that are not.
        rounds: processes of each kind, taking turns.
        out: folder of the results.
        measure: time one kind in this process and print it; for the benchmark's own use.
    """

    steps: int = 6
    rounds: int = 2
    out: Path = RESULTS
    measure: bool = False


def measure(steps: int) -> dict[str, Any]:
    """Each step's seconds, their median, and mean page faults of a step."""
    enable_compilation_cache()
    shape = EncoderConfig(vocab_size=30522, dim=384, n_layers=6, n_heads=12, mlp_dim=1536, dtype="bfloat16")
    head = PolyConfig(shared_encoder=True, normalize=True, score_scale=20.0, candidate_sharpness=10.0)
    draw = np.random.default_rng(0)
    scorer = make_scorer(shape, head, rngs=nnx.Rngs(0))
    trainer = Trainer(scorer, ranking_loss, encoder=shape, n_steps=100)

    def tokens(rows: int, length: int) -> Tokens:
        ids = draw.integers(1000, 20000, (rows, length)).astype(np.int32)
        return Tokens(ids, ids > 0, np.zeros_like(ids))

    inputs = DualInputs(tokens(32, 80), Shared(tokens(32, 48)))
    batch = Batch(inputs, np.arange(32, dtype=np.int32), np.ones((32, 32), bool))
    times: list[float] = []
    faults = 0
    for i in range(steps + 2):
        if i == 2:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        metrics = trainer.step(batch)
        jax.block_until_ready((trainer.state.step, metrics))
        times.append(time.perf_counter() - began)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "times": times[2:],
        "seconds": statistics.median(times[2:]),
        "page_faults": faults / steps,
        "peak_gib": peak,
    }


def main(config: BenchmarkConfig) -> None:
    """Time both kinds in turn, print and write the table."""
    if config.measure:
        print(json.dumps(measure(config.steps)))
        return
    record = Record("page_faults", measures=MEASURES, settings=config)
    runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(config.rounds):
        for huge, rows in runs.items():
            environment = {**os.environ, "GLIBC_TUNABLES": TUNABLE if huge else "glibc.malloc.hugetlb=0"}
            command = [sys.executable, __file__, "--measure", "--steps", str(config.steps)]
            done = subprocess.run(command, check=True, capture_output=True, env=environment)
            rows.append(json.loads(done.stdout))
    table = Table(title="a training step", title_justify="left")
    for name in ("pages", "seconds", "page faults", "peak GiB"):
        table.add_column(name, justify="right")
    figures, names = {}, {False: "4 KiB", True: "huge"}
    seconds = {names[huge]: [t for row in rows for t in row["times"]] for huge, rows in runs.items()}
    record.add({}, "s", seconds, to="4 KiB")
    for key, unit in (("page_faults", "page faults"), ("peak_gib", "GiB")):
        record.add({}, unit, {names[huge]: [row[key] for row in rows] for huge, rows in runs.items()})
    for huge, rows in runs.items():
        best = min(rows, key=lambda row: row["seconds"])
        name = names[huge]
        figures[name] = {key: value for key, value in best.items() if key != "times"}
        table.add_row(
            name, f"{best['seconds']:.3f}", f"{best['page_faults']:,.0f}", f"{best['peak_gib']:.1f}"
        )
    Console().print(table)
    record.write(config.out, {"hardware": hardware(), "best of rounds": figures})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
