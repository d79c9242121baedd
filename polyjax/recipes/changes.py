"""Settings that a Python caller changes: a dict of changes, and values of the wrong type."""

import dataclasses
import functools
import numbers
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar

from polyjax.errors import InputError
from polyjax.inference.arguments import check_folder
from polyjax.nn.encoders import EncoderSettings
from polyjax.recipes.settings import EncoderChoice

T = TypeVar("T")


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
    hints = _hints(type(default))
    for key in given:
        if key not in hints:
            raise InputError(
                f"{name}[{key!r}]", expected=f"one of {', '.join(sorted(hints))}", is_argument=False
            )
    values = {
        key: Path(value) if isinstance(value, str) and Path in _kinds(hints[key]) else value
        for key, value in given.items()
    }
    return dataclasses.replace(default, **values)  # pyright: ignore[reportArgumentType, reportCallIssue]


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise InputError for an argument of ``fit`` that is of another type.

    Args:
        given: by name: data, encoder, run_dir, init, tokens_dir, test_examples, callbacks.
    """
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


def check_types(settings: Any, name: str = "") -> None:
    """Check that the values of settings, nested ones too, are of their fields' types.

    Fields that take anything but numbers, texts, paths, choices and tuples are not looked into.

    Raises:
        InputError: a value is of another type, or is not among a field's choices.
    """
    for key, hint in _hints(type(settings)).items():
        value, place = getattr(settings, key), f"{name}.{key}" if name else key
        _check_type(value, hint, place)
        if dataclasses.is_dataclass(value):
            check_types(value, place)


def settings_of(kind: type[T], **values: Any) -> T:
    """Settings with these values, whose types are checked before they are compared.

    Raises:
        InputError: a value is of another type than its field, or is out of range.
    """
    for key, hint in _hints(kind).items():
        if key in values:
            _check_type(values[key], hint, key)
    return kind(**values)


def _check_type(value: Any, hint: Any, place: str) -> None:
    kinds = _kinds(hint)
    if not any(_fits(value, kind) for kind in kinds):
        raise InputError(place, expected=" or ".join(map(_words, kinds)), got=value)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; True for a type that is not looked into."""
    if typing.get_origin(kind) is Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(kind))
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind in (str, Path, NoneType):
        return isinstance(value, kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, typing.cast(type, kind))
    return True


def _words(kind: Any) -> str:
    """A type as an error names it.

    >>> _words(Literal["a", "b"]), _words(int), _words(NoneType)
    ("'a' or 'b'", 'int', 'None')
    """
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))
