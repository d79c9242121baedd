"""Frozen dataclasses <-> JSON, checked on the way in.

A dataclass becomes an object with a ``type`` entry, so that a union of dataclasses can be told apart.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from polyjax.errors import InputError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain JSON data of a configuration."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(kind: type[T], data: Any, *, source: str) -> T:
    """The configuration of dataclass ``kind`` in JSON data.

    Args:
        kind: the expected dataclass.
        data: what ``to_json`` gave.
        source: names the file in errors.

    Raises:
        InputError: an entry is missing, unknown, or not of its type.
    """
    return _read(kind, data, source)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, data, where)
    if origin is typing.Literal:
        return _expect(data in arguments, data, where, f"one of {list(arguments)}")
    if origin is tuple:
        _expect(isinstance(data, list), data, where, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if kind is Path:
        return Path(_expect(isinstance(data, str), data, where, "a path"))
    if kind is float:
        return float(
            _expect(isinstance(data, int | float) and not isinstance(data, bool), data, where, "a number")
        )
    if kind is int:
        return _expect(isinstance(data, int) and not isinstance(data, bool), data, where, "a whole number")
    return _expect(isinstance(data, kind), data, where, kind.__name__)


def _expect(right: bool, data: Any, where: str, expected: str) -> Any:
    if not right:
        raise InputError(f"{where}: expected {expected}, got {data!r}")
    return data


def _read_union(members: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None:
        return _expect(type(None) in members, data, where, "a value")
    named = {m.__name__: m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)}
    if named:
        kind: Any = data.get("type") if isinstance(data, dict) else None
        _expect(kind in named, kind, f"{where}.type", f"one of {sorted(named)}")
        return _read(named[kind], data, where)
    for member in members:
        try:
            return _read(member, data, where)
        except InputError:
            continue
    return _expect(False, data, where, " or ".join(str(m) for m in members))


def _read_dataclass(kind: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), data, where, f"an object ({kind.__name__})")
    _expect(data.get("type") == kind.__name__, data.get("type"), f"{where}.type", repr(kind.__name__))
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - names - {"type"})
    _expect(not unknown, unknown, where, "no other entries")
    # An entry with a default may have come after the file was written: its default is what there was before.
    optional = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }
    missing = sorted(names - optional - set(data))
    if missing:
        raise InputError(f"{where}: the entries {missing} are missing")
    given = sorted(names & set(data))
    values = {name: _read(hints[name], data[name], f"{where}.{name}") for name in given}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
