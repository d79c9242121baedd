"""The ladder: which architecture is how good after how much training, three seeds each.

    python experiments/ladder.py                                      # everything that is missing
    python experiments/ladder.py --rows "poly long" "cross long" --seeds 0
    python experiments/ladder.py --collect                            # trains nothing

Trains each row with each seed by the command that a user would type, in runs/ladder/. A run that was stopped
resumes. Of each finished one it writes results/ladder/ROW-SEED.json from the run's own results.json, and of
all of these results/ladder.json. Nobody writes a number by hand. Settings are chosen on validation rows; the
test rows are read once for each row of the table and seed.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from polyjax import Run
from polyjax.errors import InputError
from polyjax.runtime.files import write_text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from accuracy import MEASURES  # noqa: E402
from record import digest  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the ladder.

    Attributes:
        name: in the table.
        arch: architecture.
        preset: of the run.
        arguments: of ``polyjax``; ``{after}`` stands for the run directory of the row ``after``, same seed.
        after: a row that has to be trained before.
        offset: is added to the seed. A run that starts from another's model would otherwise read the rows
            that this was trained on once more: a seed draws the same order for both.
    """

    name: str
    arch: str
    preset: str
    arguments: str
    after: str = ""
    offset: int = 0


LADDER = (
    Row("bi demo", "bi", "demo", "train --arch bi"),
    Row("poly demo", "poly", "demo", "train --arch poly"),
    Row(
        "cross demo",
        "cross",
        "demo",
        # The bi-encoder finds the negatives; its scores are not learnt. Its best ones are often right answers
        # that nobody marked, so they are drawn among its 1,000 best.
        "distil --arch cross --init {after} --teacher {after} --teacher.n-negatives 5 "
        "--teacher.range-max 1000 --loss softmax --batch.batch-size 16 --optim.learning-rate 2e-5 "
        "--train.validate-every-steps 70",
        after="bi demo",
        offset=100,
    ),
    Row(
        "cross mined",
        "cross",
        "demo",
        # The poly-encoder finds the negatives; its scores are not learnt.
        "distil --arch cross --init {after} --teacher {after} --teacher.n-negatives 6 --loss softmax",
        after="poly demo",
    ),
    Row("bi long", "bi", "long", "train --arch bi --preset long"),
    Row("poly long", "poly", "long", "train --arch poly --preset long"),
    Row("cross long", "cross", "long", "train --arch cross --preset long --init {after}", after="poly long"),
    Row(
        "poly distilled",
        "poly",
        "demo",
        # As many steps and contexts as "poly demo"; the teacher has seen ten times as many.
        "distil --arch poly --teacher {after} --teacher.n-negatives 4 --teacher.range-max 200",
        after="bi long",
    ),
)


