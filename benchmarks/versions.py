"""Speed of this checkout against an earlier commit: start-up, encoding, exact searches, a training step.

    python benchmarks/versions.py --before d9144dd
    python benchmarks/versions.py --before d9144dd --start --rounds 11    # start-up alone

The earlier commit trains a few steps and builds an index; both versions then open these. Each sample is a
whole process, and the two take turns, so that a noisy machine hits both. A slowdown counts where the interval
of the paired ratios lies above 1.05. Prints a table and writes results/versions/HOST.json, of start-up alone
results/versions_start/HOST.json.
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro
from common import in_turns, interval_of_median, print_table
from record import RESULTS, ROOT, Record

from polyjax.data.tasks.chitchat import ChitchatConfig

MEASURES = ("polyjax",)
NAMES = ("before", "now")
ROWS = "rows.jsonl"
INDEX = """
import sys, polyjax
texts = open(sys.argv[2], encoding="utf-8").read().split("\\n")
polyjax.Ranker.load(sys.argv[1]).index(texts, sys.argv[3])
"""
USE = """
import json, sys, time
marks = [time.perf_counter()]
import polyjax
marks.append(time.perf_counter())
run, index, texts, contexts, top_k = *sys.argv[1:4], json.loads(sys.argv[4]), int(sys.argv[5])
texts = open(texts, encoding="utf-8").read().split("\\n")[:512]
ranker = polyjax.Ranker.load(run)
marks.append(time.perf_counter())
ranker.rank(contexts[0], texts[:2])
marks.append(time.perf_counter())
def milliseconds(call):
    call()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[2]
found = {name: 1e3 * (b - a) for name, a, b in zip(["import", "load", "first answer"], marks, marks[1:])}
found["import and load"] = found["import"] + found["load"]
if not index:
    print(json.dumps(found | {"file": polyjax.__file__}))
    sys.exit()
found["encode 512 candidates"] = milliseconds(lambda: ranker.index(texts))
ranker.open_index(index)
for method in ("scan", "certified"):
    def search():
        for context in contexts:
            ranker.search(context, top_k, method=method)
    found[method] = milliseconds(search) / len(contexts)
print(json.dumps(found | {"file": polyjax.__file__}))
"""


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is compared.

    Attributes:
        before: the earlier commit.
        start: only time what a process does before its first answer.
        rounds: processes of each version and kind, after one that fills the compilation cache.
        rows: of chitchat that are trained on.
        candidates: in the index, labels of chitchat.
        contexts: that are searched for.
        top_k: of a search.
        steps: of a training; the log has the mean of each ten, and the first ten are not counted.
        out: folder of the results.
    """

    before: str
    start: bool = False
    rounds: int = 5
    rows: int = 2000
    candidates: int = 20_000
    contexts: int = 8
    top_k: int = 10
    steps: int = 20
    out: Path = RESULTS


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A working tree of a commit, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


class Versions:
    """Two checkouts, each with a compilation cache of its own.

    Args:
        trees: by name, the earlier one first.
        folder: for runs, index and caches.
    """

    def __init__(self, trees: Mapping[str, Path], folder: Path):
        self.trees, self.folder = trees, folder

    def python(self, name: str, *arguments: str) -> str:
        """Standard output of Python in a version.

        Raises:
            subprocess.CalledProcessError: it failed, and has said why.
        """
        environment = os.environ | {
            "PYTHONPATH": str(self.trees[name]),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / f"compiled-{name}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XDG_CACHE_HOME": str(self.folder / f"cache-{name}"),
        }
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder, env=environment
        ).stdout

    def train(self, name: str, steps: int) -> tuple[Path, list[dict[str, Any]]]:
        """A new run of the demo's poly-encoder, and the lines of its log."""
        run = self.folder / f"run-{name}"
        shutil.rmtree(run, ignore_errors=True)
        script = self.trees[name] / "experiments" / "run.py"
        self.python(
            name,
            *(str(script), "--arch", "poly", "--task", f"jsonl:{self.folder / ROWS}"),
            *("--run-dir", str(run), "--train.steps", str(steps)),
            *("--train.validate-examples", "20", "--test-examples", "20"),
        )
        return run, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_milliseconds(log: Sequence[Mapping[str, Any]]) -> float:
    """The mean time of a step after the first ten."""
    lines = [line["step_seconds"] for line in log if line["kind"] == "train" and line["step"] > 10]
    return 1e3 * statistics.mean(lines)


def measure(versions: Versions, config: BenchmarkConfig) -> Iterator[tuple[str, str, float]]:
    """What was timed, of which version, milliseconds; round by round."""
    examples = ChitchatConfig(data_dir=ROOT / "data").read_listed("train").examples
    texts = list(dict.fromkeys(" ".join(one.label_text.split()) for one in examples))[: config.candidates]
    contexts = json.dumps([list(one.context) for one in examples[:: len(examples) // config.contexts]])
    file, index = versions.folder / "texts", versions.folder / "index"
    file.write_text("\n".join(texts), encoding="utf-8")
    rows = [{"context": list(one.context), "label": one.label_text} for one in examples[: config.rows]]
    (versions.folder / ROWS).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = versions.train("before", 10)[0].rename(versions.folder / "made")
    if not config.start:
        versions.python("before", "-c", INDEX, str(made), str(file), str(index))
    opened = "" if config.start else str(index)
    use = ["-c", USE, str(made), opened, str(file), contexts, str(config.top_k)]
    for name, round_ in in_turns(NAMES, config.rounds + 1):
        found = json.loads(versions.python(name, *use))
        if not found.pop("file").startswith(str(versions.trees[name])):
            raise RuntimeError(f"another polyjax than that of {versions.trees[name]} was imported")
        if not config.start:
            found["training step"] = step_milliseconds(versions.train(name, config.steps)[1])
        if round_:
            yield from ((what, name, value) for what, value in found.items())


def main(config: BenchmarkConfig) -> None:
    """Time both in turns, print and write."""
    name = "versions_start" if config.start else "versions"
    record = Record(name, measures=MEASURES, settings=config)
    samples: dict[str, dict[str, list[float]]] = {}
    with checkout(config.before) as tree, tempfile.TemporaryDirectory() as folder:
        for what, name, value in measure(Versions({"before": tree, "now": ROOT}, Path(folder)), config):
            samples.setdefault(what, {one: [] for one in NAMES})[name].append(value)
    rows = []
    for what, times in samples.items():
        medians = record.add({"what": what}, "ms", times, to="before")
        pairs = [now / before for before, now in zip(times["before"], times["now"], strict=True)]
        low, high = interval_of_median(pairs)
        record.add({"what": what}, "paired ratio", {"now": pairs})
        rows.append({"what": what, **medians, "ratio": statistics.median(pairs), "low": low, "high": high})
    columns = {"what": "{what}", "before, ms": "{before:.1f}", "now, ms": "{now:.1f}"}
    columns |= {"ratio": "{ratio:.3f}", "95% interval": "{low:.3f} to {high:.3f}"}
    print_table(f"{config.before} and now: medians of {config.rounds} processes in turns", columns, rows)
    record.write(config.out, {"before": config.before, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
