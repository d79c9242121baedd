"""A candidate index on disk: texts and vectors, encoded once, added to and removed from without a rebuild.

    manifest.json     what the index holds and was made with; its renaming commits every change
    SEGMENT/          one for each building or addition:
      texts.bin       the texts, UTF-8, one after the other
      ends.npy        where each text ends, uint64 [n]
      ids.npy         their numbers, which never change and are never given again, int64 [n]
      vectors.npy     float32 [n, d], bfloat16 as uint16 [n, d], or int8 [n, d]
      rounded.npy     of float32 rows, bfloat16 as uint16 [n, d]: half as much to read where that will do
      scales.npy      of int8 rows, float32 [n]
      norms.npy       of the rows, and of what rounding them to bfloat16 takes away, float32 [n, 2]
    removed-N.npy     sorted ids that are searched no more, int64
    building/         an unfinished building or addition, which the same call goes on with
    .lock             held by whoever writes

Files are memory-mapped. A change writes new files, then renames the manifest: a kill at any moment leaves the
index before the change or after it, and what no manifest names is cleared away by the next writer.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import ml_dtypes
import numpy as np

from polyjax.config import from_json
from polyjax.types import InputError

IndexDtype = Literal["float32", "bfloat16", "int8"]
MANIFEST, LOCK, BUILDING = "manifest.json", ".lock", "building"
TEXTS, ENDS, IDS = "texts.bin", "ends.npy", "ids.npy"
VECTORS, ROUNDED, SCALES, NORMS = "vectors.npy", "rounded.npy", "scales.npy", "norms.npy"
VERSION = 5
ROWS_AT_ONCE = 8192
"""Rows that are worked on together where all are."""
_ALIGNMENT = 64
STORED: dict[IndexDtype, type] = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
_OF_DTYPE: dict[IndexDtype, tuple[str, ...]] = {"float32": (ROUNDED,), "bfloat16": (), "int8": (SCALES,)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """A segment's folder and the number of its candidates."""

    name: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """All that a candidate's vector depends on; hashes but for the arithmetic.

    Attributes:
        weights: of the parameters as they are used, so they differ with the arithmetic too.
        architecture: of the encoder's and the head's settings.
        tokenizer: of its files.
        lengths: of the settings by which texts become tokens.
        arithmetic: the encoder's dtype.
    """

    weights: str
    architecture: str
    tokenizer: str
    lengths: str
    arithmetic: str

    def mismatch(self, other: "Fingerprint") -> str:
        """How an index with this fingerprint and a model with another one differ, in words; "" if not."""
        if self.arithmetic != other.arithmetic:
            return (
                f"the index was computed in {self.arithmetic}, and the model computes in {other.arithmetic}; "
                "choose the index's dtype for the arithmetic, or build it again"
            )
        parts = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if not parts:
            return ""
        return f"the index was made with another model (other {', '.join(parts)}); build it again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an index holds and was made with.

    Attributes:
        version: of the format.
        model: what made the vectors.
        source: fingerprint of the candidates that it was built from; "" once some were added or removed.
        dtype: of the stored vectors.
        dim: their width d.
        next_id: number of the next candidate.
        segments: in the order of their candidates' numbers.
        removed: file of the removed ids, "" where there is none.
        n_removed: how many there are.
    """

    version: int = VERSION
    model: Fingerprint
    source: str
    dtype: IndexDtype
    dim: int
    next_id: int
    segments: tuple[SegmentInfo, ...]
    removed: str = ""
    n_removed: int = 0


class Texts(Sequence[str]):
    """Texts of a segment, decoded when they are asked for.

    Args:
        data: UTF-8 bytes of all, one after the other.
        ends: where each ends, [n].
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self._data, self._ends = data, ends

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
                    raise InputError(f"vector {bad} is not finite; is the model broken?")
                norms[start : start + len(part), column] = np.where(length, np.nextafter(length, np.inf), 0)
    return norms


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some of an index's candidates.

    Attributes:
        texts: n of them.
        ids: their numbers, int64 [n], increasing.
        vectors: float32, bfloat16 or int8 [n, d].
        norms: of the rows and of their rounding, float32 [n, 2]; see ``norms_of``.
        scales: of int8 rows, float32 [n].
        rounded: float32 rows in bfloat16 [n, d].
    """

    texts: Sequence[str]
    ids: np.ndarray
    vectors: np.ndarray
    norms: np.ndarray
    scales: np.ndarray | None = None
    rounded: np.ndarray | None = None

    @property
    def coarse(self) -> np.ndarray:
        """The rows with bfloat16's precision or less [n, d]."""
        return self.vectors if self.rounded is None else self.rounded


