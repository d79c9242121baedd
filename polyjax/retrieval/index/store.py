"""A candidate index on disk: texts and vectors; candidates can be added and removed without a rebuild.

    manifest.json     content of the index and its model; renaming it commits every change
    SEGMENT/          one for each build or addition:
      texts.bin       the texts, UTF-8, one after the other
      ends.npy        offset of the end of each text, uint64 [n]
      ids.npy         ids of the candidates, int64 [n]; they never change and are never reused
      vectors.npy     float32 [n, d], bfloat16 as uint16 [n, d], or int8 [n, d]
      rounded.npy     float32 vectors rounded to bfloat16, as uint16 [n, d]; half as many bytes to read
      scales.npy      scales of int8 rows, float32 [n]
      norms.npy       norms of the rows and of their rounding errors in bfloat16, float32 [n, 2]
    removed-N.npy     sorted ids of removed candidates, int64
    building/         an unfinished build or addition; the same call resumes it
    .lock             held by the process that writes

The id of a candidate is its index in the list that the index was built from; additions get the following ids.
Of several copies of a text (``polyjax.data.identity``), the first is kept.

Files are memory-mapped. A change writes new files and then renames the manifest. A kill at any moment leaves
the index in its state before or after the change; the next writer removes files that the manifest does not
name.
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
    """A part of an index: the n candidates of one build or addition.

    Attributes:
        texts: the texts, n of them.
        ids: their ids, int64 [n], increasing.
        vectors: their vectors, float32, bfloat16 or int8 [n, d].
        norms: norms of the rows and of their rounding errors, float32 [n, 2]; see ``norms_of``.
        scales: scales of int8 rows, float32 [n].
        rounded: float32 rows rounded to bfloat16 [n, d].
    """

    texts: Sequence[str]
    ids: np.ndarray
    vectors: np.ndarray
    norms: np.ndarray
    scales: np.ndarray | None = None
    rounded: np.ndarray | None = None

    @property
    def coarse(self) -> np.ndarray:
        """The rows in bfloat16 or int8 [n, d], for approximate scores."""
        return self.vectors if self.rounded is None else self.rounded


class CandidateIndex:
    """Candidates with their vectors, in memory or memory-mapped.

    >>> index = Ranker.load("my-encoder").index(["we went hiking", "see you"])
    >>> len(index.candidates), index.candidates.dtype
    (2, 'float32')

    Args:
        segments: the parts of the index.
        dtype: dtype of the vectors.
        removed: sorted ids of removed candidates.
        manifest: the manifest of an index on disk.

    Attributes:
        rows: number of candidates, including removed ones. A candidate's row is its position in the
            concatenated segments.
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
        """A hash of the rows and their order, hexadecimal.

        It does not change when candidates are removed; it does when some are added or the index is compacted.
        """
        digest = hashlib.sha256()
        if self.manifest is not None:
            digest.update(f"({self.manifest.model.key}, {self.manifest.dtype!r})".encode())
        for segment in self.segments:
            parts = [segment.vectors.view(np.uint8)]
            if self.manifest is not None and isinstance(segment.texts, Texts):
                # Texts and model determine the vectors, which would take much longer to read.
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

    def texts_and_ids(self, rows: np.ndarray) -> list[tuple[str, int]]:
        """The texts and ids of rows, in the order of ``rows`` (int [n]); one by one they take much longer."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[which]
        found: list[tuple[str, int]] = [("", -1)] * len(rows)
        for number in np.unique(which):
            segment, there = self.segments[number], np.flatnonzero(which == number)
            at = places[there]
            texts = segment.texts
            named = texts.take(at) if isinstance(texts, Texts) else [texts[i] for i in at.tolist()]
            for i, text, id_ in zip(there.tolist(), named, segment.ids[at].tolist(), strict=True):
                found[i] = text, id_
        return found

    def _place(self, row: int) -> tuple[Segment, int]:
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.segments[which], int(row - self._starts[which])

    def stored(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Copies of the stored vectors [n, d] of rows, and the scales [n] of int8 rows.

        Args:
            rows: increasing, int [n].
        """
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
        """The largest norm of a vector, and the largest norm of a rounding error in bfloat16."""
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
    """An index in memory only.

    Args:
        texts: candidates.
        vectors: their vectors, float32 [n, d].
        dtype: dtype of the stored vectors.
        ids: their ids, int64 [n], increasing; None for 0, 1, ...
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
    """Open the index in a folder, memory-mapped.

    Args:
        folder: folder of the index.
        scorer: the model that it must have been built with; None for any.
        source: digest of the candidates that it must hold; None for any.

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
            # A change committed in the meantime may have removed files of the old manifest: try again.
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
