"""A candidate index on disk: texts and vectors, encoded once, added to and removed from without a rebuild.

    manifest.json     what the index holds and was made with; its renaming commits every change
    SEGMENT/          one for each build or addition:
      texts.bin       the texts, UTF-8, one after the other
      ends.npy        where each text ends, uint64 [n]
      ids.npy         their ids, int64 [n], which never change and are never reused
      vectors.npy     float32 [n, d], bfloat16 as uint16 [n, d], or int8 [n, d]
      rounded.npy     of float32 rows, bfloat16 as uint16 [n, d]: half as much to read if that is enough
      scales.npy      of int8 rows, float32 [n]
      norms.npy       of the rows, and of what rounding them to bfloat16 takes away, float32 [n, 2]
    removed-N.npy     sorted ids of removed candidates, int64
    building/         an unfinished build or addition, which the same call resumes
    .lock             held by the process that writes

The id of a candidate is its place in the list that the index was built from; additions get the ids that
follow. Of texts that are one (``polyjax.data.identity``) the first is kept.

Files are memory-mapped. A change writes new files, then renames the manifest: a kill at any moment leaves the
index as it was before the change or after it, and the next writer removes what no manifest names.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.manifest import (
    ENDS,
    IDS,
    NORMS,
    ROUNDED,
    SCALES,
    TEXTS,
    VECTORS,
    Manifest,
    SegmentInfo,
    broken,
    read_manifest,
)
from polyjax.retrieval.index.rows import (
    STORED,
    IndexDtype,
    Texts,
    as_dtype,
    filled,
    norms_of,
    quantise,
)

_OF_DTYPE: dict[IndexDtype, tuple[str, ...]] = {"float32": (ROUNDED,), "bfloat16": (), "int8": (SCALES,)}


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some of an index's candidates.

    Attributes:
        texts: n of them.
        ids: int64 [n], increasing.
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
        removed: sorted ids of removed candidates.
        manifest: of an index on disk.

    Attributes:
        rows: number of candidates, including removed ones; a candidate's row is its place in all segments.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        dtype: IndexDtype,
        *,
        removed: np.ndarray | None = None,
        manifest: Manifest | None = None,
    ):
        self.segments, self.manifest = tuple(segments), manifest
        self.dtype: IndexDtype = dtype
        self.removed = np.empty(0, np.int64) if removed is None else removed
        self._starts = np.cumsum([0, *(len(s.ids) for s in segments)])
        self.rows = int(self._starts[-1])

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the rows: an index of other rows, or of the same in another order, has another one.

        Removing candidates changes no row; adding and compacting do.
        """
        digest = hashlib.sha256()
        if self.manifest is not None:
            digest.update(f"({self.manifest.model.key}, {self.manifest.dtype!r})".encode())
        for segment in self.segments:
            parts = [segment.vectors.view(np.uint8)]
            if self.manifest is not None and isinstance(segment.texts, Texts):
                # They and the model determine the vectors, which take much longer to read.
                parts = [*segment.texts.packed]
            elif segment.scales is not None:
                parts.append(segment.scales)
            for part in parts:
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of candidates, without removed ones."""
        return self.rows - len(self.removed)

    def text(self, row: int) -> str:
        """The text of a row."""
        segment, place = self._place(row)
        return segment.texts[place]

    def id(self, row: int) -> int:
        """The id of a row's candidate."""
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

    @functools.cached_property
    def live_rows(self) -> np.ndarray:
        """Which rows are not removed, bool [rows]."""
        return np.concatenate([self.live(segment) for segment in self.segments])

    def longest(self) -> tuple[float, float]:
        """The norm of the longest vector, and the most that rounding one to bfloat16 takes away."""
        norm, lost = np.max([segment.norms.max(0) for segment in self.segments], axis=0)
        return float(norm), float(lost)

    def items(self) -> Iterator[tuple[int, str]]:
        """Ids and texts of all candidates that are not removed."""
        for segment in self.segments:
            for place in np.flatnonzero(self.live(segment)):
                yield int(segment.ids[place]), segment.texts[int(place)]


def in_memory(
    texts: Sequence[str],
    vectors: np.ndarray,
    dtype: IndexDtype = "float32",
    *,
    ids: np.ndarray | None = None,
) -> CandidateIndex:
    """An index that is not kept on disk.

    Args:
        texts: candidates.
        vectors: theirs, float32 [n, d].
        dtype: of the kept vectors.
        ids: theirs, int64 [n], increasing; their places by default.
    """
    return CandidateIndex([memory_segment(texts, vectors, dtype, ids=ids)], dtype)


def memory_segment(
    texts: Sequence[str], vectors: np.ndarray, dtype: IndexDtype, *, ids: np.ndarray | None = None
) -> Segment:
    """A segment of texts and their float32 vectors [n, d]; see ``in_memory``."""
    stored, scales = quantise(np.asarray(vectors, np.float32), dtype)
    rows = as_dtype(filled(stored, len(stored)), dtype)
    rounded = filled(stored.astype(ml_dtypes.bfloat16), len(stored)) if dtype == "float32" else None
    ids = np.arange(len(texts)) if ids is None else np.asarray(ids, np.int64)
    return Segment(texts, ids, rows, norms_of(rows, scales), scales, rounded)


def open_index(
    folder: Path, *, scorer: TextScorer | None = None, source: str | None = None
) -> CandidateIndex:
    """The index of a folder, memory-mapped.

    Args:
        folder: of the index.
        scorer: the model that it must have been made with; any if None.
        source: digest of the candidates that it must hold; any if None.

    Raises:
        InputError: there is no index, it is broken, or it does not match; the message says why.
    """
    manifest = read_manifest(folder)
    while True:
        if scorer is not None and (mismatch := manifest.mismatch(scorer)):
            fix, dtype = "build it again", manifest.model.arithmetic
            if dtype != scorer.settings.encoder.dtype:
                fix = f"load the model with `dtype` {dtype}, or build the index again"
            raise InputError.in_file(folder, problem=mismatch, fix=fix)
        if source is not None and manifest.source != source:
            raise InputError.in_file(folder, problem="the index holds other candidates", fix="build it again")
        try:
            segments = [_open_segment(folder / info.name, info, manifest) for info in manifest.segments]
            removed = np.load(folder / manifest.removed, allow_pickle=False) if manifest.removed else None
            break
        except (OSError, ValueError, EOFError) as error:
            # A change that was committed meanwhile has removed files that the old manifest named.
            before, manifest = manifest, read_manifest(folder)
            if manifest == before:
                raise broken(folder, str(error)) from None
    return CandidateIndex(segments, manifest.dtype, removed=removed, manifest=manifest)


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
        raise ValueError(f"{folder / TEXTS} does not have its {n_bytes} bytes")
    data = np.memmap(folder / TEXTS, np.uint8, "r") if n_bytes else np.empty(0, np.uint8)
    texts = Texts(data, arrays[ENDS])
    rows = as_dtype(stored, manifest.dtype)
    rounded = None if ROUNDED not in arrays else arrays[ROUNDED].view(ml_dtypes.bfloat16)
    return Segment(texts, arrays[IDS], rows, arrays[NORMS], arrays.get(SCALES), rounded)
