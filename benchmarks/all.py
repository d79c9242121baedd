"""Run the benchmarks, all that are missing or stale, and say which those are.

    python benchmarks/all.py --list     # the state of every result for this kind of host; measures nothing
    python benchmarks/all.py --quick    # smaller sizes and fewer repeats, about 10 minutes
    python benchmarks/all.py            # in full, at most 90 minutes

A result is *stale* when a file that it measures has changed since (each benchmark names those: MEASURES).
Stop it at any time: the next call measures what is left. What needs a trained run or a package that is not
there is skipped, with the reason. Run it on a machine that does nothing else.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from record import RESULTS, ROOT, commits_since, host_of, read, stale

POLY = "runs/chitchat-poly-minilm"
TRAINED = "`make demo` trains it, `polyjax index` builds its index"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A benchmark of the suite.

    Attributes:
        name: folder of its results.
        script: in benchmarks/; the name where empty.
        full: arguments, as on a command line.
        quick: arguments of the quick suite; None where it is not part of it.
        minutes: about how long in the quick suite and in full, on two cores.
        runs: folders that must exist.
        packages: Python packages that must be installed.
    """

    name: str
    script: str = ""
    full: str = ""
    quick: str | None = None
    minutes: tuple[float, float]
    runs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def command(self, quick: bool) -> str:
        """As results state it."""
        words = shlex.split((self.quick or "") if quick else self.full)
        return shlex.join(["python", f"benchmarks/{self.script or self.name}.py", *words])

    def needs(self) -> str:
        """What is not there, or nothing."""
        folders = [folder for folder in self.runs if not (ROOT / folder).exists()]
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        parts = [f"{', '.join(folders)} ({TRAINED})"] if folders else []
        return "; ".join([*parts, *([f"{', '.join(missing)} (extra bench)"] if missing else [])])


TORCH, PEERS = ("torch",), ("torch", "sentence_transformers")
JOBS = (
    Job(name="scoring", quick="--candidates 100000 --codes 64 --repeats 3", minutes=(0.6, 7), packages=TORCH),
    Job(name="encoder", full="--repeats 20", quick="--repeats 3", minutes=(0.9, 6), packages=PEERS),
    Job(name="encoders", minutes=(0, 8), packages=("torch", "transformers")),
    Job(name="encoding", quick="--texts 500 --repeats 2", minutes=(0.8, 7), packages=PEERS),
    Job(name="train_step", quick="--repeats 2 --rounds 1", minutes=(2.2, 6), packages=PEERS),
    Job(name="reply", quick="--repeats 3", minutes=(0.8, 2), packages=("torch", "transformers")),
    Job(name="millions", quick="--candidates 1000 100000", minutes=(0.5, 4)),
    Job(name="chunks", quick="--batch 16 --chunk 4 --repeats 1", minutes=(0.4, 2)),
    Job(name="page_faults", minutes=(0, 2)),
    Job(name="roofline", full="--measure", quick="--measure --repeats 3", minutes=(0.4, 1)),
    Job(name="input", quick="--updates 8", minutes=(0.8, 3)),
    Job(name="zoo", quick="--candidates 100 --replies 3", minutes=(0.8, 3)),
    Job(name="certified", full=POLY, minutes=(0, 7), runs=(POLY,)),
    Job(
        name="startup",
        full=POLY,
        quick=f"{POLY} --repeats 2",
        minutes=(0.4, 1),
        runs=(POLY,),
    ),
    Job(
        name="startup_search",
        script="startup",
        full=f"{POLY} --index {POLY}/index-100000-float32",
        minutes=(0, 1),
        runs=(f"{POLY}/index-100000-float32",),
    ),
    Job(name="tradeoff", quick="--contexts 3 --pairs 50", minutes=(0.8, 3)),
    Job(name="serve", full="minilm", minutes=(0, 8)),
    Job(name="load", full="minilm", minutes=(0, 4)),
    Job(name="corpus_pairs", script="corpus", full="--pairs 10000 100000 1000000", minutes=(0, 8)),
    Job(
        name="corpus_reddit",
        script="corpus",
        full="--kind reddit --pairs 10000 100000",
        minutes=(0, 4),
    ),
)

APART = {"accuracy", "gpu", "versions"}
"""Benchmarks that are run by hand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """What is run.

    Attributes:
        quick: smaller sizes and fewer repeats; a result of the full suite is as good.
        list: only say what is there, and how old it is.
        only: names of benchmarks; all where empty.
        again: measure what is current too.
        out: folder of the results.
    """

    quick: bool = False
    list: bool = False
    only: tuple[str, ...] = ()
    again: bool = False
    out: Path = RESULTS


@dataclasses.dataclass(frozen=True)
class State:
    """Of a benchmark's result on this kind of host.

    Attributes:
        word: ``current``, ``stale``, ``quick`` (in full is wanted), ``other`` (other arguments) or
            ``missing``.
        why: which files changed.
        result: the result, where there is one.
    """

    word: str
    why: str = ""
    result: Mapping[str, Any] | None = None


def state_of(job: Job, *, quick: bool, kind: str, results: Path) -> State:
    """Whether a result is there, of this host's kind, of these arguments, and of this code."""
    found = [result for result in read(job.name, results) if result["host"]["kind"] == kind]
    if not found:
        elsewhere = len(read(job.name, results))
        return State("missing", f"there are {elsewhere} of other hosts" if elsewhere else "")
    result = found[0]
    if changed := stale(result):
        return State("stale", why_stale(result, changed), result)
    if result["command"] == job.command(quick=False):
        return State("current", "", result)
    if job.quick is not None and result["command"] == job.command(quick=True):
        return State("current" if quick else "quick", "" if quick else "not in full", result)
    return State("other", result["command"], result)


