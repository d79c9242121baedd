"""Record the test metrics of trained runs: results/accuracy/RUN.json, one file per run.

    python benchmarks/accuracy.py runs/chitchat-bi-minilm runs/chitchat-poly-minilm

Record a run right after it has trained: the file states the commit and host of now. It holds the run's own
results.json (baselines first, the model last, on the same rows), its settings, and its seed.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from record import RESULTS, Record

MEASURES = ("polyjax/nn", "polyjax/train", "polyjax/data", "polyjax/recipes", "polyjax/evaluation")
SHOWN = {"recall@1", "recall@2", "recall@5", "recall@10", "mrr"}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is recorded.

    Attributes:
        runs: run directories that have been tested.
        out: folder of the results.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = RESULTS


def record_run(run: Path, out: Path) -> Path:
    """Write the file of one run; its path.

    Args:
        run: a run directory, with config.json and results.json.
        out: folder of the results.
    """
    results: dict[str, dict[str, Any]] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    record = Record("accuracy", measures=MEASURES, settings=config, seeds=(config["train"]["seed"],))
    for model, metrics in results.items():
        for metric, value in metrics.items():
            if metric.split("/")[0] in SHOWN and isinstance(value, float):  # an interval is a list
                record.add({"run": run.name, "model": model}, metric, {"value": [value]})
    return record.write(out, {"run": run.name, "results": results}, file=run.name)


def main(config: BenchmarkConfig) -> None:
    """Record every run."""
    for run in config.runs:
        print(record_run(run, config.out))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
