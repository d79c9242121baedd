"""Candidates encoded once and kept on disk: texts, vectors, and what they were made with.

    manifest.json    count, width, fingerprint of the model, sha256 of the source
    texts.txt        one candidate a line
    vectors.npy      float32 [n, d]

An index is written aside and renamed, and one of another model or source is never used.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyjax.files import write_text
from polyjax.scoring import Progress, TextScorer, ignore
from polyjax.train.checkpoint import write_json
from polyjax.types import InputError

MANIFEST, TEXTS, VECTORS = "manifest.json", "texts.txt", "vectors.npy"
VERSION = 1
"""Of the format; another one is built again."""


@dataclasses.dataclass(frozen=True)
class CandidateIndex:
    """Candidate texts and their vectors, float32 [n, d], memory-mapped where they come from disk."""

    texts: Sequence[str]
    vectors: np.ndarray


def read_candidates(path: Path) -> list[str]:
    """The candidates of a text file, one a line, each once; white space at a line's ends is dropped.

    Raises:
        InputError: the file is missing, is not UTF-8, is empty, or has an empty line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a byte order mark is no text
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a file of candidates, one a line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    texts = [line.strip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    if not texts:
        raise InputError(f"{path} holds no candidate; expected one a line")
    if "" in texts:
        raise InputError(f"{path}:{texts.index('') + 1}: an empty line; expected a candidate")
    return list(dict.fromkeys(texts))


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
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def open_index(folder: Path, expected: dict[str, object]) -> CandidateIndex | str:
    """The index of a folder, or why it cannot be used.

    Args:
        folder: of the index.
        expected: entries that its manifest must have.
    """
    if not folder.exists():
        return "there is none yet"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            return "its manifest is broken"
        for name, value in {"version": VERSION, **expected}.items():
            if manifest.get(name) != value:
                return f"its {name} differ"
        texts = (folder / TEXTS).read_text(encoding="utf-8").split("\n")[:-1]
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        return f"it is broken ({error})"
    if len(texts) != manifest.get("count") or vectors.ndim != 2 or len(vectors) != len(texts):
        return "its texts and vectors differ in number"
    return CandidateIndex(texts, vectors)


def build_index(
    folder: Path,
    texts: Sequence[str],
    scorer: TextScorer,
    expected: dict[str, object],
    *,
    progress: Progress = ignore,
) -> CandidateIndex:
    """Encode candidates and write their index; one that was there before is replaced at the end.

    Args:
        folder: of the index.
        texts: candidates, without line breaks.
        scorer: bi- or poly-encoder.
        expected: entries of the manifest, by which ``open_index`` knows the index again.
        progress: called with the number of candidates done.

    Raises:
        InputError: the folder holds something else than an index, or cannot be written.
    """
    _check_replaceable(folder)
    vectors = scorer.encode_candidates(texts, progress=progress)
    aside = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        np.save(aside / VECTORS, vectors)
        write_text(aside / TEXTS, "".join(f"{text}\n" for text in texts))
        write_json(aside / MANIFEST, {"version": VERSION, "count": len(texts), **expected})
        _check_replaceable(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from None
    return CandidateIndex(texts, np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False))


def _check_replaceable(folder: Path) -> None:
    """Raise InputError unless the folder is missing, empty, or holds an index and nothing else."""
    if not folder.exists():
        return
    known = {MANIFEST, TEXTS, VECTORS}
    if not folder.is_dir() or any(entry.name not in known for entry in folder.iterdir()):
        raise InputError(f"{folder} is not an index; choose another place for it")
