"""Reads the tensors of a ``torch.save`` file without torch, and without trusting the file.

A pickle is a program. Here it is run by an interpreter that knows plain containers, numbers, texts and
tensors only, so that a file can neither name nor call anything else; lengths are checked against what
the file really holds before anything is allocated. Both formats are read: the zip archive of
torch >= 1.6, and the legacy sequence of pickles and raw storages.
"""

import dataclasses
import io
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polyjax.errors import InputError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
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
MAX_DEPTH = 100


class BrokenFile(Exception):
    """The file is not what it should be; the message says how."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A named run of numbers in the file."""

    key: str
    dtype: str
    n: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Name:
    """Something that the pickle refers to by name; never looked up."""

    name: str


_MARK = object()


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


def read_pickle(file: BinaryIO | io.BytesIO) -> Any:
    """The object of one pickle, made of plain containers, numbers, texts and ``Tensor``.

    Raises:
        BrokenFile: the pickle is damaged, or holds anything else.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        items = []
        while (top := stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]

    def set_items(target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise BrokenFile("entries are set in something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def extend(target: Any, items: list[Any]) -> None:
        if not isinstance(target, list):
            raise BrokenFile("something that is not a list is extended")
        target.extend(items)

    try:
        for opcode, value, _ in pickletools.genops(file):
            argument: Any = value
            match opcode.name:
                case "STOP":
                    (result,) = stack
                    return result
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    stack.append(_MARK)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                    stack.append(argument)
                case "FLOAT" | "BINFLOAT":
                    stack.append(argument)
                case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                    stack.append(argument)
                case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_SET":
                    stack.append(set())
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(pop_to_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    n = int(opcode.name[-1])
                    stack[-n:] = [tuple(stack[-n:])]
                case "LIST":
                    stack.append(pop_to_mark())
                case "DICT":
                    items = pop_to_mark()
                    stack.append({})
                    set_items(stack[-1], items)
                case "APPEND":
                    item = stack.pop()
                    extend(stack[-1], [item])
                case "APPENDS":
                    items = pop_to_mark()
                    extend(stack[-1], items)
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    set_items(stack[-1], [key, item])
                case "SETITEMS":
                    items = pop_to_mark()
                    set_items(stack[-1], items)
                case "ADDITEMS":
                    stack[-1].update(pop_to_mark())
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[int(argument)] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[int(argument)])
                case "POP":
                    stack.pop()
                case "POP_MARK":
                    pop_to_mark()
                case "DUP":
                    stack.append(stack[-1])
                case "GLOBAL":
                    stack.append(_known(str(argument).replace(" ", ".")))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_known(f"{module}.{name}"))
                case "REDUCE":
                    arguments, called = stack.pop(), stack.pop()
                    stack.append(_call(called, arguments))
                case "BUILD":
                    # A state dict's version numbers are hung on it as attributes; nobody needs them.
                    stack.pop()
                    if not isinstance(stack[-1], dict):
                        raise BrokenFile("attributes are set on something that is not a dictionary")
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case other:
                    raise BrokenFile(f"it uses the pickle instruction {other}, which data does not need")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise BrokenFile(f"its pickle is damaged ({reason})") from None
    raise BrokenFile("its pickle has no end")


def _known(name: str) -> _Name:
    module, _, short = name.rpartition(".")
    if name in CALLS or (module == "torch" and short in STORAGES):
        return _Name(name)
    raise BrokenFile(f"it holds {name!r}, which is neither a tensor nor plain data; refused, and not loaded")


def _call(called: Any, arguments: Any) -> Any:
    if not isinstance(called, _Name) or called.name not in CALLS or not isinstance(arguments, tuple):
        raise BrokenFile("it calls something that is not a tensor's constructor; refused")
    return CALLS[called.name](*arguments)


def _storage(description: Any) -> Storage:
    if not isinstance(description, tuple) or len(description) < 5 or description[0] != "storage":
        raise BrokenFile("a storage is described wrongly")
    _, kind, key, _, n = description[:5]
    short = kind.name.removeprefix("torch.") if isinstance(kind, _Name) else ""
    if short not in STORAGES or not isinstance(key, str) or type(n) is not int or n < 0:
        raise BrokenFile("a storage is described wrongly")
    return Storage(key, STORAGES[short], n)


def read_torch_file(path: Path) -> Any:
    """The object that ``torch.save`` wrote: plain containers with numpy arrays for tensors.

    Arrays share the file's memory map where they can, and are read-only. Contiguous tensors only.

    Raises:
        InputError: the file is missing, damaged, foreign, or holds more than tensors and plain data.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size == 0:
                raise BrokenFile("it is empty")
            file.seek(0)
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _read_zip(file, size) if is_zip else _read_legacy(file, size)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a file written by torch.save") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise InputError(f"{path} cannot be read as a torch file: it is nested too deeply") from None
    except BrokenFile as error:
        raise InputError(f"{path} cannot be read as a torch file: {error}") from None


