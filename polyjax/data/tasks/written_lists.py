"""Lists that are written as a text, in a table or a JSON string: as JSON, Python, pandas or numpy do."""

import ast
import json
import re
from typing import Any

from polyjax.errors import InputError, shown

_STRING = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMPY_TEXT = re.compile(rf"\bnp\.(?:str_|u?int\d+|float\d+)\(({_STRING}|{_NUMBER})\)", re.DOTALL)
"""As numpy 2 shows a text or a number in a list."""
_NUMBERS = re.compile(rf"\s*([\[(])\s*({_NUMBER}(?:\s*,\s*|\s+))*{_NUMBER}\s*,?\s*[\])]\s*")
_PYTHON_LIST = re.compile(rf"\s*\[\s*({_STRING}(?:\s*,\s*|\s+))*{_STRING}\s*,?\s*\]\s*", re.DOTALL)


_ODD = rf"(?:{_STRING}|b{_STRING}|nan|NaN|None|<NA>)"
_ODD_LIST = re.compile(
    rf"\s*(?:\[(?=.*['\"])\s*(?:{_ODD}(?:\s*,\s*|\s+))*{_ODD}\s*,?\s*\]"
    r"|array\(\[.*\](?:,\s*dtype=[^)]*)?\))\s*",
    re.DOTALL,
)
"""A list as Python and pandas write it where some texts are missing or bytes, and an array of numpy."""
_ALMOST_LIST = re.compile(
    r"\s*(?:\[\s*['\"](?:.*\]|[^\]]*)"
    r"|\[?\s*(?:array|deque|tensor|Index|Series|set|frozenset)\(\s*[\[{].*[\])]"
    r"|<\w+Array>.*)\s*",
    re.DOTALL,
)
"""Lists that are cut, that numpy has shortened (``...``), whose quotes are wrong, or of another kind."""


def json_fault(error: Exception) -> InputError:
    """The error for a text that is not JSON, or JSON that Python cannot hold."""
    if isinstance(error, json.JSONDecodeError):
        got = f"{error.msg.removesuffix(' at')} at column {error.colno}"
    elif isinstance(error, RecursionError):
        got = "lists nested too deeply"
    else:
        got = "a number of thousands of digits"
    return InputError.in_row(expected="JSON", got=shown(got))


def is_odd_list(text: str) -> bool:
    """Whether it is a list with missing texts or bytes, or an array, as Python, pandas or numpy show it."""
    return _ODD_LIST.fullmatch(text) is not None


def is_almost_list(text: str) -> bool:
    """Whether it is a list that is cut or shortened, or whose quotes are wrong, or a set, a tensor, ..."""
    return _ALMOST_LIST.fullmatch(text) is not None


def listed(name: str, cell: str) -> list[Any] | None:
    """The list in a cell, as in a JSON file or as Python writes it; None for a text that begins like one."""
    return list_in(name, cell) if cell.lstrip().startswith(("[", "(")) else None


def python_list(cell: str) -> list[Any] | None:
    """A list or tuple with a text or a dict in it, as Python writes it; None for anything else."""
    if not cell.lstrip().startswith(("[", "(")):  # other texts are not parsed
        return None
    try:
        found = ast.literal_eval(cell.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    is_list = isinstance(found, list | tuple) and any(isinstance(one, str | dict) for one in found)
    return list(found) if is_list else None


def _numbers(cell: str) -> list[Any] | None:
    """A list, tuple or array of numbers, as Python or numpy write it; None for anything else."""
    return [float(one) for one in re.findall(_NUMBER, cell)] if _NUMBERS.fullmatch(cell) else None


def list_in(name: str, cell: str) -> list[Any] | None:
    """The list in a cell, as JSON, Python, pandas or numpy write it; None for anything else."""
    try:
        found = json.loads(cell)
        return found if isinstance(found, list) else None
    except json.JSONDecodeError:
        cell = _NUMPY_TEXT.sub(r"\1", cell)
        if name == "scores":
            return _numbers(cell)
        if not _PYTHON_LIST.fullmatch(cell):
            return python_list(cell)
        try:
            return [ast.literal_eval(text) for text in re.findall(_STRING, cell, re.DOTALL)]
        except (SyntaxError, ValueError):  # an escape that Python does not know
            return None
    except (RecursionError, ValueError) as error:
        raise json_fault(error).at(name) from None
