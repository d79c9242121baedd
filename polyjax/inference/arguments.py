"""Checks of a caller's arguments, before anything is computed."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jax.sharding import Mesh

from polyjax.errors import InputError, shown
from polyjax.nn.encoders import Dtype
from polyjax.runtime.files import is_possible

Context = str | Sequence[str]
"""The turns so far, oldest first; a text is a single turn."""
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Other libraries' names for dtypes."""


def check_count(name: str, count: object) -> None:
    """Raise InputError unless it is a whole number of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise InputError(name, expected="a whole number of at least 1", got=count)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError unless it is one of the choices; a similar one is suggested."""
    if not isinstance(value, str) or value not in choices:  # a dtype of numpy equals its name
        known = {_SHORT.get(choice, choice): choice for choice in choices} | {one: one for one in choices}
        near = [known[word] for word in difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)]
        fix = f"did you mean {near[0]}?" if near else None
        raise InputError(name, expected=f"one of {', '.join(choices)}", got=value, fix=fix)


def check_dtype(dtype: object) -> None:
    """Raise InputError unless it is None or a dtype for encoders."""
    if dtype is not None:
        check_choice("dtype", dtype, get_args(Dtype))


def check_folder(folder: object, name: str = "folder") -> None:
    """Raise InputError unless it is a path that a file or folder could have."""
    if not isinstance(folder, str | os.PathLike):
        raise InputError(name, expected="a path", got=folder)
    if not is_possible(folder) or not os.fspath(folder):
        raise InputError(name, expected="a path that a file or folder can have", got=os.fspath(folder))


def as_path(folder: object) -> Path | None:
    """The path of an index if one is given, or InputError."""
    if folder is None:
        return None
    check_folder(folder)
    return Path(folder)  # pyright: ignore[reportArgumentType]  # checked


def check_mesh(mesh: object) -> None:
    """Raise InputError unless it is None or a mesh."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise InputError("mesh", expected="a mesh of devices, as jax.make_mesh returns", got=mesh)


def check_list(name: str, lists: object) -> None:
    """Raise InputError unless it is a list (of contexts, or of lists of candidates)."""
    if isinstance(lists, str) or not isinstance(lists, Sequence):
        raise InputError(name, expected="a list", got=_kind(lists))


def as_turns(name: str, context: Context) -> list[str]:
    """The turns of a context, or InputError."""
    return as_texts(name, [context] if isinstance(context, str) else context)


def as_contexts(contexts: Sequence[Context]) -> list[list[str]]:
    """The turns of each context, or InputError."""
    check_list("contexts", contexts)
    return [as_turns(f"contexts[{i}]", context) for i, context in enumerate(contexts)]


def as_rows(
    contexts: Sequence[Context], candidates: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """The turns of each context and its candidates, or InputError."""
    check_list("contexts", contexts)
    check_list("candidates", candidates)
    if len(contexts) != len(candidates):
        got = shown(f"{len(candidates)} lists for {len(contexts)} contexts")
        raise InputError("candidates", expected="a list for each of the `contexts`", got=got)
    return as_contexts(contexts), [as_texts(f"candidates[{i}]", row) for i, row in enumerate(candidates)]


def as_texts(name: str, texts: Iterable[str]) -> list[str]:
    """A list of texts that can be encoded, or InputError."""
    if isinstance(texts, str):
        raise InputError(name, expected="a list of texts", got=shown("one text"), fix="write [text]")
    if hasattr(texts, "columns"):  # a table iterates over their names
        fix = "give one column of it, frame['text']"
        raise InputError(name, expected="a list of texts", got=_kind(texts), fix=fix)
    single = getattr(texts, "ndim", 1) == 0  # an array of no dimension, over which nothing iterates
    not_a_list = isinstance(texts, bytes | bytearray | set | frozenset | Mapping)
    if single or not_a_list or not isinstance(texts, Iterable):
        raise InputError(name, expected="a list of texts", got=_kind(texts))
    found = list(texts)
    if not found:
        raise InputError(name, expected="at least one text", got=found)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}]", expected="a text", got=text)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"{name}[{i}]",
                problem=f"{text[:40]!r} holds half a character (a lone surrogate)",
                fix="check the encoding with which it was read",
            ) from None
    return found


def _kind(value: Any) -> shown:
    return shown(f"a value of type {type(value).__name__}")