def _read_zip(file: io.BufferedReader, size: int) -> Any:
    try:
        archive = zipfile.ZipFile(file)
        members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise BrokenFile(f"its archive is damaged ({error})") from None
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise BrokenFile("its archive holds no data.pkl; expected one written by torch.save")
    (root,) = roots

    def member(name: str) -> bytes:
        info = members.get(root + name)
        if info is None:
            raise BrokenFile(f"its archive lacks {name}; was it cut short?")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise BrokenFile(f"{name} in its archive is compressed or longer than the file")
        try:
            return archive.read(info)
        except (
            zipfile.BadZipFile,
            ValueError,
            EOFError,
            OSError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise BrokenFile(f"{name} in its archive is damaged ({error})") from None

    if root + "byteorder" in members and member("byteorder") != b"little":
        raise BrokenFile("its numbers are big-endian; save it again on a little-endian machine")
    tree = read_pickle(io.BytesIO(member("data.pkl")))
    storages: dict[str, np.ndarray] = {}

    def load(storage: Storage) -> np.ndarray:
        if storage.key not in storages:
            raw = member(f"data/{storage.key}")
            if len(raw) != storage.n * np.dtype(storage.dtype).itemsize:
                raise BrokenFile(f"storage {storage.key} holds {len(raw)} bytes, not {storage.n} numbers")
            storages[storage.key] = np.frombuffer(raw, storage.dtype)
        return storages[storage.key]

    return _resolve(tree, load)


def _read_legacy(file: io.BufferedReader, size: int) -> Any:
    head = []
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL):
        try:
            head.append(read_pickle(file))
        except BrokenFile:
            head.append(None)
        if head[-1] != expected:
            raise BrokenFile("expected a file written by torch.save, got something else")
    system = read_pickle(file)
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise BrokenFile("its numbers are big-endian, or its header is damaged")
    tree, keys = read_pickle(file), read_pickle(file)
    described = {storage.key: storage for storage in _storages(tree)}
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(described):
        raise BrokenFile("its list of storages does not fit its tensors")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        storage = described[str(key)]
        count = file.read(8)
        n_bytes = storage.n * np.dtype(storage.dtype).itemsize
        if len(count) < 8 or file.tell() + n_bytes > size:
            raise BrokenFile("it ends within its tensors; was it cut short?")
        if struct.unpack("<q", count)[0] != storage.n:
            raise BrokenFile(f"storage {key} is not as long as its tensors say")
        storages[storage.key] = np.frombuffer(data, storage.dtype, storage.n, file.tell())
        file.seek(n_bytes, io.SEEK_CUR)
    if file.tell() != size:
        raise BrokenFile(f"{size - file.tell()} bytes follow its last tensor")
    return _resolve(tree, lambda storage: storages[storage.key])


def _storages(tree: Any) -> list[Storage]:
    found: list[Storage] = []
    _walk(tree, lambda tensor: found.append(tensor.storage), {})
    return found


def _resolve(tree: Any, load: Callable[[Storage], np.ndarray]) -> Any:
    """The tree with arrays for tensors."""
    return _walk(tree, lambda tensor: _view(tensor, load(tensor.storage)), {})


def _walk(tree: Any, change: Callable[[Tensor], Any], seen: dict[int, Any], depth: int = 0) -> Any:
    """A copy of the tree with its tensors changed; each object once, however often it is referred to."""
    if depth > MAX_DEPTH:
        raise BrokenFile("it is nested too deeply")
    if id(tree) not in seen:
        match tree:
            case Tensor():
                seen[id(tree)] = change(tree)
            case dict():
                seen[id(tree)] = {k: _walk(v, change, seen, depth + 1) for k, v in tree.items()}
            case list() | tuple():
                seen[id(tree)] = type(tree)([_walk(value, change, seen, depth + 1) for value in tree])
            case _Name() | Storage():
                raise BrokenFile("it holds a bare name where data is expected")
            case _:
                return tree
    return seen[id(tree)]


def _view(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    n, expected = 1, []
    for size in reversed(tensor.shape):
        expected.append(n)
        n *= size
    contiguous = all(
        stride == wanted or size == 1
        for size, stride, wanted in zip(tensor.shape, tensor.stride, reversed(expected), strict=True)
    )
    if not contiguous and n:
        raise BrokenFile(f"a tensor of shape {tensor.shape} is not contiguous; save it with .contiguous()")
    if tensor.offset + n > len(numbers):
        raise BrokenFile(f"a tensor of shape {tensor.shape} is larger than its storage")
    return numbers[tensor.offset : tensor.offset + n].reshape(tensor.shape)
