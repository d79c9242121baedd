"""Frozen dataclasses <-> JSON, checked on the way in; parts from outside the package by name and version.

A dataclass becomes an object with a ``type`` entry, which distinguishes the members of a union. A user's own
part (settings of a head or an encoder, a loss, an optimiser, a task) becomes a record of its name, version
and settings. Nothing that JSON names is imported: the reader of such a file passes the part in.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from polyjax.errors import InputError, shown

T = TypeVar("T")
CUSTOM = "custom"
"""The ``type`` entry of a part from outside the package."""


def part(name: str, version: int | str) -> Callable[[T], T]:
    """Give a user's own class or function the name and version that cards record.

    Change the version when the same settings no longer compute the same. A model that was trained with
    another version is then refused.

    Args:
        name: unique among the user's parts of this kind.
        version: a number or a text.

    Raises:
        InputError: the function was given another name before.

    >>> @part("hinge", version=1)
    ... def hinge(scores, batch): ...
    >>> hinge.name, hinge.version
    ('hinge', 1)
    """

    def named(own: T) -> T:
        vars_of: Any = own
        if isinstance(own, types.FunctionType) and (before := vars(own).get("name", name)) != name:
            raise InputError("name", expected=f"{before!r}, which the part has already", got=name)
        vars_of.name, vars_of.version = name, version
        return own

    return named


@dataclasses.dataclass(frozen=True)
class RecordedPart:
    """What a file records of a part from outside the package.

    Attributes:
        name: its name.
        version: its version.
        settings: its fields as JSON; empty for a function.
    """

    name: str
    version: int | str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """The name and version in words."""
        return f"{self.name!r}, version {self.version!r}"


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Parts that a package above the reader of a file defines, and knows by name.

    Attributes:
        parts: frozen dataclasses with a version, by the name that files record.
        upgraded: JSON data with entries that such parts replaced -> JSON data that records the parts.
    """

    parts: Mapping[str, type] = dataclasses.field(default_factory=dict)
    upgraded: Callable[[Any], Any] = lambda data: data


@runtime_checkable
class Replaces(Protocol):
    """A part that took the place of entries which settings had before."""

    @property
    def before(self) -> tuple[Any, Mapping[str, Any]]:
        """The plain value in its place, and the entries that said the rest."""
        ...


def recorded(value: Any) -> RecordedPart | None:
    """The record of a part; None for an object without name and version."""
    if isinstance(value, RecordedPart):
        return value
    fields = _names(value)
    name, version = (
        None if entry in fields else getattr(value, entry, None) for entry in ("name", "version")
    )
    if not isinstance(name, str) or isinstance(version, bool) or not isinstance(version, int | str):
        return None
    settings = {} if isinstance(value, type) else {f: to_json(getattr(value, f)) for f in fields}
    return RecordedPart(name, version, settings)


def to_json(value: Any) -> Any:
    """Plain JSON data of a configuration.

    Raises:
        InputError: a part from outside the package has no name and version.
    """
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, type) or not (dataclasses.is_dataclass(value) or callable(value)):
        return value
    custom = recorded(value)
    if custom is not None:
        return {"type": CUSTOM, **dataclasses.asdict(custom)}
    if not dataclasses.is_dataclass(value):
        raise _nameless("a function", value)
    own = {name: getattr(value, name) for name in _names(value)}
    for name, members in _open_fields(type(value)).items():
        is_part = dataclasses.is_dataclass(own[name]) or callable(own[name])
        if is_part and type(own[name]) not in members and recorded(own[name]) is None:
            raise _nameless(name, own[name])
    return {"type": type(value).__name__, **{name: to_json(entry) for name, entry in own.items()}}


def _nameless(argument: str, value: Any) -> InputError:
    return InputError(
        argument,
        expected="a part with a name and a version, which the run can record",
        got=shown(getattr(value, "__name__", type(value).__name__)),
        fix="put @polyjax.part(name, version=1) above its definition",
    )


def _names(value: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []


def _open_fields(kind: type) -> dict[str, tuple[Any, ...]]:
    """The fields of a dataclass that accept parts from outside, with the types that they accept."""
    hints = typing.get_type_hints(kind)
    members = {name: _members(hints[name]) for name in _names(kind)}
    return {name: of for name, of in members.items() if any(map(_is_contract, of))}


def _is_contract(kind: Any) -> bool:
    """Whether a type stands for parts from outside: a protocol, a function's type, or a record."""
    is_protocol = getattr(kind, "_is_protocol", False)
    return is_protocol or typing.get_origin(kind) is Callable or kind is RecordedPart


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; for another type, itself."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def from_json(
    kind: type[T],
    data: Any,
    *,
    source: str,
    parts: Mapping[str, Any] | None = None,
    foreign: Foreign = Foreign(),  # noqa: B008  # frozen
) -> T:
    """The configuration of dataclass ``kind`` in JSON data.

    A dataclass may name in ``RETIRED`` entries that older files have, with the value at which they say
    nothing.

    Args:
        kind: the expected dataclass.
        data: what ``to_json`` gave.
        source: names the file in errors.
        parts: parts from outside the package, by the field that takes them (``head``): a class whose fields
            are read, settings that must equal the recorded ones, or a function. None stands for no part.
            A part that is not given stays a ``RecordedPart`` if the field's type includes that.
        foreign: parts that need not be handed in.

    Raises:
        InputError: an entry is missing, unknown or of another type; or it records a part that is not given,
            or another version of it.
    """
    given = {name: value for name, value in (parts or {}).items() if value is not None}
    reader = _Reader(given, foreign)
    read = reader.read(kind, foreign.upgraded(data), source)
    for name in sorted(set(given) - reader.used):
        raise InputError(
            name,
            problem=f"{source} records no custom part there",
            got=shown(getattr(given[name], "name", None) or repr(given[name])),
            fix="leave it out",
        )
    return read


