"""The stored form of candidates: bytes of texts, and vectors in float32, bfloat16 or int8."""

import math
from collections.abc import Sequence
from typing import Literal, overload

import ml_dtypes
import numpy as np

from polyjax.errors import InputError

IndexDtype = Literal["float32", "bfloat16", "int8"]
"""Dtype of the vectors in an index."""
STORED: dict[IndexDtype, type] = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
"""Numpy dtypes of the vector files."""
ROWS_AT_ONCE = 8192
"""Number of rows processed at a time."""
_ALIGNMENT = 64


class Texts(Sequence[str]):
    """The texts of a segment, decoded on access.

    Args:
        data: UTF-8 bytes of all texts, one after the other.
        ends: offset of the end of each text, [n].
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        # As plain views: an element of a memory map takes ten times as long to read.
        self._data, self._ends = np.asarray(data), np.asarray(ends)

    @property
    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of all texts, and the offset of the end of each."""
        return self._data, self._ends

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """A text, or several."""
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._data[start : int(self._ends[index])]).decode("utf-8")

    def take(self, places: np.ndarray) -> list[str]:
        """The texts at places, int [n] from 0; faster than one by one."""
        ends = self._ends[places].tolist()
        starts = np.where(places > 0, self._ends[places - 1], 0).tolist()
        data = self._data.data  # a memoryview, whose slices cost less than an array's
        return [str(data[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]


def pack_texts(texts: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """Texts as UTF-8 bytes, and the offset of the end of each, uint64 [n].

    >>> data, ends = pack_texts(["a", "né"])
    >>> Texts(np.frombuffer(data, np.uint8), ends)[:]
    ['a', 'né']
    """
    encoded = [text.encode("utf-8") for text in texts]
    return b"".join(encoded), np.cumsum([len(part) for part in encoded], dtype=np.uint64)


def quantise(vectors: np.ndarray, dtype: IndexDtype) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert float32 vectors [n, d] to their stored form; returns it and the scales [n] of int8 rows.

    >>> stored, scales = quantise(np.array([[0.5, -1.0]], np.float32), "int8")
    >>> stored.tolist(), (stored * scales[:, None]).round(2).tolist()
    ([[64, -127]], [[0.5, -1.0]])
    """
    match dtype:
        case "float32":
            return vectors, None
        case "bfloat16":
            return vectors.astype(ml_dtypes.bfloat16).view(np.uint16), None
        case "int8":
            scales = np.abs(vectors).max(axis=1) / np.float32(127)
            safe = np.where(scales > 0, scales, np.float32(1))
            return np.rint(vectors / safe[:, None]).astype(np.int8), scales


def decode(stored: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Convert stored rows [n, d] (float32, bfloat16 or int8, with scales [n]) to float32 vectors."""
    vectors = stored.astype(np.float32)
    return vectors if scales is None else vectors * scales[:, None]


def norms_of(stored: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Euclidean norms of rows, and of their rounding errors in bfloat16, float32 [n, 2].

    Norms are rounded up, so that bounds computed from them hold. Rows in bfloat16 or int8 have no rounding
    error: integers of int8 are exact in bfloat16, and the scale is applied to the products.

    >>> norms_of(np.array([[3.0, 4.0]], np.float32), None).round(3).tolist()
    [[5.0, 0.0]]

    Raises:
        InputError: a vector is not finite.
    """
    norms = np.zeros((len(stored), 2), np.float32)
    for start in range(0, len(stored), ROWS_AT_ONCE):
        part = stored[start : start + ROWS_AT_ONCE]
        exact = decode(part, None if scales is None else scales[start : start + ROWS_AT_ONCE]).astype(float)
        lost = exact - exact.astype(ml_dtypes.bfloat16).astype(float) if part.dtype == np.float32 else None
        for column, rows in enumerate((exact, lost)):
            if rows is not None:
                length = np.linalg.norm(rows, axis=1).astype(np.float32)
                if not np.isfinite(length).all():
                    bad = start + int(np.argmin(np.isfinite(length)))
                    problem = f"vector {bad} is not finite"
                    raise InputError("vectors", problem=problem, fix="check the model's parameters")
                norms[start : start + len(part), column] = np.where(length, np.nextafter(length, np.inf), 0)
    return norms


def as_dtype(stored: np.ndarray, dtype: IndexDtype) -> np.ndarray:
    """The array of a vector file, with uint16 viewed as bfloat16."""
    return stored.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else stored


def filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The array padded with zeros to a number of rows, in aligned memory that a CPU device need not copy."""
    size = rows * math.prod(array.shape[1:]) * array.dtype.itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    placed = room[first : first + size].view(array.dtype).reshape((rows, *array.shape[1:]))
    placed[: len(array)] = array
    return placed
