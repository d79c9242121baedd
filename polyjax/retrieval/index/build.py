"""Builds an index on disk from texts, adds to it, and resumes after an interruption."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.errors import InputError
from polyjax.inference.scorer import Progress, TextScorer, ignore
from polyjax.retrieval.index.change import (
    DONE,
    PLAN,
    ROW_SCALES,
    clear,
    commit,
    finish_segment,
    new_array,
    new_vectors,
    next_segment,
    writing,
)
from polyjax.retrieval.index.fingerprint import fingerprint
from polyjax.retrieval.index.manifest import BUILDING, SCALES, VECTORS, Manifest, SegmentInfo
from polyjax.retrieval.index.rows import STORED, IndexDtype, quantise
from polyjax.retrieval.index.store import CandidateIndex, open_index
from polyjax.retrieval.index.texts import added, first_places, text_digest
from polyjax.runtime.files import save_array, write_text

SAVE_EVERY_S = 5.0


def check_dual(scorer: TextScorer) -> None:
    """Raise InputError for a cross-encoder."""
    if not scorer.is_dual:
        raise InputError(
            "index",
            problem="a cross-encoder cannot encode candidates in advance",
            fix="use a bi- or poly-encoder",
        )


def build_index(
    folder: Path,
    texts: Sequence[str],
    scorer: TextScorer,
    *,
    dtype: IndexDtype = "float32",
    progress: Progress = ignore,
) -> CandidateIndex:
    """Encode candidates and write an index; an existing index is replaced at the end.

    After an interruption, even a kill, the same call resumes the build. A call with other arguments discards
    the unfinished build.

    Args:
        folder: folder of the index.
        texts: candidates; of several copies, the first is kept. A candidate's id is its index in this list.
        scorer: a bi- or poly-encoder.
        dtype: dtype of the stored vectors.
        progress: called with the number of candidates done since the last call.

    Raises:
        InputError: the folder holds something other than an index, is locked by another process, or cannot
            be written; or the model is a cross-encoder.
    """
    check_dual(scorer)
    model, source, places = fingerprint(scorer), text_digest(texts), first_places(texts)
    with writing(folder, new=True) as old:
        manifest = Manifest(
            model=model,
            source=source,
            dtype=dtype,
            dim=scorer.dim,
            next_id=len(texts),
            segments=(),
            build=uuid.uuid4().hex,
        )
        if old is not None:  # None may mean an index that cannot be read, whose files are kept until the end
            clear(folder, old)
        progress(len(texts) - len(places))
        _append(folder, manifest, [texts[int(i)] for i in places], places, scorer, progress=progress)
    return open_index(folder)


def add_to_index(
    folder: Path,
    texts: Sequence[str],
    scorer: TextScorer,
    *,
    resume: bool = True,
    build: str | None = None,
    progress: Progress = ignore,
) -> list[int]:
    """Encode more candidates into an index; those that it already holds are skipped.

    Args:
        folder: folder of the index.
        texts: candidates.
        scorer: the model that the index was built with.
        resume: what to do if an addition of other candidates is unfinished: True raises an error, False
            discards it.
        build: see ``polyjax.retrieval.index.change.writing``.
        progress: called with the number of candidates done since the last call.

    Returns:
        The id of each text. For a copy of another text, or of a candidate in the index, it is that
        candidate's id.

    Raises:
        InputError: the index is missing, broken, locked by another process, built again, or was built with
            another model; or an addition of other candidates is unfinished.
    """
    check_dual(scorer)
    if scorer.text.config.padding == "longest":
        raise InputError(
            "index",
            problem="with ParlAI's padding a vector depends on the other candidates",
            fix="build the index again",
        )
    with writing(folder, build=build):
        index = open_index(folder, scorer=scorer)
        manifest = index.manifest
        assert manifest is not None
        ids, new = added(index, texts, next_id=manifest.next_id)
        progress(len(texts) - len(new))
        if new:
            clear(folder, manifest)
            first = manifest.next_id
            changed = dataclasses.replace(manifest, source="", next_id=first + len(new))
            asked = text_digest([texts[int(i)] for i in first_places(texts)]) if resume else None
            new_ids = np.arange(first, first + len(new))
            _append(folder, changed, new, new_ids, scorer, asked=asked, progress=progress)
        return ids


def _append(
    folder: Path,
    manifest: Manifest,
    texts: Sequence[str],
    ids: np.ndarray,
    scorer: TextScorer,
    *,
    asked: str | None = None,
    progress: Progress,
) -> None:
    """Encode texts into a new segment, and commit the manifest with it.

    Args:
        folder: folder of the index.
        manifest: manifest of the new index, without the segment of these texts.
        texts: candidates.
        ids: ids of the candidates, int [n].
        scorer: encodes them.
        asked: digest of all texts of an addition, of which ``texts`` are the new ones. If an addition of
            other texts is unfinished, it is an error. None discards any other unfinished build.
        progress: called with the number of candidates done since the last call.
    """
    if not len(texts):
        raise InputError("candidates", expected="at least one text", got=[])
    part = folder / BUILDING
    plan = _plan(manifest, texts, scorer, asked)
    _encode(part, _begun(part, plan, manifest, len(texts)), manifest, texts, scorer, progress)
    finish_segment(part, texts, ids, manifest.dtype)
    name = next_segment(folder)
    os.replace(part, folder / name)
    info = SegmentInfo(name=name, count=len(texts))
    commit(folder, dataclasses.replace(manifest, segments=(*manifest.segments, info)))
    for extra in (ROW_SCALES, DONE, PLAN):
        (folder / name / extra).unlink(missing_ok=True)


def _plan(manifest: Manifest, texts: Sequence[str], scorer: TextScorer, asked: str | None) -> dict[str, Any]:
    """A description of a build; an interrupted build is resumed by a call with the same plan."""
    batches = [np.append(places, length) for places, length in scorer.candidate_plan(texts)]
    return {
        "model": dataclasses.asdict(manifest.model),
        "asked": asked,
        "texts": text_digest(texts),
        "dtype": manifest.dtype,
        # The candidates in batch i depend on the devices and on the version of polyjax.
        "batches": hashlib.sha256(np.concatenate(batches).astype(np.int64).tobytes()).hexdigest(),
    }


@dataclasses.dataclass
class _Progress:
    """A build in progress: its arrays of vectors and row scales, and the number of batches done."""

    vectors: np.memmap
    scales: np.memmap
    batches: int = 0
    candidates: int = 0


def _begun(part: Path, plan: dict[str, Any], manifest: Manifest, n: int) -> _Progress:
    """The build with a plan: the interrupted one, or a new one.

    Raises:
        InputError: an addition of other texts is unfinished.
    """
    before, asked = _read(part / PLAN), plan["asked"]
    arrays = _arrays(part, n, manifest) if before == plan else None
    if arrays is not None:
        counts = _read(part / DONE) or {"batches": 0, "candidates": 0}
        return _Progress(*arrays, int(counts["batches"]), int(counts["candidates"]))
    if before is not None and asked is not None and before.get("asked") != asked:
        done = (_read(part / DONE) or {"candidates": 0})["candidates"]
        raise InputError.in_file(
            part.parent,
            problem=f"the build of something else is unfinished there ({done:,} candidates are encoded)",
            fix=f"finish it with the command that started it, or remove {part}",
        )
    (part / PLAN).unlink(missing_ok=True)  # first: without it the other files are ignored
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    new_vectors(part, n, manifest.dim, manifest.dtype).flush()
    new_array(part / ROW_SCALES, (n,), np.float32).flush()
    write_text(part / PLAN, json.dumps(plan))
    arrays = _arrays(part, n, manifest)
    assert arrays is not None
    return _Progress(*arrays)


def _encode(
    part: Path,
    build: _Progress,
    manifest: Manifest,
    texts: Sequence[str],
    scorer: TextScorer,
    progress: Progress,
) -> None:
    """Encode the remaining batches of a build into its files."""
    progress(build.candidates)
    saved = time.monotonic()
    for places, batch in scorer.candidate_batches(texts, first=build.batches):
        build.vectors[places], row_scales = quantise(batch, manifest.dtype)
        if row_scales is not None:
            build.scales[places] = row_scales
        build.batches, build.candidates = build.batches + 1, build.candidates + len(places)
        progress(len(places))
        if time.monotonic() - saved > SAVE_EVERY_S:
            # Flush first, so that a batch is on disk before it counts as done.
            build.vectors.flush()
            build.scales.flush()
            counts = {"batches": build.batches, "candidates": build.candidates}
            write_text(part / DONE, json.dumps(counts))
            saved = time.monotonic()
    build.vectors.flush()
    if manifest.dtype == "int8":
        save_array(part / SCALES, np.asarray(build.scales))


def _arrays(part: Path, n: int, manifest: Manifest) -> tuple[np.memmap, np.memmap] | None:
    """The vectors and row scales of an unfinished build, opened for writing; None unless they are intact."""
    try:
        for name in (VECTORS, ROW_SCALES):
            np.lib.format.open_memmap(part / name, "r")  # "r+" would fill up a truncated file
        vectors, scales = (np.lib.format.open_memmap(part / name, "r+") for name in (VECTORS, ROW_SCALES))
    except (OSError, ValueError, EOFError):
        return None
    fits = vectors.dtype == STORED[manifest.dtype] and vectors.shape == (n, manifest.dim)
    return (vectors, scales) if fits and scales.shape == (n,) else None


def _read(path: Path) -> dict | None:
    """A small JSON file of an unfinished build; None if it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
