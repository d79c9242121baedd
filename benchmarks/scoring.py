"""Exact search over many candidates, against the textbook order of operations in PyTorch.

    python benchmarks/scoring.py                          # 16, 64 and 360 codes, up to 100,000 candidates

Random vectors, one context, top 100. `float32` is the scan; `bfloat16` takes its products from a pass in
bfloat16 and scores the most promising candidates in float32 (`method="quick"`), with its recall of the scan's
top 100; `certified` chooses its rank itself: random vectors leave nothing to gain, and it may not lose much.

The peer attends first and takes the dot product afterwards, over all candidates at once (softmax over [n,
m], a second product that builds [n, d]), as published; it needs torch (extra `bench`). All take turns in
one process with the same number of threads, each after a pause (benchmarks/common.py); medians. Prints a
table, writes results/scoring/HOST.json, of which `make results` draws time against candidates.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from common import print_table, take_turns
from flax import nnx
from record import RESULTS, Record

from polyjax.evaluation.report import hardware
from polyjax.nn.heads import PolyConfig, PolyHead
from polyjax.retrieval.index.store import in_memory
from polyjax.retrieval.search.certified import CertifiedSearch
from polyjax.retrieval.search.coarse import CoarseRows
from polyjax.retrieval.search.quick import QuickSearch
from polyjax.retrieval.search.scan import BLOCK_ROWS, Scan

MEASURES = ("polyjax/retrieval", "polyjax/nn/heads")
TOP_K = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        candidates: how many, one row of the table each.
        codes: context vectors.
        dim: width.
        repeats: rounds, in which each takes its turn.
        rows: of a block.
        out: folder of the results.
    """

    candidates: tuple[int, ...] = (1_000, 10_000, 100_000)
    codes: tuple[int, ...] = (16, 64, 360)
    dim: int = 768
    repeats: int = 9
    rows: int = BLOCK_ROWS
    out: Path = RESULTS


def textbook(vectors: np.ndarray, candidates: np.ndarray) -> Callable[[], np.ndarray]:
    """Scores and their top k by PyTorch: softmax(c E^T) E . c for all candidates at once."""
    import torch  # pyright: ignore[reportMissingImports]  # an extra

    torch.set_num_threads(os.cpu_count() or 1)
    e, c = torch.from_numpy(vectors), torch.from_numpy(candidates)

    def run() -> np.ndarray:
        with torch.inference_mode():
            attended = torch.softmax(c @ e.T, dim=1) @ e
            return torch.topk((attended * c).sum(1), TOP_K).indices.numpy()

    return run


def measure(n: int, m: int, config: BenchmarkConfig, record: Record) -> dict[str, float]:
    """One row of the table."""
    draw = np.random.default_rng(0)
    candidates = draw.standard_normal((n, config.dim), np.float32)
    vectors = draw.standard_normal((m, config.dim), np.float32) / np.float32(config.dim**0.5)
    head = PolyHead(PolyConfig(n_codes=m), config.dim, rngs=nnx.Rngs(0))
    index = in_memory([str(i) for i in range(n)], candidates)
    scan = Scan(head, index, rows=config.rows)
    rows = CoarseRows(index)
    certified, quick = CertifiedSearch(scan, head, rows), QuickSearch(scan, rows)
    given = jnp.asarray(vectors)[None], jnp.ones((1, m), bool)
    peer = textbook(vectors, candidates)
    k = min(TOP_K, n)
    runs: dict[str, Callable[[], object]] = {
        "torch": peer,
        "float32": lambda: scan(*given, k),
        "bfloat16": lambda: quick(*given, k),
        "certified": lambda: certified(*given, k),
    }
    turns, case = take_turns(runs, config.repeats), {"codes": m, "candidates": n}
    times = record.add(case, "ms", turns.samples, to="torch", alone=turns.alone)
    best = scan(*given, k)[1][0]
    (half,) = quick(*given, k)
    recall = float(np.isin(best, half.rows).mean())
    record.add(case, "recall of the scan's top", {"bfloat16": [recall]})
    record.add(case, "MB", {"temporary memory": [scan.temporary_bytes(*given, k) / 1e6]})
    return {
        "candidates": n,
        "codes": m,
        **{f"{name}_ms": time for name, time in times.items()},
        "float32_ratio": times["float32"] / times["torch"],
        "bfloat16_ratio": times["bfloat16"] / times["torch"],
        "bfloat16_recall": recall,
        "rescored": half.rescored / n,
        "certified_ratio": times["certified"] / times["float32"],
        "temporary_mb": scan.temporary_bytes(*given, k) / 1e6,
        "same_top_k": float(set(peer().tolist()) == set(best.tolist())),
    }


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    record = Record("scoring", measures=MEASURES, settings=config, peers=("torch",))
    rows = [measure(n, m, config, record) for m in config.codes for n in config.candidates]
    columns = {
        "codes": "{codes:.0f}",
        "candidates": "{candidates:,.0f}",
        "torch": "{torch_ms:.1f}",
        "float32": "{float32_ms:.1f}",
        "/ torch": "{float32_ratio:.2f}",
        "bfloat16": "{bfloat16_ms:.1f}",
        "/ torch ": "{bfloat16_ratio:.2f}",
        "recall": "{bfloat16_recall:.3f}",
        "certified": "{certified_ms:.1f}",
        "/ float32": "{certified_ratio:.2f}",
        "MB": "{temporary_mb:.1f}",
    }
    print_table("ms, medians; memory of the scan beyond the index", columns, rows)
    record.write(config.out, {"hardware": hardware(), "block_rows": config.rows, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