class _Reader:
    """Reads JSON data according to the types.

    Args:
        parts: from outside the package, by the field that takes them.
        foreign: see ``from_json``.

    Attributes:
        used: the fields whose parts were needed.
    """

    def __init__(self, parts: Mapping[str, Any], foreign: Foreign):
        self._parts, self._foreign = parts, foreign
        self.used: set[str] = set()

    def read(self, kind: Any, data: Any, where: str) -> Any:
        """The value of a type from its JSON; ``where`` names it in an error."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        members = _members(kind)
        if any(map(_is_contract, members)) and isinstance(data, dict) and data.get("type") == CUSTOM:
            return self._custom(data, where, keep=RecordedPart in members)
        _expect(not _is_contract(kind), data, where, "a part's name, version and settings")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self._dataclass(kind, data, where)
        if origin in (types.UnionType, typing.Union):
            return self._union(arguments, data, where)
        if origin is typing.Literal:
            return _expect(data in arguments, data, where, f"one of {list(arguments)}")
        if origin is tuple:
            _expect(isinstance(data, list), data, where, "a list")
            return tuple(self.read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
        if kind is Path:
            return Path(_expect(isinstance(data, str), data, where, "a path"))
        if kind is float:
            number = isinstance(data, int | float) and not isinstance(data, bool)
            return float(_expect(number, data, where, "a number"))
        if kind is int:
            return _expect(
                isinstance(data, int) and not isinstance(data, bool), data, where, "a whole number"
            )
        return _expect(isinstance(data, kind), data, where, kind.__name__)

    def _union(self, members: tuple[Any, ...], data: Any, where: str) -> Any:
        if data is None:
            return _expect(type(None) in members, data, where, "a value")
        plain = [member for member in members if not _is_contract(member)]
        named = {m.__name__: m for m in plain if isinstance(m, type) and dataclasses.is_dataclass(m)}
        if named and (isinstance(data, dict) or len(named) == len(plain)):
            kind: Any = data.get("type") if isinstance(data, dict) else None
            _expect(kind in named, kind, f"{where}.type", f"one of {sorted(named)}")
            return self.read(named[kind], data, where)
        for member in plain:
            try:
                return self.read(member, data, where)
            except InputError:
                continue
        return _expect(False, data, where, " or ".join(getattr(m, "__name__", str(m)) for m in plain))

    def _dataclass(self, kind: type, data: Any, where: str) -> Any:
        _expect(isinstance(data, dict), data, where, f"an object ({kind.__name__})")
        _expect(data.get("type") == kind.__name__, data.get("type"), f"{where}.type", repr(kind.__name__))
        return self._fields(kind, {name: value for name, value in data.items() if name != "type"}, where)

    def _fields(self, kind: type, data: Mapping[str, Any], where: str) -> Any:
        hints = typing.get_type_hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        for name, idle in getattr(kind, "RETIRED", {}).items():
            _expect(data.get(name, idle) == idle, data.get(name), f"{where}.{name}", f"{idle!r}")
            data = {entry: value for entry, value in data.items() if entry != name}
        unknown = sorted(set(data) - set(fields))
        _expect(not unknown, unknown, where, "no other entries")
        # An entry with a default may be newer than the file; the default then means what the file meant.
        missing = sorted(name for name in set(fields) - set(data) if not _has_default(fields[name]))
        if missing:
            raise InputError(where, problem=f"the entries {missing} are missing", is_argument=False)
        values = {name: self.read(hints[name], data[name], f"{where}.{name}") for name in sorted(data)}
        try:
            return kind(**values)
        except InputError as error:
            raise error.at(where) from None

    def _custom(self, data: Mapping[str, Any], where: str, *, keep: bool) -> Any:
        """The part that an entry records."""
        name, version, settings = (data.get(entry) for entry in ("name", "version", "settings"))
        if not (isinstance(name, str) and isinstance(version, int | str) and isinstance(settings, dict)):
            raise InputError(where, expected="a name, a version and settings", got=data, is_argument=False)
        wanted = RecordedPart(name, version, settings)
        field = where.rpartition(".")[2]
        own = self._parts.get(field, self._foreign.parts.get(name))
        if own is None:
            if keep:
                return wanted
            raise InputError(
                where,
                expected=f"the part {wanted}, which comes from outside polyjax",
                got=shown("none"),
                fix=f"load it from Python and pass the part: {field}=...",
                is_argument=False,
            )
        self.used.add(field)
        found = recorded(own)
        if found is None:
            raise _nameless(field, own)
        if (found.name, found.version) != (wanted.name, wanted.version):
            raise InputError(
                field,
                expected=f"the part {wanted}, which {where} records",
                got=shown(str(found)),
                fix="pass that version, or train again",
            )
        if isinstance(own, type) and dataclasses.is_dataclass(own):
            return self._fields(own, settings, where)
        if found.settings != settings:
            kind: Any = type(own)
            read = self._fields(kind, settings, where) if dataclasses.is_dataclass(own) else None
            if read != own:
                raise InputError(
                    field,
                    expected=f"the settings that {where} records, {dict(settings)}",
                    got=shown(str(dict(found.settings))),
                    fix="pass the class instead, whose fields are then read",
                )
        return own


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _expect(right: bool, data: Any, where: str, expected: str) -> Any:
    if not right:
        raise InputError(where, expected=expected, got=data, is_argument=False)
    return data
