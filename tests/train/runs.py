"""The toy run in processes of its own, and what it leaves behind."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from flax import nnx

import toy
from conftest import FAST_COMPILATION
from polyjax import make_scorer
from polyjax.runs import Checkpoints, flat_parameters

SCRIPT = Path(toy.__file__)


def start(
    run_dir: Path, *more: str, arch: str = "poly", devices: int = 1, **variables: str
) -> subprocess.Popen:
    """The toy run with further settings, in a process with further environment variables."""
    flags = f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, **variables}
    return python([str(SCRIPT), str(run_dir), arch, "batch_size=8", *more], environment)


def python(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """A Python process whose output is kept."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def joined(n: int) -> list[dict[str, str]]:
    """The environment variables by which n processes find each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(n)}
    return [shared | {"JAX_PROCESS_ID": str(i)} for i in range(n)]


SHORTER = ("steps=30", "validate_every_steps=10")


def pair(run_dir: Path, *more: str) -> list[subprocess.Popen]:
    """A shorter toy run as two processes of two devices each."""
    shared = os.environ["JAX_COMPILATION_CACHE_DIR"]
    more = ("mesh=", *SHORTER, *more)
    return [
        start(run_dir, *more, devices=2, **variables, JAX_COMPILATION_CACHE_DIR=f"{shared}/of {i}")
        for i, variables in enumerate(joined(2))
    ]


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for it; what it wrote."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return out + errors


def wait_for_steps(process: subprocess.Popen, run_dir: Path, *, after: int = 0) -> None:
    """Until something newer was saved."""
    while not any(int(step) > after for step in saved_steps(run_dir)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def saved_steps(run_dir: Path) -> list[str]:
    folder = run_dir / "checkpoints"
    return sorted(p.name for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def parameters(run_dir: Path, arch: str, step: int) -> dict[str, np.ndarray]:
    scorer = make_scorer(toy.SHAPE, toy.HEADS[arch], rngs=nnx.Rngs(1))
    restored = Checkpoints(run_dir, read_only=True).restore_parameters(scorer, step)
    return {name: np.asarray(value) for name, value in flat_parameters(nnx.state(restored)).items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
