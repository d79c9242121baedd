"""The reference: ``.. face:: polyjax.data`` documents the names that the package lists for others.

Docstrings are reStructuredText, so a page of Markdown has it within ``{eval-rst}``.
"""

import ast
import importlib
import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective

import polyjax

SOURCES = Path(polyjax.__file__).parent


class Face(SphinxDirective):
    """Documents a package: its own text, then each name of its ``__all__``."""

    required_arguments = 1
    has_content = False

    def run(self) -> list[nodes.Node]:
        """The nodes of the page."""
        name = self.arguments[0]
        package = importlib.import_module(name)
        text = [".. highlight:: python", "", f".. py:module:: {name}", ""]
        text += inspect.cleandoc(package.__doc__ or "").splitlines() + [""]
        for member in package.__all__:
            text += entry(name, member, getattr(package, member))
        box = nodes.Element()
        self.state.nested_parse(StringList(text, name), 0, box)
        return box.children


def entry(face: str, name: str, value: Any) -> list[str]:
    """reStructuredText that documents one name."""
    if face != "polyjax" and getattr(polyjax, name, None) is value and name in polyjax.__all__:
        return [f"**{name}**: see :py:obj:`polyjax.{name}`.", ""]
    if inspect.isclass(value):
        inherited = ["   :inherited-members:"] if name == "Ranker" else []
        return [f".. autoclass:: {face}.{name}", "   :members:", *inherited, ""]
    if inspect.isfunction(inspect.unwrap(value)) and callable(value):
        return [f".. autofunction:: {face}.{name}", ""]
    own = constants(SOURCES.parent / Path(*face.split(".")))  # other packages have constants of that name
    text = own.get(name) or constants(SOURCES).get(name, "")
    shown = repr(value)
    literal = [f"   :value: {shown}"] if len(shown) < 200 and " at 0x" not in shown else []
    return [f".. py:data:: {face}.{name}", *literal, "", *(f"   {line}" for line in text.splitlines()), ""]


@lru_cache
def constants(folder: Path) -> dict[str, str]:
    """The texts below assignments of a folder's modules, by name."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, after in zip(body, body[1:], strict=False):
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = inspect.cleandoc(str(after.value.value))
    return found


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, arguments: str | None, returns: str | None
) -> tuple[str, None] | None:
    """A contract is kept, not called: no signature."""
    return ("", None) if what == "class" and getattr(obj, "_is_protocol", False) else None


def one_sentence(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep a property's text whole: napoleon takes what is before a colon for a type."""
    if what in ("property", "attribute", "data") and lines and ":" in lines[0]:
        lines[0] = f": {lines[0]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as docstrings name them
    app.connect("autodoc-process-docstring", one_sentence, priority=100)
    app.add_directive("face", Face)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
