"""Changes of an index on disk: each is written to new files and committed by renaming the manifest.

``polyjax.retrieval.index.store`` describes the format and its guarantees; ``build`` makes additions.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from polyjax.config import to_json
from polyjax.errors import InputError
from polyjax.retrieval.index.manifest import (
    BUILDING,
    ENDS,
    IDS,
    LOCK,
    MANIFEST,
    NORMS,
    ROUNDED,
    SCALES,
    TEXTS,
    VECTORS,
    Manifest,
    SegmentInfo,
    read_manifest,
    rebuilt,
)
from polyjax.retrieval.index.rows import (
    ROWS_AT_ONCE,
    STORED,
    IndexDtype,
    as_dtype,
    norms_of,
    pack_texts,
)
from polyjax.retrieval.index.store import CandidateIndex, open_index
from polyjax.runtime.files import PARTIAL, exclusive_lock, save_array, write_bytes, write_text

SEGMENT = re.compile(rf"\d{{6}}({PARTIAL})?")
REPLACEABLE = re.compile(rf"(\d{{6}}|removed-\d+\.npy|manifest\.json)({PARTIAL})?")
"""Names of files that a writer may remove."""
LITTER = re.compile(r"\.DS_Store|\.nfs.*")
"""Files that macOS and NFS leave in any folder."""
PLAN, DONE, ROW_SCALES = "plan.json", "done.json", "scales.partial"
"""Files of a build in progress: what is being built and how many batches are done."""
OF_SEGMENT = {TEXTS, ENDS, IDS, VECTORS, ROUNDED, SCALES, NORMS, PLAN, DONE, ROW_SCALES}


@contextlib.contextmanager
def writing(folder: Path, *, new: bool = False, build: str | None = None) -> Iterator[Manifest | None]:
    """Lock an index folder for writing; yields its manifest, or None if there is no readable index.

    Args:
        folder: folder of the index.
        new: create the folder if it does not exist; with False the index must exist.
        build: ``Manifest.build`` of the index that the caller has opened; None if it has opened none.

    Raises:
        InputError: another process is writing there, the folder is not an index, it cannot be written, or the
            index was built again.
    """
    try:
        check_replaceable(folder)
        if not new:
            read_manifest(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = exclusive_lock(folder / LOCK, "another process is writing the index")
        with lock:
            try:
                manifest = read_manifest(folder)
            except InputError:  # a broken index is kept until a new one is committed
                manifest = None
            if build is not None and manifest is not None and manifest.build != build:
                raise rebuilt(folder)
            yield manifest
    except OSError as error:
        raise InputError.in_file(folder, problem=f"cannot be written: {error}") from None


def commit(folder: Path, manifest: Manifest) -> None:
    """Commit a manifest, and remove the files that it does not name."""
    write_text(folder / MANIFEST, json.dumps(to_json(manifest), indent=2) + "\n")
    with contextlib.suppress(OSError):  # the change is committed; the next writer removes remaining files
        clear(folder, manifest)


def clear(folder: Path, manifest: Manifest | None) -> None:
    """Remove segments and files that a manifest does not name; an unfinished build is kept."""
    named: set[str] = set()
    if manifest is not None:
        named = {MANIFEST, manifest.removed, *(info.name for info in manifest.segments)}
    for entry in folder.iterdir():
        if entry.name in named or not REPLACEABLE.fullmatch(entry.name):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove(folder: Path, ids: Iterable[int] | np.ndarray, *, build: str | None = None) -> int:
    """Remove candidates from an index; returns the number of candidates removed.

    Args:
        folder: folder of the index.
        ids: ids of the candidates; those already removed are ignored.
        build: see ``writing``.

    Raises:
        InputError: an id was never assigned, or the index is missing, broken, locked by another process or
            built again.
    """
    with writing(folder, build=build):
        index = open_index(folder)
        manifest = index.manifest
        assert manifest is not None
        fresh = removable(index, ids, next_id=manifest.next_id)
        if len(fresh):
            write_removed(folder, manifest, np.union1d(index.removed, fresh))
        return len(fresh)


def removable(index: CandidateIndex, ids: Iterable[int] | np.ndarray, *, next_id: int) -> np.ndarray:
    """The ids whose candidates are still in the index, increasing.

    Raises:
        InputError: an id was never assigned.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InputError("ids", expected="a list of ids", got=ids)
    ids = list(ids)
    for place, number in enumerate(ids):
        is_number = isinstance(number, int | np.integer) and not isinstance(number, bool)  # nor a mask's
        if not is_number or not 0 <= number < next_id:
            raise InputError(f"ids[{place}]", expected=f"ids from 0 to {next_id - 1}", got=number)
    known = np.concatenate([segment.ids for segment in index.segments])
    return np.intersect1d(np.setdiff1d(np.asarray(ids, np.int64), index.removed), known)


def write_removed(folder: Path, manifest: Manifest, removed: np.ndarray) -> None:
    """Commit a new set of removed ids."""
    number = 1 + int(manifest.removed.removeprefix("removed-").removesuffix(".npy") or -1)
    name = f"removed-{number}.npy"
    save_array(folder / name, removed.astype(np.int64))
    commit(folder, dataclasses.replace(manifest, removed=name, n_removed=len(removed), source=""))


