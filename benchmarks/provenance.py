"""Where a measurement comes from: the command, the commit, the day and the host."""

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from polyjax.evaluation.report import hardware

ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """``command``, ``commit`` (``+`` after one with changes), ``date`` and ``host``."""
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    host = {"hardware": hardware(), "cores": len(os.sched_getaffinity(0)), "memory_gib": _memory_gib()}
    return {
        "command": shlex.join(["python", name, *sys.argv[1:]]),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": host,
    }


def _commit() -> str:
    """The checkout's commit; ``unknown`` outside of one."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
