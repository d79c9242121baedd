"""Certified search over real candidates: the same top 10 as the scan, for how much of its time?

    python benchmarks/certified.py runs/chitchat-poly-minilm --data-dir data

Encodes 100,000 unique utterances of the chitchat task's training conversations with each run's model (kept as
an index in the run directory), then answers 200 test contexts one at a time by the scan and by certified
search, in turns. Every result is compared with the scan's. Prints a table, writes
results/certified/HOST.json; `make results` draws the share of the candidates scored exactly, and time.
"""

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import print_table
from record import RESULTS, Record

from polyjax import Ranker
from polyjax.data.tasks.chitchat import ChitchatConfig, read_conversations
from polyjax.evaluation.report import hardware
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.search.certified import CertifiedSearch
from polyjax.retrieval.search.scan import Scan
from polyjax.retrieval.search.searcher import Searcher

MEASURES = ("polyjax/retrieval", "polyjax/nn/heads")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        run_dirs: runs with a bi- or poly-encoder.
        data_dir: the prepared chitchat task.
        candidates: how many.
        contexts: how many.
        top_k: candidates wanted.
        dtype: of the stored vectors.
        out: folder of the results.
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    data_dir: Path = Path("data")
    candidates: int = 100_000
    contexts: int = 200
    top_k: int = 10
    dtype: IndexDtype = "float32"
    out: Path = RESULTS


def measure(run_dir: Path, config: BenchmarkConfig, record: Record) -> dict[str, Any]:
    """One model's figures."""
    task = ChitchatConfig(data_dir=config.data_dir)
    turns = (t for c in read_conversations("train", config.data_dir) for t in c.turns)
    texts = list(dict.fromkeys(turns))[: config.candidates]
    examples = task.read("test").examples
    chosen = np.random.default_rng(0).permutation(len(examples))[: config.contexts]
    ranker = Ranker.load(run_dir)
    began = time.perf_counter()
    folder = run_dir / f"index-{len(texts)}-{config.dtype}"
    there = (folder / "manifest.json").exists()
    opened = ranker.open_index(folder) if there else ranker.index(texts, folder, dtype=config.dtype)
    index = opened.candidates
    encoding = time.perf_counter() - began
    scan = Scan(ranker.scorer.head, index)
    search = CertifiedSearch(scan, ranker.scorer.head)
    k = Searcher(ranker.scorer, index).rows_wanted(config.top_k)
    times: dict[str, list[float]] = {"scan": [], "certified": []}
    outcomes, same = [], 0
    contexts = [examples[i].context for i in chosen]
    batches = [
        (np.asarray(vectors)[i : i + 1], np.asarray(mask)[i : i + 1])  # as a search has them
        for places, vectors, mask in ranker.scorer.context_batches(contexts)
        for i in range(len(places))
    ]
    search.compile(batches[0][0].shape[1], batches[0][0].shape[2])
    for vectors, mask in batches[:1] + batches:  # the first compiles
        began = time.perf_counter()
        scores, rows = scan(vectors, mask, k)
        times["scan"].append(time.perf_counter() - began)
        began = time.perf_counter()
        (outcome,) = search(vectors, mask, k)
        times["certified"].append(time.perf_counter() - began)
        one, other = (outcome.rows, outcome.scores), (rows[0], scores[0])
        same += all((a[: config.top_k] == b[: config.top_k]).all() for a, b in zip(one, other, strict=True))
        outcomes.append(outcome)
    case = {"run": run_dir.name, "codes": int(batches[0][0].shape[1]), "candidates": len(index)}
    taken = {name: [1e3 * t for t in values[1:]] for name, values in times.items()}
    medians = record.add(case, "ms", taken, to="scan")
    ranks = Counter(outcome.rank or 0 for outcome in outcomes[1:])  # 0: the scan did it all
    shares = [outcome.rescored / len(index) for outcome in outcomes[1:]]
    record.add(case, "% of the candidates", {"scored exactly": [100 * share for share in shares]})
    record.add(case, "contexts", {"same": [same - 1], "all": [len(batches)]})
    return {
        "run": run_dir.name,
        "codes": case["codes"],
        "dim": int(batches[0][0].shape[2]),
        "candidates": len(index),
        "contexts": len(batches),
        "encoding_s": None if there else encoding,
        "scan_ms": medians["scan"],
        "certified_ms": medians["certified"],
        "certified_90th_ms": 1e3 * float(np.percentile(times["certified"][1:], 90)),
        "ratio": medians["certified"] / medians["scan"],
        "same": same - 1,  # the first was asked twice
        "shown_ranks": " ".join(f"{rank or 'scan'}:{n}" for rank, n in sorted(ranks.items())),
        "shown_shares": " / ".join(f"{100 * share:.1f}" for share in np.percentile(shares, [50, 99, 100])),
        "rescored": shares,
        "certified_times_ms": taken["certified"],
    }


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    record = Record("certified", measures=MEASURES, settings=config)
    rows = [measure(run_dir, config, record) for run_dir in config.run_dirs]
    columns = {
        "run": "{run}",
        "codes": "{codes}",
        "scan": "{scan_ms:.1f}",
        "certified": "{certified_ms:.1f}",
        "ratio": "{ratio:.2f}",
        "90th": "{certified_90th_ms:.1f}",
        "same top": "{same} of {contexts}",
        "ranks": "{shown_ranks}",
        "rescored": "{shown_shares}",
    }
    print_table("ms, medians; rescored: % of the candidates, median / 99th / most", columns, rows)
    record.write(config.out, {"hardware": hardware(), "dtype": config.dtype, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