class CandidateIndex:
    """Candidates with their vectors, in memory or memory-mapped.

    Args:
        segments: its parts.
        dtype: of the vectors.
        removed: sorted ids that are not searched.
        manifest: of an index on disk.

    Attributes:
        rows: candidates with the removed ones; a candidate's row is its place in all segments.
        identity: of the rows: another index, or this one with other rows, has another. Removing candidates
            changes no row; adding and compacting do.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        dtype: IndexDtype,
        *,
        removed: np.ndarray | None = None,
        manifest: Manifest | None = None,
    ):
        self.segments, self.dtype, self.manifest = tuple(segments), dtype, manifest
        self.removed = np.empty(0, np.int64) if removed is None else removed
        self._starts = np.cumsum([0, *(len(s.ids) for s in segments)])
        self.rows = int(self._starts[-1])
        if manifest is None:
            content = b"".join(segment.norms.tobytes() for segment in segments)
        else:
            content = repr((manifest.model, manifest.dtype, manifest.segments)).encode()
        self.identity = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        """Candidates that can be found."""
        return self.rows - len(self.removed)

    def text(self, row: int) -> str:
        """The text of a row."""
        segment, place = self._place(row)
        return segment.texts[place]

    def id(self, row: int) -> int:
        """The number of a row's candidate."""
        segment, place = self._place(row)
        return int(segment.ids[place])

    def _place(self, row: int) -> tuple[Segment, int]:
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.segments[which], int(row - self._starts[which])

    def stored(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The stored vectors [n, d] of increasing rows, copied, and the scales [n] of int8 ones."""
        if not len(rows):
            first = self.segments[0]
            return first.vectors[:0], None if first.scales is None else first.scales[:0]
        bounds = np.searchsorted(rows, self._starts)
        parts = [
            (segment, rows[a:b] - start)
            for segment, start, a, b in zip(self.segments, self._starts, bounds, bounds[1:], strict=False)
            if a < b
        ]
        scales = [s.scales[places] for s, places in parts if s.scales is not None]
        return np.concatenate([s.vectors[places] for s, places in parts]), (
            np.concatenate(scales) if scales else None
        )

    def live(self, segment: Segment) -> np.ndarray:
        """Which of a segment's candidates are not removed, bool [n]."""
        return ~np.isin(segment.ids, self.removed, assume_unique=True)

    def live_rows(self) -> np.ndarray:
        """Which rows are not removed, bool [rows]."""
        return np.concatenate([self.live(segment) for segment in self.segments])

    def longest(self) -> tuple[float, float]:
        """The norm of the longest vector, and the most that rounding one to bfloat16 takes away."""
        norm, lost = np.max([segment.norms.max(0) for segment in self.segments], axis=0)
        return float(norm), float(lost)

    def items(self) -> Iterator[tuple[int, str]]:
        """Ids and texts of all that can be found."""
        for segment in self.segments:
            for place in np.flatnonzero(self.live(segment)):
                yield int(segment.ids[place]), segment.texts[int(place)]


def in_memory(texts: Sequence[str], vectors: np.ndarray, dtype: IndexDtype = "float32") -> CandidateIndex:
    """An index of texts and their float32 vectors [n, d] that is not kept."""
    stored, scales = quantise(np.asarray(vectors, np.float32), dtype)
    rows = as_dtype(filled(stored, len(stored)), dtype)
    ids = np.arange(len(texts))
    rounded = filled(stored.astype(ml_dtypes.bfloat16), len(stored)) if dtype == "float32" else None
    return CandidateIndex([Segment(texts, ids, rows, norms_of(rows, scales), scales, rounded)], dtype)


def filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with zeros up to a number of rows, where a CPU device can use it without a copy."""
    size = rows * math.prod(array.shape[1:]) * array.dtype.itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    placed = room[first : first + size].view(array.dtype).reshape((rows, *array.shape[1:]))
    placed[: len(array)] = array
    return placed


def open_index(
    folder: Path, *, model: Fingerprint | None = None, source: str | None = None
) -> CandidateIndex:
    """The index of a folder, memory-mapped.

    Args:
        folder: of the index.
        model: what it must have been made with; anything where None.
        source: fingerprint of the candidates that it must hold; any where None.

    Raises:
        InputError: there is none, it is broken, or it was made with something else; the message says what.
    """
    manifest = read_manifest(folder)
    while True:
        if model is not None and (mismatch := manifest.model.mismatch(model)):
            raise InputError(f"{folder}: {mismatch}")
        if source is not None and manifest.source != source:
            raise InputError(f"{folder}: the index holds other candidates; build it again")
        try:
            segments = [_open_segment(folder / info.name, info, manifest) for info in manifest.segments]
            removed = np.load(folder / manifest.removed, allow_pickle=False) if manifest.removed else None
            break
        except (OSError, ValueError, EOFError) as error:
            # A change that was committed meanwhile has cleared away what the manifest of before named.
            before, manifest = manifest, read_manifest(folder)
            if manifest == before:
                raise InputError(f"{folder}: the index is broken ({error}); build it again") from None
    return CandidateIndex(segments, manifest.dtype, removed=removed, manifest=manifest)


def read_manifest(folder: Path) -> Manifest:
    """What an index holds.

    Raises:
        InputError: there is none, or it is broken or of another version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = " (an unfinished building is there)" if (folder / BUILDING).is_dir() else ""
        raise InputError(f"{folder}: there is no index yet{unfinished}; build one") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the index is broken ({error}); build it again") from None
    if isinstance(data, dict) and data.get("version") != VERSION:
        raise InputError(
            f"{path}: the index has version {data.get('version')}, expected {VERSION}; build it again"
        )
    manifest = from_json(Manifest, data, source=str(path))
    if not manifest.segments:
        raise InputError(f"{path}: the index is broken (it has no segments); build it again")
    return manifest


def as_dtype(stored: np.ndarray, dtype: IndexDtype) -> np.ndarray:
    """The array of a vector file with the type that its numbers have."""
    return stored.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else stored


def _open_segment(folder: Path, info: SegmentInfo, manifest: Manifest) -> Segment:
    arrays = {
        name: np.load(folder / name, mmap_mode="r", allow_pickle=False)
        for name in (ENDS, IDS, VECTORS, NORMS, *_OF_DTYPE[manifest.dtype])
    }
    n, d = info.count, manifest.dim
    expected: dict[str, tuple[tuple[int, ...], type]] = {
        ENDS: ((n,), np.uint64),
        IDS: ((n,), np.int64),
        VECTORS: ((n, d), STORED[manifest.dtype]),
        ROUNDED: ((n, d), np.uint16),
        NORMS: ((n, 2), np.float32),
        SCALES: ((n,), np.float32),
    }
    for name, array in arrays.items():
        shape, dtype = expected[name]
        if (array.shape, array.dtype) != (shape, dtype):
            raise ValueError(
                f"{folder / name} is {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of "
                f"shape {shape}"
            )
    stored = arrays[VECTORS]
    n_bytes = int(arrays[ENDS][-1])
    if (folder / TEXTS).stat().st_size != n_bytes:
        raise ValueError(f"{folder / TEXTS} has not its {n_bytes} bytes")
    data = np.memmap(folder / TEXTS, np.uint8, "r") if n_bytes else np.empty(0, np.uint8)
    texts = Texts(data, arrays[ENDS])
    rows = as_dtype(stored, manifest.dtype)
    rounded = None if ROUNDED not in arrays else arrays[ROUNDED].view(ml_dtypes.bfloat16)
    return Segment(texts, arrays[IDS], rows, arrays[NORMS], arrays.get(SCALES), rounded)
