"""What a benchmark found, as one JSON per benchmark and kind of host: results/NAME/HOST.json.

Every benchmark writes through ``Record``: its command, commit, date, host, versions, seeds, every sample,
medians and ratios, beside keys of its own. The pages' tables are rendered from these files
(docs/results_tables.py), and benchmarks/all.py compares ``code``, digests of what was measured, with the
code at hand. Imports the standard library only. A file names no host and no absolute path.
"""

import ast
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers")
"""Whose versions every file states."""
FLAGS = (
    *("fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "sve", "bf16", "i8mm"),
)
"""Units of CPUs that decide the speed of matrix products, by their names in /proc/cpuinfo."""
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
SCHEMA = 1


class Record:
    """Collects what a benchmark measures, and writes it.

    Args:
        name: of the benchmark; the folder in results/.
        measures: files and folders of the repository whose speed is measured; a result is stale when one
            of them has changed.
        settings: the benchmark's configuration, a dataclass or a mapping.
        peers: packages that the library is compared with; their versions are stated.
        seeds: of everything random.
        device: an accelerator's kind, as ``NVIDIA H200``, where that was measured instead of the CPU.

    Attributes:
        measurements: one per quantity and case: name, case, unit, samples, median.
        ratios: of medians of a case: name, to, value.
    """

    def __init__(
        self,
        name: str,
        *,
        measures: Sequence[str],
        settings: Any = None,
        peers: Sequence[str] = (),
        seeds: Sequence[int] = (0,),
        device: str | None = None,
    ):
        self.name, self.measures, self.device = name, tuple(measures), device
        self.settings = without_paths(settings_of(settings))
        self.peers, self.seeds = tuple(peers), tuple(seeds)
        self.measurements: list[dict[str, Any]] = []
        self.ratios: list[dict[str, Any]] = []
        self.load = round(os.getloadavg()[0], 2)
        # Before anything is timed: an edit during the measurement makes the result stale.
        self.code = {path: digest(path) for path in self.measures}
        self.commit, self._began = commit(), time.perf_counter()

    def add(
        self,
        case: Mapping[str, Any],
        unit: str,
        samples: Mapping[str, Sequence[float]],
        *,
        to: str | None = None,
        alone: Mapping[str, Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """Keep samples of one case; their medians.

        Args:
            case: what was measured, as ``{"codes": 64, "candidates": 100000}``: a row of a table.
            unit: of the samples, as ``ms`` or ``MB``.
            samples: of each of what is compared, by its name: a column of a table.
            to: the name whose median the others' are divided by.
            alone: samples of the same without neighbours; ``neighbour`` is the ratio of the medians, 1 where
                a time does not depend on what ran before it.

        >>> record = Record("example", measures=("benchmarks/record.py",))
        >>> record.add({"rows": 8}, "ms", {"torch": [4.0, 5.0, 9.0], "polyjax": [2.0, 1.0, 3.0]}, to="torch")
        {'torch': 5.0, 'polyjax': 2.0}
        >>> [(ratio["name"], ratio["value"]) for ratio in record.ratios]
        [('polyjax', 0.4)]
        """
        case = without_paths(dict(case))
        medians = {name: float(statistics.median(values)) for name, values in samples.items()}
        for name, values in samples.items():
            entry = {"name": name, "case": case, "unit": unit, "samples": [float(value) for value in values]}
            entry["median"] = medians[name]
            if alone and alone.get(name):
                entry["alone"] = [float(value) for value in alone[name]]
                entry["neighbour"] = medians[name] / statistics.median(alone[name])
            self.measurements.append(entry)
            if to is not None and name != to:
                ratio = medians[name] / medians[to]
                self.ratios.append({"name": name, "to": to, "case": case, "unit": unit, "value": ratio})
        return medians

    def described(self, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole as JSON.

        Args:
            own: keys of the benchmark's own, none of which is one of the record's.
        """
        host = host_of(self.device)
        found = {
            "schema": SCHEMA,
            "name": self.name,
            "command": command(),
            "commit": self.commit,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.perf_counter() - self._began, 1),
            "host": host | {"load_before": self.load},
            "versions": versions(PACKAGES) | {"python": platform.python_version(), "polyjax": own_version()},
            "peers": versions(self.peers),
            "seeds": list(self.seeds),
            "repeats": max((len(one["samples"]) for one in self.measurements), default=0),
            "settings": self.settings,
            "measures": list(self.measures),
            "code": self.code,
            "measurements": self.measurements,
            "ratios": self.ratios,
        }
        if twice := sorted(found.keys() & (own or {}).keys()):
            raise ValueError(f"keys that every result has already: {', '.join(twice)}")
        return found | without_paths(dict(own or {}))

    def write(
        self, out: Path = RESULTS, own: Mapping[str, Any] | None = None, *, file: str | None = None
    ) -> Path:
        """Write the file; its path.

        Args:
            out: folder of all results.
            own: see ``described``.
            file: name without ending; the kind of host where None.
        """
        found = self.described(own)
        path = out / self.name / f"{file or found['host']['kind']}.json"
        write_json(path, found)
        return path


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all; not-a-numbers and infinities become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    # Lists of numbers on one line: a sample more is one line of a diff.
    partial.write_text(re.sub(r"\[\s+([-+\d.eE,\s]+?)\s+\]", _one_line, text) + "\n", encoding="utf-8")
    partial.replace(path)


def read(name: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """The results of a benchmark on all kinds of hosts, the newest first, without files of experiments."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (results / name).glob("*.json")]
    found = [result for result in found if "schema" in result]
    return sorted(found, key=lambda result: (result["date"], result["host"]["kind"]), reverse=True)


def stale(result: Mapping[str, Any]) -> list[str]:
    """The measured files and folders that are not as they were when this was measured."""
    return [path for path, then in result["code"].items() if digest(path) != then]


def commits_since(result: Mapping[str, Any], paths: Sequence[str]) -> int | None:
    """How many commits changed these paths since; None where git does not know the commit of the result."""
    if not result.get("commit"):
        return None
    found = git("log", "--oneline", f"{result['commit'].removesuffix('+')}..HEAD", "--", *paths)
    return None if found is None else len(found.splitlines())


def digest(path: str) -> str:
    """Of the Python of a file or folder of the repository: 16 hexadecimal digits, or ``missing``.

    Contents rather than commits: they survive a rebase, a shallow clone and a checkout without git. Only
    what runs counts (``code_of``): better prose makes no measurement stale.
    """
    there = ROOT / path
    if not there.exists():
        return "missing"
    found = hashlib.sha256()
    for file in [there] if there.is_file() else sorted(there.rglob("*.py")):
        content = file.read_bytes()
        content = code_of(content) if file.suffix == ".py" else content
        found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + content + b"\0")
    return found.hexdigest()[:16]


@functools.cache
def code_of(source: bytes) -> bytes:
    """Python source without empty lines, docstrings and lines that are only a comment.

    >>> code_of(b"# why\\ndef f():\\n    'Say.'\\n    return 1\\n")
    b'def f():\\n    return 1'
    """
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    kept = (line for n, line in lines if n not in prose)
    return b"\n".join(line for line in kept if line.strip() and not line.lstrip().startswith(b"#"))


def git(*words: str) -> str | None:
    """What git prints in the repository; None without git, or where it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def commit() -> str | None:
    """The commit that is checked out, with a + where Python was changed since; None without git."""
    found = git("rev-parse", "HEAD")
    if found is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "polyjax", "benchmarks")
    return found.strip()[:12] + ("+" if changed else "")


def command() -> str:
    """The command of this process, without where its results go, and with no absolute path."""
    script, words, kept = Path(sys.argv[0]), list(sys.argv[1:]), []
    while words:
        word = words.pop(0)
        if word == "--out":
            words[:1] = []
        elif not word.startswith("--out="):
            flag, equals, value = word.partition("=")
            kept.append(f"{flag}={without_paths(value)}" if equals else without_paths(word))
    inside = script.resolve().is_relative_to(ROOT)
    shown = script.resolve().relative_to(ROOT).as_posix() if inside else script.name
    return shlex.join(["python", shown, *kept])


def settings_of(settings: Any) -> dict[str, Any]:
    """The settings of a benchmark, without where its results go."""
    if settings is not None and not isinstance(settings, Mapping):
        settings = dataclasses.asdict(settings)
    return {name: value for name, value in (settings or {}).items() if name != "out"}


def without_paths(value: Any) -> Any:
    """A value as JSON; absolute paths become relative to the repository, or names where they are outside.

    >>> without_paths({"run": ROOT / "runs" / "a", "index": "/data/index"})
    {'run': 'runs/a', 'index': 'index'}
    """
    if isinstance(value, Mapping):
        return {str(name): without_paths(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and value.startswith("/"):
        path = Path(value)
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return value


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; ``not installed`` of what is not."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def own_version() -> str:
    """The library's, without importing it."""
    match = re.search(r'__version__ = "(.+)"', (ROOT / "polyjax" / "version.py").read_text())
    assert match is not None, "version.py states no version"
    return match[1]


def host_of(device: str | None = None) -> dict[str, Any]:
    """What decides speed here: processor, its units, cores, memory; and ``kind``, the name of such hosts.

    Args:
        device: an accelerator's kind, which then names the kind of host.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    described = model[1] if model else platform.processor() or platform.machine()
    units = set(text.split())
    flags = [flag for flag in FLAGS if flag in units]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    half = "-bf16" if BFLOAT16_FLAGS & set(flags) else ""
    kind = slug(device) if device else f"{slug(described)}-{cores}{half}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "kind": kind,
        "cpu": described,
        "flags": flags,
        "cores": cores,
        "ram_gib": round(memory, 1),
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
    }


def slug(text: str) -> str:
    """A name of small letters, digits and hyphens.

    >>> slug("AMD EPYC 9R14 96-Core Processor"), slug("Intel(R) Xeon(R) Platinum")
    ('amd-epyc-9r14-96-core', 'intel-xeon-platinum')
    """
    text = re.sub(r"\((R|TM)\)|\b(Processor|CPU)\b|@.*", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _one_line(found: re.Match[str]) -> str:
    return "[" + " ".join(found[1].split()) + "]"
