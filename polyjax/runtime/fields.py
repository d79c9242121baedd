"""The types of the fields of settings: dataclasses do not check what they are given."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar

import numpy as np

from polyjax.errors import InputError

T = TypeVar("T")


def check_types(settings: Any, name: str = "") -> None:
    """Check that the values of settings, nested ones too, are of their fields' types.

    Fields that take anything but numbers, texts, paths, choices and tuples are not looked into.

    Raises:
        InputError: a value is of another type, or is not among a field's choices.
    """
    for key, hint in hints_of(type(settings)).items():
        value, place = getattr(settings, key), f"{name}.{key}" if name else key
        _check_type(value, hint, place)
        if dataclasses.is_dataclass(value):
            check_types(value, place)


def settings_of(kind: type[T], **values: Any) -> T:
    """Settings with these values, whose types are checked before they are compared.

    Raises:
        InputError: a value is of another type than its field, or is out of range.
    """
    values = {key: plain(value) for key, value in values.items()}
    check_values(kind, values)
    return kind(**values)


def check_values(kind: type, values: Mapping[str, Any], name: str = "") -> None:
    """Check the types of some values of the fields of settings, which are called ``name``.

    Raises:
        InputError: a value is of another type than its field.
    """
    for key, hint in hints_of(kind).items():
        if key in values:
            _check_type(values[key], hint, f"{name}.{key}" if name else key)


def plain(value: Any) -> Any:
    """A number of numpy as one of Python, which files can hold; anything else as it is."""
    return value.item() if isinstance(value, np.number | np.bool_) else value


def _check_type(value: Any, hint: Any, place: str) -> None:
    kinds = kinds_of(hint)
    if not any(_fits(value, kind) for kind in kinds):
        raise InputError(place, expected=" or ".join(map(_words, kinds)), got=value)


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name; none where they cannot be known."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # a user's own class that names a type of a function
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def kinds_of(hint: Any) -> tuple[Any, ...]:
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
        number = int if kind is int else int | float
        return isinstance(value, number) and not isinstance(value, bool)
    if kind in (str, Path, NoneType):
        return isinstance(value, kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, typing.cast(type, kind))
    # A text is never a user's own part; it is a name of one of ours, or a wrong name.
    is_part = getattr(kind, "_is_protocol", False) or typing.get_origin(kind) is Callable
    return not (is_part and isinstance(value, str))


def _words(kind: Any) -> str:
    """A type as an error names it.

    >>> _words(Literal["a", "b"]), _words(int), _words(NoneType)
    ("'a' or 'b'", 'int', 'None')
    """
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))
