"""Texts -> an index on disk, with a scorer: built, added to, and gone on with after an interruption."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyjax.files import save_array, write_text
from polyjax.retrieval.change import (
    clear,
    commit,
    finish_segment,
    new_vectors,
    next_segment,
    writing,
)
from polyjax.retrieval.store import (
    BUILDING,
    SCALES,
    VECTORS,
    CandidateIndex,
    IndexDtype,
    Manifest,
    SegmentInfo,
    open_index,
    quantise,
)
from polyjax.scoring import Progress, TextScorer, ignore
from polyjax.types import InputError

PLAN, DONE, ROW_SCALES = "plan.json", "done.json", "scales.partial"
SAVE_EVERY_S = 5.0


def fingerprint(scorer: TextScorer) -> str:
    """A sha256 of all that a candidate's vector depends on: parameters, shapes, tokenizer, lengths."""
    digest = hashlib.sha256(repr((scorer.settings, scorer.text.config)).encode())
    with tempfile.TemporaryDirectory() as folder:
        scorer.text.tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
    for name, value in sorted(scorer.parameters().items()):
        digest.update(name.encode() + str(value.dtype).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def text_fingerprint(texts: Sequence[str]) -> str:
    """A sha256 of candidates in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8") + b"\0")
    return digest.hexdigest()


def check_dual(scorer: TextScorer) -> None:
    """Raise InputError for a cross-encoder."""
    if not scorer.is_dual:
        raise InputError("a cross-encoder cannot encode candidates beforehand; use a bi- or poly-encoder")


def build_index(
    folder: Path,
    texts: Sequence[str],
    scorer: TextScorer,
    *,
    dtype: IndexDtype = "float32",
    progress: Progress = ignore,
) -> CandidateIndex:
    """Encode candidates and write their index; one that was there before is replaced at the end.

    Interrupted, even by a kill, the same call goes on where it was.

    Args:
        folder: of the index.
        texts: candidates, each once.
        scorer: bi- or poly-encoder.
        dtype: of the stored vectors.
        progress: called with the number of candidates done.

    Raises:
        InputError: the folder holds something else than an index, is held by another process, or cannot be
            written; the model is a cross-encoder.
    """
    check_dual(scorer)
    model, source = fingerprint(scorer), text_fingerprint(texts)
    with writing(folder, new=True) as old:
        manifest = Manifest(model=model, source=source, dtype=dtype, dim=scorer.dim, next_id=0, segments=())
        # Another name than any of the old segments: those stay until the new manifest is there.
        _append(folder, manifest, texts, scorer, name=next_segment(old), keep=old, progress=progress)
    return open_index(folder, model=model)


def add_to_index(
    folder: Path, texts: Sequence[str], scorer: TextScorer, *, progress: Progress = ignore
) -> list[int]:
    """Encode further candidates into an index; those that it holds already are left out.

    Args:
        folder: of the index.
        texts: candidates.
        scorer: what the index was made with.
        progress: called with the number of candidates done.

    Returns:
        The ids of the added candidates, in the order of their texts.

    Raises:
        InputError: the index is missing, broken, held by another process, or was made with another model.
    """
    check_dual(scorer)
    if scorer.text.config.padding == "longest":
        raise InputError(
            "with ParlAI's padding a vector depends on the other candidates; build the index again"
        )
    with writing(folder):
        index = open_index(folder, model=fingerprint(scorer))
        manifest = index.manifest
        assert manifest is not None
        held = {text for _, text in index.items()}
        new = [text for text in dict.fromkeys(texts) if text not in held]
        if new:
            changed = dataclasses.replace(manifest, source="")
            _append(
                folder, changed, new, scorer, name=next_segment(manifest), keep=manifest, progress=progress
            )
        return list(range(manifest.next_id, manifest.next_id + len(new)))


def _append(
    folder: Path,
    manifest: Manifest,
    texts: Sequence[str],
    scorer: TextScorer,
    *,
    name: str,
    keep: Manifest | None,
    progress: Progress,
) -> None:
    """Encode texts into a new segment, and commit the manifest with it."""
    clear(folder, keep)
    if not texts:
        raise InputError("candidates: expected at least one text, got none")
    part, done, encoded = folder / BUILDING, 0, 0
    plan = {
        "model": manifest.model,
        "texts": text_fingerprint(texts),
        "dtype": manifest.dtype,
        "devices": scorer.devices,  # on which depends what the batch of a number holds
    }
    if _read(part / PLAN) != plan:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        new_vectors(part, len(texts), manifest.dim, manifest.dtype).flush()
        np.memmap(part / ROW_SCALES, np.float32, "w+", shape=(len(texts),)).flush()
        write_text(part / PLAN, json.dumps(plan))
    elif counts := _read(part / DONE):
        done, encoded = int(counts["batches"]), int(counts["candidates"])
    vectors = np.load(part / VECTORS, mmap_mode="r+", allow_pickle=False)
    scales = np.memmap(part / ROW_SCALES, np.float32, "r+", shape=(len(texts),))
    progress(encoded)
    saved = time.monotonic()
    for places, batch in scorer.candidate_batches(texts, first=done):
        vectors[places], row_scales = quantise(batch, manifest.dtype)
        if row_scales is not None:
            scales[places] = row_scales
        done, encoded = done + 1, encoded + len(places)
        progress(len(places))
        if time.monotonic() - saved > SAVE_EVERY_S:
            # In this order: what is counted as done is on disk.
            vectors.flush()
            scales.flush()
            write_text(part / DONE, json.dumps({"batches": done, "candidates": encoded}))
            saved = time.monotonic()
    vectors.flush()
    if manifest.dtype == "int8":
        save_array(part / SCALES, np.asarray(scales))
    ids = np.arange(manifest.next_id, manifest.next_id + len(texts))
    finish_segment(part, texts, ids, manifest.dtype)
    os.replace(part, folder / name)
    commit(
        folder,
        dataclasses.replace(
            manifest,
            next_id=manifest.next_id + len(texts),
            segments=(*manifest.segments, SegmentInfo(name=name, count=len(texts))),
        ),
    )
    for extra in (ROW_SCALES, DONE, PLAN):
        (folder / name / extra).unlink(missing_ok=True)


def _read(path: Path) -> dict | None:
    """A small JSON file of an unfinished building, if it is there and whole."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
