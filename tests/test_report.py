"""What a run leaves for a reader, and what drawing it leaves of the process."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from polyjax.evaluation import Chance, RankingResult, console_table, write_report
from polyjax.evaluation import report as report_module
from polyjax.evaluation.report import metrics_row

GROUPS = tuple(map(str, range(40)))
LOG = [
    {"kind": "train", "step": 1, "loss": 3.0},
    {"kind": "train", "step": 2, "loss": 2.0},
    {"kind": "valid", "step": 2, "loss": 2.5, "recall@1/20": 0.3, "recall@1/20 95% interval": [0.2, 0.4]},
]


def results() -> list[RankingResult]:
    return [Chance(GROUPS, 20), RankingResult("model", np.arange(40) % 4 + 1, GROUPS, 20)]


def write(folder) -> None:
    card = {"Use": ["with care"]}
    write_report(folder, results(), title="A run", notes=["a note"], card=card, log=LOG)


def test_a_report_says_what_was_measured(tmp_path):
    write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# A run\n") and "* a note\n" in text and "## Use\n\n* with care" in text
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["model"]["recall@1/20"] == 0.25 and written["chance"]["recall@1/20"] == 0.05
    pictures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert pictures == ["learning_curve.png", "ranks.png", "recall.png"]
    assert all((tmp_path / "figures" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_no_number_of_the_table_is_cut_at_80_columns():
    shown = io.StringIO()
    name = "TF-IDF, 2 turns (below chance here, for no shared word)"
    ranked = [Chance(GROUPS, 20), RankingResult(name, np.arange(40) % 11 + 1, GROUPS, 20)]
    Console(file=shown, width=80).print(console_table(ranked, "mine test, 40 rows"))
    text = shown.getvalue()
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())
    for figure in (*metrics_row(ranked[1], with_n=False)[1:], *name.split()):
        assert figure in text


def test_metrics_are_saved_where_pictures_cannot_be(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report_module, "plot_learning_curve", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["model"]["recall@1/20"] == 0.25
    assert "A run" in (tmp_path / "report.md").read_text()


def test_a_broken_matplotlib_costs_the_pictures_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)  # importing it fails
    write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "* warning: no plots, matplotlib cannot be imported: import of matplotlib.backends" in text
    assert "![" not in text and "## Use\n\n* with care" in text and not [*(tmp_path / "figures").iterdir()]
    assert "warning: no plots, matplotlib" in capsys.readouterr().out


NO_FOLDER = """
import os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_report
assert "matplotlib" not in sys.modules, "evaluation draws nothing before it is asked to"
tempfile.tempdir, tempfile._candidate_tempdir_list = None, lambda: ["/no/such/folder"]
os.environ["MPLCONFIGDIR"] = "/proc/none"  # as where every place is read-only but the run's
test_report.write(Path({folder!r}))
assert os.environ["MPLCONFIGDIR"] == "/proc/none" and "matplotlib.pyplot" not in sys.modules
import matplotlib
assert matplotlib.rcParams._get_backend_or_none() is None, "the process's backend was chosen for it"
"""


def test_drawing_needs_no_folder_but_the_runs_and_leaves_the_process_alone(tmp_path):
    """A process of its own: matplotlib looks for its folders where it is imported."""
    code = NO_FOLDER.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "learning_curve.png",
        "ranks.png",
        "recall.png",
    ]
