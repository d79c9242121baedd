"""Arguments of a Python caller: a dict of changed settings, and values of the wrong type."""

import dataclasses
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from polyjax.errors import InputError, shown
from polyjax.inference.arguments import check_folder
from polyjax.nn.encoders import EncoderSettings
from polyjax.recipes.settings import EncoderChoice
from polyjax.runtime.fields import check_values, hints_of, kinds_of, plain

T = TypeVar("T")
ARGUMENTS = {
    "task.n_candidates": "rank.n",
    "task.valid": "valid",
    "task.test": "test",
    "train.steps": "steps",
    "train.epochs": "epochs",
    "train.seed": "seed",
    "own_encoder": "encoder",
    "own_optimizer": "optimizer",
}
"""Arguments of ``fit`` and ``evaluate`` by the names of the settings that they give."""


def changed(default: T, given: T | Mapping[str, Any] | None, name: str) -> T:
    """The given settings, or the default ones with the changes in a dict.

    Args:
        default: settings, a dataclass.
        given: None for no change.
        name: the caller's argument.

    Raises:
        InputError: they are neither settings nor a dict of changes, or a key is unknown.
    """
    if given is None:
        return default
    if not isinstance(given, Mapping):
        if not dataclasses.is_dataclass(given):
            raise InputError(name, expected="settings, or a dict of changes", got=given)
        return given
    hints = hints_of(type(default))
    for key in given:
        if key not in hints:
            raise InputError(
                f"{name}[{key!r}]", expected=f"one of {', '.join(sorted(hints))}", is_argument=False
            )
    values = {
        key: Path(value) if isinstance(value, str) and Path in kinds_of(hints[key]) else plain(value)
        for key, value in given.items()
    }
    check_values(type(default), values, name)
    return dataclasses.replace(default, **values)  # pyright: ignore[reportArgumentType, reportCallIssue]


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise InputError for an argument of ``fit`` that is of another type.

    Args:
        given: the function's arguments, by name.
    """
    for name, value in given.items():
        if isinstance(value, type):
            fix = f"write {value.__name__}()" if dataclasses.is_dataclass(value) else None
            raise InputError(name, expected="an object", got=shown(f"the class {value.__name__}"), fix=fix)
    path, folder = str | os.PathLike, "a folder"
    kinds = {
        "data": (object, "a path, rows, the name of a data set, or a task"),
        "encoder": (path | EncoderChoice | EncoderSettings, "a name, a folder or settings"),
        "run_dir": (path | None, folder),
        "init": (path | None, folder),
        "tokens_dir": (path | None, folder),
        "test_examples": (numbers.Integral, "a whole number"),
        "callbacks": (Iterable, "a list of functions"),
    }
    for name, (kind, expected) in kinds.items():
        value = given[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (name == "data" and value is None):
            raise InputError(name, expected=expected, got=value)
        if isinstance(value, str | os.PathLike):
            check_folder(value, name)
    for i, callback in enumerate(given["callbacks"]):
        if not callable(callback):
            raise InputError(f"callbacks[{i}]", expected="a function", got=callback)
