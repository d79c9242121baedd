"""metrics.jsonl: what a run measured, line by line."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.errors import InputError, shown
from polyjax.runs.layout import METRICS
from polyjax.runtime.files import write_text


class MetricsLog:
    """metrics.jsonl of a run: one JSON object per line, appended; cut back to a step when a run resumes.

    Args:
        run_dir: the run directory.
        resume_step: lines of later steps, written before a kill, are dropped.
        write: False in all processes but the one that writes.
    """

    def __init__(self, run_dir: Path, *, resume_step: int, write: bool = True):
        self._path, self._write = run_dir / METRICS, write
        if not write:
            return
        kept = [row for row in self.read(run_dir) if row["step"] <= resume_step and row["kind"] != "test"]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, kind: str, metrics: dict[str, Any]) -> None:
        """Append a line: {"step", "kind", metrics...}.

        Raises:
            InputError: the file cannot be written.
        """
        if not self._write:
            return
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in metrics.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, **plain}) + "\n")
        except OSError as error:
            problem = f"cannot be written ({error})"
            raise InputError.in_file(self._path, problem=problem, fix="make room, then resume") from None

    @staticmethod
    def read(run_dir: Path) -> list[dict[str, Any]]:
        """All complete lines; a last line that is cut short is ignored.

        Raises:
            InputError: a line is not JSON.
        """
        path = run_dir / METRICS
        if not path.exists():
            return []
        rows = []
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
            if line.endswith("\n"):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise InputError.in_file(
                        path, i, expected="JSON", got=shown(f"{line[:40]!r} ({error})"), fix="remove the line"
                    ) from None
        return rows