def why_stale(result: Mapping[str, Any], changed: Sequence[str]) -> str:
    """What changed since a result, and in how many commits where git knows."""
    commits = commits_since(result, changed)
    since = f"; {commits} commits since" if commits else ""
    return ", ".join(changed) + since


def measures_of(script: str) -> tuple[str, ...]:
    """The files and folders that a benchmark measures, without importing it.

    >>> measures_of("scoring")
    ('polyjax/retrieval', 'polyjax/nn/heads')
    """
    tree = ast.parse((ROOT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MEASURES":
            return tuple(ast.literal_eval(node.value))
    raise ValueError(f"benchmarks/{script}.py names no MEASURES")


def due(jobs: Iterable[Job], suite: Suite, kind: str) -> list[tuple[Job, State]]:
    """The benchmarks to run, in order, with the state of their results."""
    found = []
    for job in jobs:
        state = state_of(job, quick=suite.quick, kind=kind, results=suite.out)
        part = not suite.quick or job.quick is not None
        if part and (suite.again or state.word != "current"):
            found.append((job, state))
    return found


def show(jobs: Sequence[Job], suite: Suite, kind: str) -> None:
    """Print the states, of the suite's benchmarks and then of other results."""
    print(f"results for {kind}")
    print(line("benchmark", "state", None, "min", "note"))
    for job in jobs:
        state = state_of(job, quick=suite.quick, kind=kind, results=suite.out)
        note = state.why or (job.needs() and f"needs {job.needs()}")
        print(line(job.name, state.word, state.result, f"{job.minutes[not suite.quick]:g}", note))
    known = {job.name for job in JOBS}
    others = sorted(folder.name for folder in suite.out.glob("*") if folder.is_dir())
    for name in others if not suite.only else ():
        for result in read(name, suite.out) if name not in known else ():
            if "code" in result:
                changed = stale(result)
                note = why_stale(result, changed) if changed else ""
                print(line(name, "stale" if changed else "current", result, "", note))


def line(name: str, word: str, result: Mapping[str, Any] | None, minutes: str, note: str) -> str:
    """A row of the states.

    >>> line("scoring", "missing", None, "7", "needs torch")
    'scoring         missing                              7  needs torch'
    """
    date, commit = (result["date"][:10], result["commit"] or "?") if result else ("", "")
    return f"{name:15} {word:8} {date:10} {commit:13} {minutes:>4}  {note}".rstrip()


def measure(job: Job, suite: Suite) -> str:
    """Run a benchmark; what went wrong, or nothing."""
    command = job.command(suite.quick and job.quick is not None)
    words = [sys.executable, *shlex.split(command)[1:], "--out", str(suite.out.resolve())]
    limit = 60 * max(5.0, 3 * job.minutes[not suite.quick])
    status = status_within(limit, words)
    if status is None:
        return f"ended after {limit / 60:.0f} minutes, three times as long as expected"
    return f"exit status {status}" if status else ""


def status_within(seconds: float, words: Sequence[str]) -> int | None:
    """A command's exit status; None if it took too long and was ended.

    It is ended with all processes that it started: they would compute while the next benchmark is timed.
    """
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also where the user stops the suite
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def main(suite: Suite, jobs: Sequence[Job] = JOBS) -> int:
    """Show states, or run what is due; the exit status."""
    if unknown := sorted(set(suite.only) - {job.name for job in jobs}):
        print(f"no such benchmark: {', '.join(unknown)}; --list shows them", file=sys.stderr)
        return 2
    jobs = [job for job in jobs if not suite.only or job.name in suite.only]
    kind = host_of()["kind"]
    if suite.list:
        show(jobs, suite, kind)
        return 0
    wanted = due(jobs, suite, kind)
    minutes = sum(job.minutes[not suite.quick] for job, _ in wanted if not job.needs())
    print(f"{len(wanted)} of {len(jobs)} benchmarks to run on {kind}, about {minutes:.0f} min", flush=True)
    failed = {}
    for number, (job, state) in enumerate(wanted, 1):
        said = f"[{number}/{len(wanted)}] {job.name} ({state.word})"
        if needs := job.needs():
            print(f"{said}: skipped, needs {needs}", flush=True)
            continue
        print(f"{said}: {job.command(suite.quick)}", flush=True)
        began = time.perf_counter()
        if problem := measure(job, suite):
            failed[job.name] = problem
        print(f"    {problem or 'done'}, {time.perf_counter() - began:.0f} s", flush=True)
    for name, problem in failed.items():
        print(f"failed: {name}: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Suite, description=__doc__)))
