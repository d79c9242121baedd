"""Run the notebooks for the site: python docs/run_notebooks.py (make docs does it, with small numbers).

The notebooks of notebooks/ are committed without outputs. This writes copies with the outputs of a real run
into docs/notebooks/, which git ignores. A copy is kept until its notebook changes, and one of a full run is
preferred.
"""

import argparse
import datetime
import hashlib
import os
import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "notebooks"
OUT = Path(__file__).parent / "notebooks"
ORDER = ("rank", "fine_tune", "evaluate", "scale_up")
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Small runs spend their time in the compiler; these programs compile sooner and run slower."""


def digest(path: Path) -> str:
    """Of a notebook's cells."""
    cells = nbformat.read(path, as_version=4).cells
    return hashlib.sha256(repr([(cell.cell_type, cell.source) for cell in cells]).encode()).hexdigest()


def is_fresh(name: str, *, full: bool) -> bool:
    """Whether there is a copy of the notebook as it is now, of a run that was at least this large."""
    path = OUT / f"{name}.ipynb"
    if not path.exists():
        return False
    made = nbformat.read(path, as_version=4).metadata.get("polyjax", {})
    return made.get("digest") == digest(SOURCES / f"{name}.ipynb") and (made["full"] or not full)


def note(*, full: bool) -> str:
    """What a reader must know about the outputs."""
    size = "as it is" if full else "with the small numbers of its third cell, so metrics say nothing"
    return f"*The outputs below are of a run on {datetime.date.today()}, {size}.*"


def run(name: str, folder: Path, *, full: bool) -> None:
    """Execute one notebook in ``folder`` and write its copy.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(SOURCES / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note(full=full)))
    notebook.metadata["polyjax"] = {"digest": digest(SOURCES / f"{name}.ipynb"), "full": full}
    OUT.mkdir(exist_ok=True)
    nbformat.write(notebook, OUT / f"{name}.ipynb")


def main() -> None:
    """Run what has no fresh copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="with the notebooks' own numbers: an hour on two cores"
    )
    full = parser.parse_args().full
    if not full:
        os.environ["POLYJAX_SMALL"] = "1"
        os.environ["XLA_FLAGS"] = FAST_COMPILATION
    os.environ.pop("MPLBACKEND", None)
    with tempfile.TemporaryDirectory() as folder:  # one for all: data are prepared once
        for name in ORDER:
            if not is_fresh(name, full=full):
                print(f"running {name}.ipynb", flush=True)
                run(name, Path(folder), full=full)


if __name__ == "__main__":
    main()
