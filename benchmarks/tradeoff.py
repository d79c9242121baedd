"""What accuracy costs: recall@1 against the time to score 1,000 candidates for one context.

    python benchmarks/tradeoff.py RUN_DIR RUN_DIR RUN_DIR      # of bi-, poly- and cross-encoders on chitchat

Bi- and poly-encoders score candidates that were encoded before, as they are served; a cross-encoder reads
each candidate with the context. Each context is timed when its program is compiled. The recall is that of the
run's own test, from its results.json. Prints a table, writes benchmarks/results/tradeoff.json and .png.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from common import print_table

from polyjax import Ranker
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import read_to_rank
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.evaluation.report import hardware
from polyjax.runs import write_json
from polyjax.runtime.compilation import enable_compilation_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        runs: run directories on chitchat.
        candidates: of each context.
        contexts: test contexts that are timed.
        data_dir: the prepared chitchat task.
        out: folder of the figures.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    candidates: int = 1000
    contexts: int = 12
    data_dir: Path = Path("data")
    out: Path = Path(__file__).parent / "results"


def measure(run: Path, contexts: list[tuple[str, ...]], texts: list[str]) -> dict[str, Any]:
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
    low, high = results[name][f"{recall} 95% interval"]
    return {
        "run": run.name,
        "model": name,
        "ms": statistics.median(times) * 1000 / len(texts),
        "figure": recall,
        "recall": results[name][recall],
        "low": low,
        "high": high,
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Recall against milliseconds, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for row in rows:
        errors = [[row["recall"] - row["low"]], [row["high"] - row["recall"]]]
        axes.errorbar(row["ms"], row["recall"], errors, fmt="o", capsize=4, label=row["model"])
    axes.set(
        xscale="log", xlabel="ms for 1,000 candidates of one context", ylabel=f"{rows[0]['figure']}, test"
    )
    axes.margins(x=0.25, y=0.2)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    enable_compilation_cache()
    examples = read_to_rank(ChitchatConfig(data_dir=config.data_dir), "test", RankConfig()).examples
    texts = list(dict.fromkeys(example.label_text for example in examples))[: config.candidates]
    every = len(examples) // config.contexts
    contexts = [example.context for example in examples[::every]][: config.contexts]
    rows = [measure(run, contexts, texts) for run in config.runs]
    columns = {
        "run": "{run}",
        "model": "{model}",
        f"{rows[0]['figure']}": "{recall:.3f} [{low:.3f}, {high:.3f}]",
        "ms for 1,000 candidates": "{ms:,.1f}",
    }
    print_table("chitchat test, one context at a time", columns, rows)
    config.out.mkdir(exist_ok=True)
    write_json(config.out / "tradeoff.json", {"hardware": hardware(), "rows": rows})
    plot(rows, config.out / "tradeoff.png")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
