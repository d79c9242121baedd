"""A safe interpreter for the pickles in a torch file.

A pickle is a program. This interpreter knows only plain containers, numbers, texts and tensors, so a file can
neither name nor call anything else. The standard library's ``pickle.Unpickler`` with ``find_class`` would
refuse the same names, but it allocates whatever a damaged file asks for: nine bytes that store an object at
index 2 ** 31 - 1 of the memo end in a MemoryError after allocating gigabytes.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


class BrokenFile(Exception):
    """The file is damaged or holds something that is not supported; the message says what."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A one-dimensional array of numbers in the file.

    Attributes:
        key: its name in the file.
        dtype: its numpy dtype.
        n: how many numbers it has.
    """

    key: str
    dtype: str
    n: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage.

    Attributes:
        storage: holds the numbers.
        offset: index of the first one.
        shape: sizes of the axes.
        stride: steps of the axes, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Name:
    """An object that the pickle refers to by its dotted name; it is never imported."""

    name: str


def _rebuild_tensor(*arguments: Any) -> Tensor:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_):
            numbers = [offset, *shape, *stride]
            if len(shape) == len(stride) and all(type(n) is int and n >= 0 for n in numbers):
                return Tensor(storage, offset, shape, stride)
    raise BrokenFile("a tensor is described by something other than a storage, sizes and strides")


def _empty_dict(*arguments: Any) -> dict:
    if arguments and arguments != ([],):
        raise BrokenFile("a dictionary is built from unexpected arguments")
    return {}


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _empty_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch.Size": lambda sizes=(): tuple(sizes),
}


_MARK = object()
SCALARS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def read_pickle(file: BinaryIO | io.BytesIO) -> Any:
    """The object in one pickle, made of plain containers, numbers, texts and ``Tensor``.

    Raises:
        BrokenFile: the pickle is damaged, or holds anything else.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise BrokenFile(f"its pickle is damaged ({reason})") from None
    raise BrokenFile("its pickle has no end")


class _Machine:
    """The state of the interpreter: a stack, and a memo of objects that later instructions refer to."""

    def __init__(self):
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute an instruction.

        Raises:
            BrokenFile: it is not one that plain data needs.
        """
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in SCALARS or name in TEXTS or name in BYTES:
            self.stack.append(argument)
        elif name not in ("PROTO", "FRAME") and not (
            self._collects(name) or self._remembers(name, argument) or self._makes(name, argument)
        ):
            raise BrokenFile(f"it uses the pickle instruction {name}, which data does not need")

    def _collects(self, name: str) -> bool:
        """Execute an instruction that builds containers; False if ``name`` is another."""
        stack = self.stack
        match name:
            case "TUPLE":
                stack.append(tuple(self._to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "LIST":
                stack.append(self._to_mark())
            case "DICT":
                items = self._to_mark()
                stack.append({})
                _set_items(stack[-1], items)
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS":
                items = self._to_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, item])
            case "SETITEMS":
                items = self._to_mark()
                _set_items(stack[-1], items)
            case "ADDITEMS":
                items = self._to_mark()
                stack[-1].update(items)
            case _:
                return False
        return True

    def _remembers(self, name: str, argument: Any) -> bool:
        """Execute an instruction on the memo or the stack; False if ``name`` is another."""
        match name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[int(argument)] = self.stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self._memo[int(argument)])
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case _:
                return False
        return True

    def _makes(self, name: str, argument: Any) -> bool:
        """Execute an instruction that names or creates an object; False if ``name`` is another."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(_known(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                short, module = stack.pop(), stack.pop()
                stack.append(_known(f"{module}.{short}"))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_call(called, arguments))
            case "BUILD":
                # A state dict has version numbers as attributes; they are not needed.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise BrokenFile("attributes are set on something that is not a dictionary")
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case _:
                return False
        return True

    def _to_mark(self) -> list[Any]:
        items = []
        while (top := self.stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise BrokenFile("entries are set in something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise BrokenFile("something that is not a list is extended")
    target.extend(items)


def _known(name: str) -> Name:
    module, _, short = name.rpartition(".")
    if name in CALLS or (module == "torch" and short in STORAGES):
        return Name(name)
    raise BrokenFile(f"it holds {name!r}, which is neither a tensor nor plain data; refused, and not loaded")


def _call(called: Any, arguments: Any) -> Any:
    if not isinstance(called, Name) or called.name not in CALLS or not isinstance(arguments, tuple):
        raise BrokenFile("it calls something that is not a tensor's constructor; refused")
    return CALLS[called.name](*arguments)


def _storage(description: Any) -> Storage:
    if not isinstance(description, tuple) or len(description) < 5 or description[0] != "storage":
        raise BrokenFile("a storage is described wrongly")
    _, kind, key, _, n = description[:5]
    short = kind.name.removeprefix("torch.") if isinstance(kind, Name) else ""
    if short not in STORAGES or not isinstance(key, str) or type(n) is not int or n < 0:
        raise BrokenFile("a storage is described wrongly")
    return Storage(key, STORAGES[short], n)
