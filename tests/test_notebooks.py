"""The notebooks run from beginning to end in a kernel, with the small numbers of their third cell."""

import os
import re

import jupytext
import nbclient
import pytest

import polyjax
from conftest import FAST_COMPILATION
from polyjax.recipes.results import Results
from polyjax.runtime import progress
from test_experiments import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [path.stem for path in NOTEBOOKS]
SHOWN = {  # what is printed, and how many pictures
    "rank": (r"nice, how was the view", 1),
    "fine_tune": (r"nice, how was the view", 0),
    "evaluate": (r"poly against bi on the same rows: [+-]0\.\d+ \[", 1),
    "scale_up": (r"stopped by SIGTERM after step \d+[^$]*largest difference 0\.0", 2),
}


def test_all_are_tested():
    assert set(SHOWN) == set(NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all, as for a reader who goes from one to the next: data are prepared once."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path, folder, monkeypatch):
    monkeypatch.setenv("POLYJAX_SMALL", "1")
    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILATION)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()  # raises with the cell that failed, and its traceback
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if keep := os.environ.get("POLYJAX_KEEP_NOTEBOOKS"):  # to be looked at
        jupytext.write(notebook, f"{keep}/{path.stem}.ipynb")
    pattern, n_pictures = SHOWN[path.stem]
    assert re.search(pattern, printed), printed
    assert len(pictures) == n_pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_paired_and_without_outputs(path):
    """make notebooks writes them."""
    cells = jupytext.read(path).cells
    paired = jupytext.read(path.with_suffix(".ipynb")).cells
    assert [(cell.cell_type, cell.source) for cell in paired] == [
        (cell.cell_type, cell.source) for cell in cells
    ]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in paired)
    assert len(cells) < 25
    assert not any(re.search(r"^class |nnx\.Module", cell.source, re.MULTILINE) for cell in cells), (
        "no models"
    )


def test_text_in_a_notebook_is_text(monkeypatch):
    """rich shows what it prints in a notebook at once; then ``str`` of results was empty."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    metrics = {"recall@1/4": 0.5, "recall@1/4 95% interval": [0.25, 0.75], "mrr": 0.625, "n": 8}
    results = Results({"poly": metrics}, title="mine test")
    assert "0.500" in str(results) and str(results) == repr(results)
    assert not progress.console.is_jupyter and not progress.errors.is_jupyter


def test_the_functions_of_the_package_are_listed():
    assert {"fit", "evaluate", "mine", "Run", "Ranker"} <= set(dir(polyjax))
