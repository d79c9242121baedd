"""Benchmarks write what they found as data, the suite knows what is stale. Nothing is measured here."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]  # scripts that import each other by name

import all as suite  # noqa: E402
import common  # noqa: E402
import gpu  # noqa: E402
import record  # noqa: E402
import results_tables as tables  # noqa: E402
from record import Record  # noqa: E402

HELPERS = {"all", "common", "gpu_parts", "http_load", "record", "served", "training"}
SCRIPTS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - HELPERS)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a benchmark."""

    run_dir: Path
    repeats: int = 3
    out: Path = Path("elsewhere")


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository without git, with one file to measure."""
    (tmp_path / "polyjax").mkdir()
    (tmp_path / "polyjax" / "version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "polyjax" / "fast.py").write_text("x = 1\n")
    (tmp_path / "benchmarks").mkdir()
    for module in (record, suite):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def written(root: Path, name: str = "speed", words: tuple[str, ...] = (), **own) -> dict:
    """A result that was measured in a repository by ``python benchmarks/NAME.py WORDS``."""
    before, sys.argv = sys.argv, [str(root / "benchmarks" / f"{name}.py"), *words]
    try:
        found = Record(name, measures=("polyjax",), settings=Config(root / "runs" / "a"), seeds=(0, 1))
        found.add({"rows": 8}, "ms", {"torch": [4.0, 6.0, 5.0], "polyjax": [2.0, 1.0, 3.0]}, to="torch")
        return json.loads(found.write(root / "results", own).read_text())
    finally:
        sys.argv = before


def test_what_takes_too_long_is_ended_with_its_processes(repository):
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    code += "open('pid', 'w').write(str(p.pid)); time.sleep(60)"
    assert suite.status_within(5, [sys.executable, "-c", code]) is None
    status = Path(f"/proc/{(repository / 'pid').read_text()}/stat")
    wait_until = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < wait_until:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().split()[2] == "Z"
    assert suite.status_within(30, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_a_result_says_how_it_was_made(repository):
    words = ("--rows", "8", "--out", "/somewhere/x", f"--index={repository}/i", "--data=/data/a")
    found = written(repository, words=words, own=[1.5])
    assert found["command"] == "python benchmarks/speed.py --rows 8 --index=i --data=a"
    assert found["settings"] == {"run_dir": "runs/a", "repeats": 3}
    assert found["seeds"] == [0, 1] and found["repeats"] == 3 and found["own"] == [1.5]
    torch, ours = found["measurements"]
    assert torch == {
        "name": "torch",
        "case": {"rows": 8},
        "unit": "ms",
        "samples": [4.0, 6.0, 5.0],
        "median": 5.0,
    }
    assert ours["median"] == 2.0
    assert found["ratios"] == [
        {"name": "polyjax", "to": "torch", "case": {"rows": 8}, "unit": "ms", "value": 0.4}
    ]
    assert found["host"]["cores"] > 0 and found["host"]["ram_gib"] > 0
    assert found["versions"]["polyjax"] == "1.2.3"
    assert found["commit"] is None, "a folder without git has none"


def test_a_result_names_no_host_and_no_absolute_path(repository):
    text = json.dumps(written(repository, words=(str(repository / "runs" / "a"), "/somewhere/data")))
    assert '"/' not in text and " /" not in text and str(repository) not in text
    import platform

    assert platform.node() not in text


def test_keys_of_its_own_must_not_hide_others(repository):
    with pytest.raises(ValueError, match="every result has already: host"):
        written(repository, host="mine")


def test_a_result_is_stale_when_what_it_measures_changed(repository):
    found = written(repository)
    assert record.stale(found) == []
    (repository / "polyjax" / "fast.py").write_text("x = 2\n")
    assert record.stale(found) == ["polyjax"]
    (repository / "polyjax" / "fast.py").write_text('"""Better prose."""\n\n# and why\nx = 1\n')
    assert record.stale(found) == [], "what does not run changes no measurement"
    (repository / "polyjax" / "new.py").write_text("")
    assert record.stale(found) == ["polyjax"], "a new file is a change"


def test_not_a_number_is_null(tmp_path):
    record.write_json(tmp_path / "a" / "b.json", {"x": float("nan"), "y": [1.0, 2.0], "z": float("inf")})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": None, "y": [1.0, 2.0], "z": None}
    assert "[1.0, 2.0]" in (tmp_path / "a" / "b.json").read_text()


def test_commits_since_a_result_are_counted():
    head = record.git("rev-parse", "HEAD")
    if head is None:
        pytest.skip("no git")
    assert record.commits_since({"commit": head.strip() + "+"}, ["polyjax"]) == 0
    assert record.commits_since({"commit": "0" * 12}, ["polyjax"]) is None
    assert record.commits_since({"commit": None}, ["polyjax"]) is None


# Turns


def test_turns_wait_for_the_one_before():
    busy_until = [0.0]

    def spinning() -> None:
        busy_until[0] = time.perf_counter() + 0.02  # its threads spin on for 20 ms

    def ours() -> None:
        if time.perf_counter() < busy_until[0]:
            time.sleep(0.05)

    runs = {"torch": spinning, "polyjax": ours}
    rested = common.take_turns(runs, 3, pause=0.04)
    assert set(rested.samples) == set(rested.alone) == {"torch", "polyjax"}
    assert [len(values) for values in rested.samples.values()] == [3, 3]
    assert rested.medians["polyjax"] < 25, "the pause is longer than the spinning"
    assert rested.neighbour["polyjax"] == pytest.approx(
        rested.medians["polyjax"] / sorted(rested.alone["polyjax"])[1]
    )


def test_what_is_long_is_called_once_in_a_turn(monkeypatch):
    calls = []
    monkeypatch.setattr(common, "SHORT", 0.0)
    common.take_turns({"a": lambda: calls.append(1)}, 4, pause=0.0, alone=1)
    assert len(calls) == 2 + 1 + 4, "compile, time, alone, four turns"


# The suite


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_records_what_it_measures(script):
    """Scripts are read, not imported: some need torch."""
    source = (ROOT / "benchmarks" / f"{script}.py").read_text()
    paths = suite.measures_of(script)
    assert paths and all((ROOT / path).exists() for path in paths)
    assert "record.write(" in source and "Record(" in source
    assert "write_json(" not in source


def test_the_suite_has_every_benchmark_once_and_fits_its_times():
    names = [job.name for job in suite.JOBS]
    assert len(set(names)) == len(names)
    assert {job.script or job.name for job in suite.JOBS} | suite.APART == set(SCRIPTS)
    assert sum(job.minutes[0] for job in suite.JOBS if job.quick is not None) <= 10
    assert sum(job.minutes[1] for job in suite.JOBS) <= 90
    assert all(job.minutes[0] > 0 for job in suite.JOBS if job.quick is not None)


@pytest.mark.parametrize("job", suite.JOBS, ids=lambda job: job.name)
def test_flags_of_the_suite_exist(job):
    source = (ROOT / "benchmarks" / f"{job.script or job.name}.py").read_text()
    for word in f"{job.full} {job.quick or ''}".split():
        if word.startswith("--"):
            assert f"\n    {word[2:].replace('-', '_')}: " in source, word


SCRIPT = """
import sys
sys.path.insert(0, {benchmarks!r})
import record
from pathlib import Path
record.ROOT = Path({root!r})
found = record.Record("speed", measures=("polyjax",))
found.add({{}}, "ms", {{"polyjax": [1.0]}})
assert "--broken" not in sys.argv, "broken"
found.write(Path(sys.argv[sys.argv.index("--out") + 1]))
"""


def test_the_suite_measures_what_is_due_and_resumes(repository, capfd):
    (repository / "benchmarks" / "speed.py").write_text(
        SCRIPT.format(benchmarks=str(ROOT / "benchmarks"), root=str(repository))
    )
    speed = suite.Job(name="speed", full="--rows 8", quick="--rows 2", minutes=(0.1, 1))
    broken = suite.Job(name="broken", script="speed", full="--broken", minutes=(0, 1))
    lacking = suite.Job(name="lacking", script="speed", minutes=(0, 1), runs=("runs/nothing",))
    out = repository / "results"

    def state(quick: bool = False) -> str:
        kind = record.host_of()["kind"]
        return suite.state_of(speed, quick=quick, kind=kind, results=out).word

    assert state() == "missing"
    assert suite.main(suite.Suite(quick=True, out=out), (speed, broken, lacking)) == 0
    assert state(quick=True) == "current" and state() == "quick"
    first = capfd.readouterr().out
    assert "1 of 3 benchmarks to run" in first and "broken" not in first, "not part of the quick suite"

    assert suite.main(suite.Suite(out=out), (speed, broken, lacking)) == 1
    said = capfd.readouterr()
    assert "lacking (missing): skipped, needs runs/nothing" in said.out
    assert "failed: broken: exit status 1" in said.err
    assert state() == state(quick=True) == "current", "a result in full serves the quick suite"

    assert suite.main(suite.Suite(out=out), (speed,)) == 0
    assert "0 of 1 benchmarks to run" in capfd.readouterr().out
    (repository / "polyjax" / "fast.py").write_text("x = 2\n")
    assert state() == "stale"
    (out / "ladder").mkdir()  # an experiment's rows, which are no benchmark's
    (out / "ladder" / "bi-demo-0.json").write_text('{"name": "bi demo", "recall_at_1": 0.6}')
    assert suite.main(suite.Suite(out=out, list=True), (speed,)) == 0
    listed = capfd.readouterr().out
    assert "speed           stale" in listed and "polyjax" in listed
    assert suite.main(suite.Suite(out=out, only=("sped",)), (speed,)) == 2


# The script for a GPU


def test_the_gpu_script_writes_after_each_part_and_survives_any(tmp_path, capsys):
    """Parts that fail, are skipped or run out of time cost only themselves; the order is fixed."""
    asked, files = [], []

    def run(name, seconds, config):
        asked.append((name, seconds))
        files.extend(json.loads(path.read_text())["parts"].keys() for path in config.out.rglob("*.json"))
        if name == "versions":
            return {"measurements": [], "facts": {"platform": "gpu", "device": "NVIDIA H200"}, "seconds": 1.0}
        if name == "parity":
            return {"failed": "RuntimeError: out of memory", "seconds": 2.0}
        if name == "speed":
            samples = {"torch": [4.0, 2.0], "polyjax": [1.0]}
            measured = {"case": {"candidates": 1000}, "unit": "ms", "samples": samples, "to": "torch"}
            return {
                "measurements": [measured],
                "skipped": "out of time after 5 s; what it had measured is kept",
            }
        return {"skipped": "no weights"}

    path = gpu.main(gpu.GpuConfig(out=tmp_path), run)
    assert path == tmp_path / "gpu" / "nvidia-h200.json"
    found = json.loads(path.read_text())
    assert list(found["parts"]) == [name for name, _ in asked] == list(gpu.LIMITS)
    assert [len(parts) for parts in files] == list(range(1, len(gpu.LIMITS))), "the file grows part by part"
    assert found["parts"]["parity"]["failed"] == "RuntimeError: out of memory"
    assert found["measurements"][0]["case"] == {"part": "speed", "candidates": 1000}
    assert found["ratios"][0]["value"] == pytest.approx(1 / 3)
    assert found["host"]["device"] == "NVIDIA H200"
    text = tables.gpu(tmp_path)
    assert "candidates 1000" in text and "out of memory" in text and "no weights" in text

    asked.clear()
    path = gpu.main(gpu.GpuConfig(out=tmp_path / "late", minutes=0.01), run)
    assert asked == [] and all(
        part["skipped"].startswith("out of time") for part in json.loads(path.read_text())["parts"].values()
    )
    gpu.main(gpu.GpuConfig(out=tmp_path / "some", parts=("search",)), run)
    assert [name for name, _ in asked] == ["versions", "search"]
    with pytest.raises(SystemExit, match="no such part: serch"):
        gpu.main(gpu.GpuConfig(parts=("serch",)), run)


def test_a_part_that_takes_too_long_is_ended_and_keeps_what_it_measured(tmp_path, monkeypatch):
    """In a process of its own, which a hanging driver or compiler cannot outlive."""
    script = tmp_path / "part.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "file = pathlib.Path(sys.argv[sys.argv.index('--part-file') + 1])\n"
        "file.write_text('{\"measurements\": [1]}')\n"
        "if sys.argv[2] == 'broken': sys.exit('no such driver')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    late = gpu.outcome("speed", 1.0, gpu.GpuConfig())
    assert late["measurements"] == [1] and late["skipped"].startswith("out of time after 1 s")
    broken = gpu.outcome("broken", 20.0, gpu.GpuConfig())
    assert broken["failed"] == "exit status 1: no such driver" and broken["measurements"] == [1]


def test_the_gpu_script_runs_small_on_a_cpu(tmp_path):
    """Every part with tiny models; where torch is missing there is no comparison, and the file says so."""
    path = gpu.main(gpu.GpuConfig(small=True, out=tmp_path))
    found = json.loads(path.read_text())
    parts, measured = found["parts"], found["measurements"]
    assert not [name for name, part in parts.items() if "failed" in part], parts
    assert parts["demo"]["skipped"].startswith("small")
    by_part = {one["case"]["part"] for one in measured}
    assert by_part == set(gpu.LIMITS) - {"versions", "demo"}
    same = [
        one for one in measured if one["name"] == "largest difference" and "float32" in one["case"].values()
    ]
    assert len(same) == 6 and all(one["median"] < 1e-4 for one in same), "a CPU agrees with itself"
    assert found["host"]["device"] is None and found["small"] is True
