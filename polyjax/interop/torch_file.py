"""Reads the tensors of a ``torch.save`` file without torch, and without trusting the file.

``torch_pickle`` interprets the pickles. Sizes are checked against the length of the file before any array is
allocated. Both formats are read: the zip archive of torch >= 1.6, and the older sequence of pickles and raw
storages.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.errors import InputError
from polyjax.interop.torch_pickle import BrokenFile, Name, Storage, Tensor, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DEPTH = 100


def read_torch_file(path: Path) -> Any:
    """The object that ``torch.save`` wrote: plain containers with numpy arrays in place of tensors.

    The arrays are read-only. Those of a file in the older format are views of its memory map. Only
    contiguous tensors are supported.

    Raises:
        InputError: the file is missing, damaged or not a torch file, or it holds anything but contiguous
            tensors and plain data.
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
        expected = "a file written by torch.save"
        raise InputError.in_file(path, problem="the file is missing", expected=expected) from None
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise _not_torch(path, "it is nested too deeply") from None
    except BrokenFile as error:
        raise _not_torch(path, str(error)) from None


def _not_torch(path: Path, reason: str) -> InputError:
    return InputError.in_file(path, problem=f"cannot be read as a torch file: {reason}")


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
    """The tree with each tensor replaced by an array."""
    return _walk(tree, lambda tensor: _view(tensor, load(tensor.storage)), {})


def _walk(tree: Any, change: Callable[[Tensor], Any], seen: dict[int, Any], depth: int = 0) -> Any:
    """A copy of the tree with ``change`` applied to its tensors; a shared object is copied once."""
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
            case Name() | Storage():
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
