"""The notebooks run from beginning to end, with the small numbers of their second cell."""

import os
import re
import subprocess
import sys

import jupytext
import pytest

from conftest import FAST_COMPILATION
from test_experiments import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [path.stem for path in NOTEBOOKS]


def test_there_are_some():
    assert {"rank", "fine_tune"} <= set(NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path, tmp_path):
    environment = os.environ | {
        "POLYJAX_SMALL": "1",
        "POLYJAX_ROOT": str(ROOT),
        "MPLBACKEND": "agg",
        "XLA_FLAGS": FAST_COMPILATION,
        "PYTHONWARNINGS": "ignore:FigureCanvasAgg is non-interactive",
    }
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"nice, how was the view", done.stdout)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_paired_and_without_outputs(path):
    """make notebooks writes them."""
    cells = jupytext.read(path).cells
    paired = jupytext.read(path.with_suffix(".ipynb")).cells
    assert [(cell.cell_type, cell.source) for cell in paired] == [
        (cell.cell_type, cell.source) for cell in cells
    ]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in paired)
    assert len(cells) <= 25
    assert not any(re.search(r"^class |nnx\.Module", cell.source, re.MULTILINE) for cell in cells), (
        "no models"
    )
