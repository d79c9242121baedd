"""The layout of a family's published folders: entries of config.json and names of tensors."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from polyjax.errors import InputError
from polyjax.nn.activations import Activation
from polyjax.nn.heads import CrossConfig

_REQUIRED: Any = object()
_THEIR_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a parameter is stored in a folder's safetensors.

    Attributes:
        ours: dotted path of the parameter.
        theirs: names of the tensors that make it up, concatenated along their first axis.
        transposed: whether the tensors are [out, in], and the parameter [in, out].
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False


def linear(ours: str, *theirs: str, bias: bool = True) -> list[Stored]:
    """Where a ``Linear`` is stored; the outputs of several linear layers are concatenated."""
    found = [Stored(f"{ours}.kernel", tuple(f"{name}.weight" for name in theirs), transposed=True)]
    return [*found, Stored(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs))] if bias else found


def norm(ours: str, theirs: str, *, bias: bool = True) -> list[Stored]:
    """Where a ``LayerNorm`` is stored."""
    found = [Stored(f"{ours}.scale", (f"{theirs}.weight",))]
    return [*found, Stored(f"{ours}.bias", (f"{theirs}.bias",))] if bias else found


def table(ours: str, theirs: str) -> list[Stored]:
    """Where an embedding table is stored."""
    return [Stored(ours, (f"{theirs}.weight",))]


class ConfigJson:
    """Entries of a config.json, whose types are checked when they are read.

    Each method takes an entry's name and a default for a missing or null entry. It raises InputError, with
    the file and the entry, for a value of another type, and for a missing entry without default.

    Args:
        path: the file, for error messages.
        entries: its content.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]):
        self.path, self.entries = path, entries

    def has(self, name: str) -> bool:
        """Whether the file has the entry and it is not null."""
        return self.entries.get(name) is not None

    def _take(self, name: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.entries.get(name)
        if value is None:
            if default is _REQUIRED:
                raise InputError.in_file(self.path, problem=f"the entry {name!r} is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError.in_file(self.path, expected=f"{expected} for {name!r}", got=value)
        return value

    def number(self, name: str, default: int = _REQUIRED) -> int:
        """An entry that is a whole number."""
        return self._take(name, default, int, "a whole number")

    def real(self, name: str, default: float = _REQUIRED) -> float:
        """An entry that is a number."""
        return float(self._take(name, default, (int, float), "a number"))

    def flag(self, name: str, default: bool = _REQUIRED) -> bool:
        """An entry that is true or false."""
        return self._take(name, default, bool, "true or false")

    def text(self, name: str, default: str = _REQUIRED) -> str:
        """An entry that is a text."""
        return self._take(name, default, str, "a text")

    def section(self, name: str) -> "ConfigJson":
        """An entry that is an object; an empty one if it is missing."""
        return ConfigJson(self.path, self._take(name, {}, dict, "an object"))

    def activation(self, name: str, default: str = _REQUIRED) -> Activation:
        """An entry that names an activation, as polyjax's name of it."""
        theirs = self.text(name, default)
        known = _THEIR_ACTIVATIONS.get(theirs, theirs)
        if known not in get_args(Activation):
            allowed = sorted({*get_args(Activation), *_THEIR_ACTIVATIONS} - {"gelu_tanh"})
            raise InputError.in_file(
                self.path, expected=f"one of {', '.join(allowed)} for {name!r}", got=theirs
            )
        return known  # pyright: ignore[reportReturnType]  # checked above

    def expect(self, name: str, *values: Any) -> None:
        """Raise InputError if the entry is set to a value not in ``values``, the ones implemented."""
        got = self.entries.get(name)
        if got is not None and got not in values:
            allowed = " or ".join(map(repr, values))
            raise InputError.in_file(self.path, expected=f"{allowed} for {name!r}", got=got)


def their_activation(name: Activation) -> str:
    """The name of an activation in config.json.

    >>> their_activation("gelu_tanh"), their_activation("relu")
    ('gelu_new', 'relu')
    """
    return "gelu_new" if name == "gelu_tanh" else name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """The standard head of a family's ``*ForSequenceClassification``, and the names of its tensors.

    Attributes:
        head: settings of the equivalent polyjax head.
        linear: name of the last layer.
        dense: name of the layer before it; None for none.
        norm: name of the norm after that layer's activation; None for none.
    """

    head: CrossConfig
    linear: str
    dense: str | None = None
    norm: str | None = None

    def stored(self) -> list[Stored]:
        """Where its parameters are stored, by path inside the head."""
        found = linear("linear", self.linear)
        if self.dense is not None:
            found += linear("dense", self.dense, bias=self.head.dense_bias)
        if self.norm is not None:
            found += norm("norm", self.norm, bias=self.head.norm == "scale-and-bias")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How folders of a family are read and written.

    Attributes:
        architectures: each ``model_type`` in config.json, with the beginning of its class names there.
        prefixes: prefixes of tensor names in files that contain a head too.
        settings: class of the family's settings.
        read: config.json -> settings.
        stored: settings -> where each parameter is stored.
        entries: settings -> entries of config.json.
        classifier: config.json -> the head of the family's cross-encoders; None if they are not supported.
        classifier_entries: settings of such a head -> the entries of config.json that describe it.
    """

    architectures: Mapping[str, str]
    prefixes: tuple[str, ...]
    settings: type
    read: Callable[[ConfigJson], Any]
    stored: Callable[[Any], list[Stored]]
    entries: Callable[[Any], dict[str, Any]]
    classifier: Callable[[ConfigJson], Classifier] | None = None
    classifier_entries: Callable[[CrossConfig], dict[str, Any]] = lambda head: {}
