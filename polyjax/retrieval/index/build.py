"""Texts -> an index on disk, with a scorer: built, added to, and gone on with after an interruption."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyjax.data.token_store import tokenizer_digest
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
from polyjax.retrieval.index.rows import STORED, IndexDtype, quantise
from polyjax.retrieval.index.store import (
    BUILDING,
    SCALES,
    VECTORS,
    CandidateIndex,
    Fingerprint,
    Manifest,
    SegmentInfo,
    open_index,
)
from polyjax.runtime.files import save_array, write_text

SAVE_EVERY_S = 5.0


def fingerprint(scorer: TextScorer) -> Fingerprint:
    """All that a candidate's vector depends on: parameters, shapes, tokenizer, lengths, arithmetic."""
    settings, weights = scorer.settings, hashlib.sha256()
    for name, value in sorted(scorer.parameters().items()):
        weights.update(name.encode() + str(value.dtype).encode())
        weights.update(np.ascontiguousarray(value).tobytes())
    return Fingerprint(
        weights=weights.hexdigest(),
        architecture=_hash(dataclasses.replace(settings.encoder, dtype="float32"), settings.head),
        tokenizer=tokenizer_digest(scorer.text.tokenizer),
        lengths=_hash(scorer.text.config),
        arithmetic=settings.encoder.dtype,
    )


def _hash(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


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

    Interrupted, even by a kill, the same call goes on where it was; building something else there begins
    anew.

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
        if old is not None:  # otherwise what is there may be an index that cannot be read
            clear(folder, old)
        _append(folder, manifest, texts, scorer, progress=progress)
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
        InputError: the index is missing, broken, held by another process, or was made with another model;
            another building is unfinished there.
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
            clear(folder, manifest)
            changed = dataclasses.replace(manifest, source="")
            asked = text_fingerprint(list(dict.fromkeys(texts)))
            _append(folder, changed, new, scorer, asked=asked, progress=progress)
        return list(range(manifest.next_id, manifest.next_id + len(new)))


def _append(
    folder: Path,
    manifest: Manifest,
    texts: Sequence[str],
    scorer: TextScorer,
    *,
    asked: str | None = None,
    progress: Progress,
) -> None:
    """Encode texts into a new segment, and commit the manifest with it.

    Args:
        folder: of the index.
        manifest: what the index will hold but for the texts.
        texts: candidates.
        scorer: encodes them.
        asked: fingerprint of what an addition was asked for, of which the texts are those that are new. An
            unfinished one that was asked for something else is refused; a building replaces what there is.
        progress: called with the number of candidates done.
    """
    if not texts:
        raise InputError("candidates: expected at least one text, got none")
    part, done, encoded = folder / BUILDING, 0, 0
    batches = [np.append(places, length) for places, length in scorer.candidate_plan(texts)]
    plan = {
        "model": dataclasses.asdict(manifest.model),
        "asked": asked,
        "texts": text_fingerprint(texts),
        "dtype": manifest.dtype,
        # What the batch of a number holds depends on the devices, and on the version of polyjax.
        "batches": hashlib.sha256(np.concatenate(batches).astype(np.int64).tobytes()).hexdigest(),
    }
    before = _read(part / PLAN)
    arrays = _arrays(part, len(texts), manifest) if before == plan else None
    if arrays is None:
        if before is not None and asked is not None and before.get("asked") != asked:
            raise InputError(
                f"{folder}: the building of something else is unfinished there ({_share(part)}); finish it "
                f"by the command that began it, or remove {part}"
            )
        (part / PLAN).unlink(missing_ok=True)  # first: without it the rest counts for nothing
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        new_vectors(part, len(texts), manifest.dim, manifest.dtype).flush()
        new_array(part / ROW_SCALES, (len(texts),), np.float32).flush()
        write_text(part / PLAN, json.dumps(plan))
        arrays = _arrays(part, len(texts), manifest)
        assert arrays is not None
    elif counts := _read(part / DONE):
        done, encoded = int(counts["batches"]), int(counts["candidates"])
    vectors, scales = arrays
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
    name = next_segment(folder)
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


def _arrays(part: Path, n: int, manifest: Manifest) -> tuple[np.memmap, np.memmap] | None:
    """The vectors and row scales of an unfinished building, to go on with; None unless they are whole."""
    try:
        for name in (VECTORS, ROW_SCALES):
            np.lib.format.open_memmap(part / name, "r")  # "r+" would fill up a file that was cut short
        vectors, scales = (np.lib.format.open_memmap(part / name, "r+") for name in (VECTORS, ROW_SCALES))
    except (OSError, ValueError, EOFError):
        return None
    fits = vectors.dtype == STORED[manifest.dtype] and vectors.shape == (n, manifest.dim)
    return (vectors, scales) if fits and scales.shape == (n,) else None


def _share(part: Path) -> str:
    """How far an unfinished building is."""
    counts = _read(part / DONE) or {"candidates": 0}
    return f"{counts['candidates']:,} candidates are encoded"


def _read(path: Path) -> dict | None:
    """A small JSON file of an unfinished building, if it is there and whole."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
