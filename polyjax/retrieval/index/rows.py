"""What an index stores of its candidates: the bytes of their texts and the numbers of their vectors."""

import math
from collections.abc import Sequence
from typing import Literal, overload

import ml_dtypes
import numpy as np

from polyjax.errors import InputError

IndexDtype = Literal["float32", "bfloat16", "int8"]
"""Of the vectors that an index keeps."""
STORED: dict[IndexDtype, type] = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
"""Types of the numbers in files."""
ROWS_AT_ONCE = 8192
"""Rows that are processed together."""
_ALIGNMENT = 64


class Texts(Sequence[str]):
    """Texts of a segment, decoded on access.

    Args:
        data: UTF-8 bytes of all, one after the other.
        ends: where each ends, [n].
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self._data, self._ends = data, ends

    @property
    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes, and where each text ends."""
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
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._data[start : int(self._ends[index])]).decode("utf-8")


def pack_texts(texts: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """Texts as bytes, and where each ends, uint64 [n].

    >>> data, ends = pack_texts(["a", "né"])
    >>> Texts(np.frombuffer(data, np.uint8), ends)[:]
    ['a', 'né']
    """
    encoded = [text.encode("utf-8") for text in texts]
    return b"".join(encoded), np.cumsum([len(part) for part in encoded], dtype=np.uint64)


def quantise(vectors: np.ndarray, dtype: IndexDtype) -> tuple[np.ndarray, np.ndarray | None]:
    """Float32 vectors [n, d] as they are stored, and the scales [n] of int8 rows.

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
    """Float32 vectors [n, d] of stored rows (float32, bfloat16 or int8) and the scales of int8 rows."""
    vectors = stored.astype(np.float32)
    return vectors if scales is None else vectors * scales[:, None]


def norms_of(stored: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Euclidean norms of rows, and of what rounding them to bfloat16 takes away, float32 [n, 2].

    Rounded up, so that a bound made with them holds. Rows of bfloat16 or int8 lose nothing: the numbers of an
    int8 row are bfloat16 numbers, and its scale is applied to its products.

    >>> norms_of(np.array([[3.0, 4.0]], np.float32), None).round(3).tolist()
    [[5.0, 0.0]]
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
    """The array of a vector file with the type that its numbers have."""
    return stored.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else stored


def filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The array filled up with zeros to a number of rows, aligned so that a CPU device needs no copy."""
    size = rows * math.prod(array.shape[1:]) * array.dtype.itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    placed = room[first : first + size].view(array.dtype).reshape((rows, *array.shape[1:]))
    placed[: len(array)] = array
    return placed