def polyjax(arguments: Sequence[str]) -> None:
    """Run the command; it resumes by itself.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    subprocess.run([sys.executable, "-m", "polyjax", *arguments], check=True)


class Ladder:
    """Runs, and what they found.

    Args:
        rows: of the table, each after those that it needs.
        runs: folder of the run directories.
        results: folder of ladder.json and of ladder/, a file for each finished seed.
        run: runs ``polyjax`` with arguments.
    """

    def __init__(
        self,
        rows: Sequence[Row] = LADDER,
        *,
        runs: Path = Path("runs/ladder"),
        results: Path = ROOT / "results",
        run: Callable[[Sequence[str]], None] = polyjax,
    ):
        self.rows, self.runs, self.results, self._run = rows, runs, results, run

    def row(self, name: str) -> Row:
        """The row of a name.

        Raises:
            InputError: no row has that name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError("rows", expected=f"some of {', '.join(row.name for row in self.rows)}", got=name)

    def file(self, row: Row, seed: int) -> Path:
        """What is kept of a finished seed."""
        return self.results / "ladder" / f"{_slug(row.name)}-{seed}.json"

    def folder(self, row: Row, seed: int) -> Path:
        """The run directory."""
        return self.runs / f"{_slug(row.name)}-{seed}"

    def train(self, name: str, seed: int) -> None:
        """Train a row with a seed, and first what it starts from; what is finished is left as it is."""
        row = self.row(name)
        if self.file(row, seed).exists():
            return
        after = None
        if row.after:
            needed = self.row(row.after)
            after = self.folder(needed, seed)
            if not _finished(after):  # its numbers alone are no model to start from
                self.file(needed, seed).unlink(missing_ok=True)
                self.train(row.after, seed)
        arguments = shlex.split(row.arguments.format(after=after))
        arguments += ["--train.seed", str(seed + row.offset), "--run-dir", str(self.folder(row, seed))]
        code = {path: digest(path) for path in MEASURES}  # an edit during the training makes it stale
        if not _finished(self.folder(row, seed)):
            self._run(arguments)
        found = measured(self.folder(row, seed))
        facts = {"name": row.name, "arch": row.arch, "preset": row.preset, "seed": seed, **found}
        _write(
            self.file(row, seed),
            {**facts, "command": shlex.join(["polyjax", *arguments]), "commit": commit(), "code": code},
        )

    def collect(self) -> list[dict[str, Any]]:
        """Write ladder.json from the files of finished seeds, and return its rows."""
        table = []
        for row in self.rows:
            pattern = f"{_slug(row.name)}-*.json"
            paths = sorted((self.results / "ladder").glob(pattern))
            seeds = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            if seeds:
                table.append(_together(seeds))
        _write(self.results / "ladder.json", table)
        return table


def measured(folder: Path) -> dict[str, Any]:
    """What a finished run found on the test rows.

    Args:
        folder: the run directory.

    Raises:
        InputError: the run has not finished.
    """
    run = Run.load(folder)
    low, high = run.test.interval
    seconds = max(line.get("seconds", 0.0) for line in run.history)
    steps = max(line["step"] for line in run.history)
    return {
        "recall_at_1": run.test.recall_at_1,
        "low": low,
        "high": high,
        "rows": run.test.model["n"],
        "steps": steps,
        "contexts": steps * run.config["batch"]["batch_size"],
        "seconds": round(seconds),
    }


def _together(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table: means over seeds; low and high are those of the seeds' own 95% intervals."""

    def mean(name: str) -> float:
        return sum(one[name] for one in seeds) / len(seeds)

    first, means = seeds[0], ("recall_at_1", "low", "high")
    row: dict[str, Any] = {name: first[name] for name in ("name", "arch", "preset")}
    row["seeds"] = [one["seed"] for one in seeds]
    row |= {name: round(mean(name), 4) for name in means}
    row["each"] = [one["recall_at_1"] for one in seeds]
    row |= {"steps": first["steps"], "contexts": first["contexts"], "seconds": round(mean("seconds"))}
    row |= {"command": first["command"], "commit": sorted({one["commit"] for one in seeds})}
    versions = {path: {one["code"][path] for one in seeds} for path in first["code"]}
    return row | {
        "code": {path: some.pop() if len(some) == 1 else "several" for path, some in versions.items()}
    }


def _finished(folder: Path) -> bool:
    """Whether a run has been tested and written its report, which is the last that it does."""
    return (folder / "report.md").is_file()


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def commit() -> str:
    """The commit at hand, marked where files differ from it."""
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT).stdout.strip()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train.

    Attributes:
        rows: names of rows; all by default.
        seeds: of each.
        collect: train nothing, only write results/ladder.json.
        runs: folder of the run directories.
    """

    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    collect: bool = False
    runs: Annotated[Path, tyro.conf.arg(name="runs")] = Path("runs/ladder")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, a seed of all rows before the next one, and collect after each."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    ladder = Ladder(runs=settings.runs)
    names = settings.rows or tuple(row.name for row in ladder.rows)
    for name in names:
        ladder.row(name)  # a wrong name is found out before anything is trained
    for seed in () if settings.collect else settings.seeds:
        for name in names:
            ladder.train(name, seed)
            ladder.collect()
    for row in ladder.collect():
        print(
            f"{row['name']:16} {row['recall_at_1']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  {row['seeds']}"
        )


if __name__ == "__main__":
    from polyjax.cli.flags import user_errors

    with user_errors():
        main()