def compact(folder: Path, *, build: str | None = None, rows_at_once: int = 65536) -> int:
    """Rewrite an index as one segment without the removed candidates; returns the number dropped.

    Args:
        folder: folder of the index.
        build: see ``writing``.
        rows_at_once: number of rows copied at a time.

    Raises:
        InputError: all candidates were removed, or the index is missing, broken, locked by another process or
            built again.
    """
    with writing(folder, build=build):
        index = open_index(folder)
        manifest = index.manifest
        assert manifest is not None
        if not len(index):
            raise InputError.in_file(
                folder, problem="every candidate was removed", fix="add some before compacting"
            )
        if len(index.segments) == 1 and not len(index.removed):
            return 0
        clear(folder, manifest)
        name = next_segment(folder)
        aside = folder / (name + PARTIAL)
        aside.mkdir()
        kept = [(segment, np.flatnonzero(index.live(segment))) for segment in index.segments]
        parts = [
            (segment, places[i : i + rows_at_once])
            for segment, places in kept
            for i in range(0, len(places), rows_at_once)
        ]
        vectors = new_vectors(aside, len(index), manifest.dim, manifest.dtype)
        done = 0
        for segment, places in parts:
            stored = segment.vectors.view(np.uint16) if manifest.dtype == "bfloat16" else segment.vectors
            vectors[done : done + len(places)] = stored[places]
            done += len(places)
        vectors.flush()
        if manifest.dtype == "int8":
            scales = [s.scales[p] for s, p in kept if s.scales is not None]
            save_array(aside / SCALES, np.concatenate(scales))
        finish_segment(
            aside,
            [segment.texts[int(i)] for segment, places in kept for i in places],
            np.concatenate([segment.ids[places] for segment, places in kept]),
            manifest.dtype,
        )
        os.replace(aside, folder / name)
        info = SegmentInfo(name=name, count=len(index))
        commit(folder, dataclasses.replace(manifest, segments=(info,), removed="", n_removed=0))
        return len(index.removed)


def next_segment(folder: Path) -> str:
    """A name for a new segment that no other folder has, even one that the manifest does not name."""
    names = [int(path.name[:6]) for path in folder.iterdir() if SEGMENT.fullmatch(path.name)]
    return f"{max(names, default=-1) + 1:06d}"


def new_vectors(folder: Path, n: int, dim: int, dtype: IndexDtype) -> np.memmap:
    """A new file for the vectors of a segment, to be filled."""
    return new_array(folder / VECTORS, (n, dim), STORED[dtype])


def new_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A new file for an array, to be filled; its disk space is reserved where the platform allows.

    Raises:
        OSError: the disk is full. (Without reserved space, writing to the memory map would kill the process.)
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def finish_segment(folder: Path, texts: Sequence[str], ids: np.ndarray, dtype: IndexDtype) -> None:
    """Write the remaining files of a segment whose vectors (and scales) are already written."""
    data, ends = pack_texts(texts)
    write_bytes(folder / TEXTS, data)
    save_array(folder / ENDS, ends)
    save_array(folder / IDS, np.asarray(ids, np.int64))
    scales = np.load(folder / SCALES, allow_pickle=False) if dtype == "int8" else None
    vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    save_array(folder / NORMS, norms_of(as_dtype(vectors, dtype), scales))
    if dtype == "float32":
        rounded = new_array(folder / ROUNDED, vectors.shape, np.uint16)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            part = vectors[start : start + ROWS_AT_ONCE]
            rounded[start : start + ROWS_AT_ONCE] = part.astype(ml_dtypes.bfloat16).view(np.uint16)
        rounded.flush()


def check_replaceable(folder: Path) -> None:
    """Raise InputError unless the folder is missing, empty, or an index.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError.in_file(folder, problem="is not an index", fix="choose another folder")
    try:
        read_manifest(folder)
        is_index = True
    except InputError:
        is_index = False
    for entry in folder.iterdir():
        if is_index and entry.name != BUILDING and not REPLACEABLE.fullmatch(entry.name):
            continue  # other files beside an index's are left alone
        try:
            foreign = _foreign(entry)
        except FileNotFoundError:  # another process has just renamed or removed it
            continue
        if foreign:
            raise InputError.in_file(
                folder,
                problem=f"is not an index ({foreign} is not a file of one)",
                fix="choose another folder",
            )


def _foreign(entry: Path) -> str:
    """The name of a file in an entry that cannot belong to an index; "" if all files can."""
    name = entry.name
    if name == LOCK or re.fullmatch(rf"removed-\d+\.npy({PARTIAL})?", name):
        return ""
    if name in (MANIFEST, MANIFEST + PARTIAL):
        return "" if _may_be_manifest(entry) else name
    if name == BUILDING or SEGMENT.fullmatch(name):
        if not entry.is_dir():
            return name if entry.exists() else ""  # renamed meanwhile
        inside = (path.name for path in entry.iterdir() if not LITTER.fullmatch(path.name))
        others = (f for f in inside if not {f, f.removesuffix(PARTIAL)} & OF_SEGMENT)
        return next((f"{name}/{other}" for other in others), "")
    return name


def _may_be_manifest(path: Path) -> bool:
    """Whether a file may be an index's manifest: of any version, or one too damaged to be parsed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return isinstance(data, dict) and {"segments", "next_id"} <= set(data)
