"""One script for eight minutes on one GPU: what is most worth knowing comes first.

    python benchmarks/gpu.py                   # the parts below in this order, at most 8 minutes
    python benchmarks/gpu.py --parts parity search
    python benchmarks/gpu.py --small           # tiny sizes, on a CPU within a minute: whether it works

1. versions
2. parity: scores of all heads against the CPU in float32
3. attention: whether cuDNN's ran
4. speed: time to score 1,000 and 100,000 candidates, beside PyTorch (the paper's table)
5. search: 1M x 768 and 10M x 384 in bfloat16 against the memory's bandwidth
6. encoding: texts per second
7. step: a training step of 512 contexts, MFU, beside PyTorch
8. demo: the demo and the long preset, with accuracy

Each part has a process of its own, so that one that fails, hangs or runs out of memory costs only itself.
results/gpu/DEVICE.json is written after each part: what was measured, or why a part was skipped. What ran
out of time keeps what it had measured. The parts are in gpu_parts.py.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from record import RESULTS, Record

MEASURES = ("polyjax/nn", "polyjax/retrieval", "polyjax/inference", "polyjax/train")
LIMITS: dict[str, float] = {
    "versions": 40,
    "parity": 120,
    "attention": 60,
    "speed": 120,
    "search": 90,
    "encoding": 60,
    "step": 120,
    "demo": 420,
}
"""The parts in their order, and the most seconds that each may take."""
LEAST = 10.0
"""Seconds that must be left for a part to begin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """What is measured.

    Attributes:
        small: tiny sizes, on any device.
        minutes: in all.
        parts: those to measure; all where empty.
        out: folder of the results.
        only: for the script's own use: measure one part in this process.
        part_file: for the script's own use: where it writes what it found.
    """

    small: bool = False
    minutes: float = 8.0
    parts: tuple[str, ...] = ()
    out: Path = RESULTS
    only: str = ""
    part_file: Path | None = None


def outcome(name: str, limit: float, config: GpuConfig) -> dict[str, Any]:
    """Measure a part in a process of its own: what it wrote, and how it ended.

    Args:
        name: of the part.
        limit: seconds after which it is ended.
        config: of the whole.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        words = [
            sys.executable,
            __file__,
            "--only",
            name,
            "--minutes",
            str(limit / 60),
            "--part-file",
            str(file),
        ]
        began = time.perf_counter()
        ended: dict[str, Any] = {}
        with (Path(folder) / "log").open("w+b") as log:
            try:
                command = [*words, *(["--small"] if config.small else [])]
                done = subprocess.run(command, stdout=log, stderr=log, timeout=limit, check=False)
                if done.returncode:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()
                    ended = {
                        "failed": f"exit status {done.returncode}: {said[-1][:300] if said else 'silent'}"
                    }
            except subprocess.TimeoutExpired:
                ended = {"skipped": f"out of time after {limit:.0f} s; what it had measured is kept"}
        found: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(file.read_text(encoding="utf-8"))
    return {"seconds": round(time.perf_counter() - began, 1)} | found | ended


def measure_here(name: str, config: GpuConfig) -> dict[str, Any]:
    """Measure a part in this process, which has no time limit then; a failure is data."""
    from gpu_parts import PARTS, Part, Skip

    part = Part(small=config.small, seconds=60 * config.minutes, file=config.part_file)
    began = time.perf_counter()
    try:
        PARTS[name](part)
        ended = {}
    except Skip as reason:
        ended = {"skipped": str(reason)}
    except Exception as error:  # one part is not worth the others
        lines = str(error).strip().splitlines()
        ended = {"failed": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"}
    part.ended = {"seconds": round(time.perf_counter() - began, 1)} | ended
    part.save()
    return part.found()


def device_of(found: dict[str, Any]) -> str | None:
    """The accelerator that the part ``versions`` saw; None where there was a CPU only."""
    return found.get("facts", {}).get("device") if found.get("facts", {}).get("platform") == "gpu" else None


def main(config: GpuConfig, run: Any = None) -> Path:
    """Measure part by part, write after each; the file.

    Args:
        config: what is measured.
        run: measures a part, (name, seconds, config) -> what it found; in processes where None, and in this
            process where ``small``.
    """
    if run is None:
        run = (lambda name, _, config: measure_here(name, config)) if config.small else outcome
    if unknown := sorted(set(config.parts) - set(LIMITS)):
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    end = time.perf_counter() + 60 * config.minutes
    record = Record("gpu", measures=MEASURES, settings=config, peers=("torch", "transformers"))
    parts: dict[str, dict[str, Any]] = {}
    path = Path()
    for name, limit in LIMITS.items():
        left = end - time.perf_counter()
        if config.parts and name not in (*config.parts, "versions"):
            parts[name] = {"skipped": "not asked for"}
        elif left < LEAST:
            parts[name] = {
                "skipped": f"out of time: {max(left, 0):.0f} s of {config.minutes:g} min were left"
            }
        else:
            found = run(name, min(limit, left), config)
            for one in found.pop("measurements", []):
                case = {"part": name} | one["case"]
                record.add(case, one["unit"], one["samples"], to=one.get("to"))
            parts[name] = found
            if name == "versions":
                record.device = device_of(found)
        path = record.write(config.out, {"parts": parts, "small": config.small})
        said = parts[name].get("skipped") or parts[name].get("failed") or "done"
        print(f"{name}: {said}", flush=True)
    print(f"written: {path.name}")
    return path


if __name__ == "__main__":
    settings = tyro.cli(GpuConfig, description=__doc__)
    if settings.only:
        measure_here(settings.only, settings)
    else:
        main(settings)
