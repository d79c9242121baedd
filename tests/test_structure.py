"""The house: which package may import which, and how large its parts are (docs/design, CONTRIBUTING.md)."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "polyjax"
FLOORS = (
    ("errors", "version"),
    ("types", "config"),
    ("runtime",),
    ("mesh",),
    ("nn",),
    ("data",),
    ("inference",),
    ("evaluation",),
    ("runs",),
    ("train",),
    ("retrieval",),
    ("interop",),
    ("ranker",),
    ("recipes",),
    ("serve",),
    ("cli",),
)
"""From the ground up: a package imports its own floor and those below."""
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def imports(path: Path) -> list[tuple[int, str]]:
    """Lines and modules of all imports of polyjax, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "polyjax":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "polyjax"]
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_run_downwards(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):  # the public list, and the command
        return
    for line, module in imports(path):
        other = module.split(".")[1]
        assert other in FLOOR, f"{path.name}:{line} imports {module} through the public list"
        assert FLOOR[other] <= FLOOR[own], f"{path.name}:{line}: {own} imports {module}, which is above it"


def module_of(path: Path) -> str:
    parts = ("polyjax", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_is_imported_by_what_it_imports():
    """The public list is left out: what is below it never imports from it (see above)."""
    modules = {module_of(path) for path in FILES} - {"polyjax"}
    arrows = {
        module_of(path): {m if m in modules else m.rpartition(".")[0] for _, m in imports(path)} & modules
        for path in FILES
    }
    del arrows["polyjax"]
    cycle: list[str] = []
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1]
    assert not cycle, " imports ".join(reversed(cycle))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_can_be_read_at_one_sitting(path):
    """350 lines; functions 60, docstrings not counted. Split by what changes together."""
    source = path.read_text()
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                size -= node.body[0].end_lineno - node.body[0].lineno + 1
            assert size <= 60, f"{node.name} has {size} lines"


def test_the_top_level_is_small():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 8
