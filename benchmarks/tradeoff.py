"""What accuracy costs: recall@1 against the time to score 1,000 candidates for one context.

    python benchmarks/tradeoff.py RUN_DIR RUN_DIR RUN_DIR      # of bi-, poly- and cross-encoders on chitchat

Bi- and poly-encoders score candidates that were encoded before, as they are served; a cross-encoder reads
each candidate with the context. Each context is timed when its program is compiled. The recall is that of the
run's own test, from its results.json. Prints a table, writes results/tradeoff/HOST.json, of
which `make results` draws recall against time.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from common import print_table
from record import RESULTS, Record

from polyjax import Ranker
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import read_to_rank
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.evaluation.report import hardware
from polyjax.runtime.compilation import enable_compilation_cache

MEASURES = ("polyjax/inference", "polyjax/retrieval", "polyjax/nn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        runs: run directories on chitchat.
        candidates: of each context.
        contexts: test contexts that are timed.
        data_dir: the prepared chitchat task.
        out: folder of the results.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    candidates: int = 1000
    contexts: int = 12
    data_dir: Path = Path("data")
    out: Path = RESULTS


def measure(run: Path, contexts: list[tuple[str, ...]], texts: list[str], record: Record) -> dict[str, Any]:
    """Recall of a run, and its median time for a context."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    name = next(reversed(results))  # the baselines come before the model
    recall = next(figure for figure in results[name] if figure.startswith("recall@1/"))
    ranker = Ranker.load(run)
    cached = not name.startswith("cross")
    if cached:
        ranker.index(texts)
    times = []
    for context in contexts:
        took = []
        for _ in range(2):  # the first may compile
            began = time.perf_counter()
            ranker.search(context, method="scan") if cached else ranker.rank(context, texts, top_k=10)
            took.append(1e3 * (time.perf_counter() - began))
        times.append(took[-1])
    case = {"run": run.name, "model": name}
    record.add(case, "ms for 1,000 candidates", {"time": [ms * 1000 / len(texts) for ms in times]})
    low, high = results[name][f"{recall} 95% interval"]
    interval = {"recall": [results[name][recall]], "low": [low], "high": [high]}
    record.add(case, recall, interval)
    return {
        "run": run.name,
        "model": name,
        "ms": statistics.median(times) * 1000 / len(texts),
        "figure": recall,
        "recall": results[name][recall],
        "low": low,
        "high": high,
    }


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    enable_compilation_cache()
    examples = read_to_rank(ChitchatConfig(data_dir=config.data_dir), "test", RankConfig()).examples
    texts = list(dict.fromkeys(example.label_text for example in examples))[: config.candidates]
    every = len(examples) // config.contexts
    contexts = [example.context for example in examples[::every]][: config.contexts]
    record = Record("tradeoff", measures=MEASURES, settings=config)
    rows = [measure(run, contexts, texts, record) for run in config.runs]
    columns = {
        "run": "{run}",
        "model": "{model}",
        f"{rows[0]['figure']}": "{recall:.3f} [{low:.3f}, {high:.3f}]",
        "ms for 1,000 candidates": "{ms:,.1f}",
    }
    print_table("chitchat test, one context at a time", columns, rows)
    record.write(config.out, {"hardware": hardware(), "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
