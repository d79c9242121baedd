"""A griffe extension: doctests of docstrings as code blocks, for mkdocstrings."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^(?:>>> .*(?:\n(?!\s*$).*)*\n?)(?:\n>>> .*(?:\n(?!\s*$).*)*\n?)*", re.MULTILINE)
"""Lines from a prompt to the next empty one; examples that follow each other are one block."""


class Doctests(griffe.Extension):
    """Puts fences around examples, which Markdown would take for quotations."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(
                lambda found: f"```pycon\n{found.group().rstrip()}\n```\n", obj.docstring.value
            )
