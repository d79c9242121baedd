"""The tokens of a corpus on disk, made a piece at a time; an interrupted build is resumed."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.data.corpora.corpus import Conversation, CorpusTokens, token_dtype, tokenise
from polyjax.data.corpora.leakage import HeldOut
from polyjax.data.corpora.prepare import CorpusConfig, PreparedPiece, TaskPiece, prepare_pieces, writing
from polyjax.data.corpora.sources import is_held_out
from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import InputError
from polyjax.runtime.files import PARTIAL, save_array, write_text
from polyjax.runtime.progress import meter

ARRAYS = ("ids", "turns", "conversations", "first_labels")
SPLITS = ("train", "valid")


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """The tokens of a corpus.

    Attributes:
        train: to train on.
        valid: to validate on.
        left_out: conversations that were left out because they are also in the data of the task to come.
        state: a digest of everything that the tokens depend on.
    """

    train: CorpusTokens
    valid: CorpusTokens
    left_out: int
    state: str


def tokens_of(
    config: CorpusConfig,
    tokenizer: Tokenizer,
    tokenizer_dir: Path,
    *,
    pieces: Sequence[PreparedPiece | TaskPiece] | None = None,
    excluded: HeldOut | None = None,
) -> PreparedCorpus:
    """The tokens of a corpus, memory-mapped from ``config.dir``; made first if missing.

    Args:
        config: of the corpus.
        tokenizer: text to ids.
        tokenizer_dir: its files, part of what identifies the tokens.
        pieces: of the corpus, where they are known; see ``prepare_pieces``.
        excluded: conversations of these are left out.

    Raises:
        InputError: the corpus is broken.
    """
    pieces = prepare_pieces(config) if pieces is None else pieces
    excluded = excluded or HeldOut()
    state = _state(config, pieces, tokenizer_dir, excluded)
    folder = config.dir / "pretraining_tokens" / state
    if not (folder / "done.json").exists():
        with writing(config.dir):
            _make_tokens(config, pieces, folder, tokenizer, excluded)
    left_out = json.loads((folder / "done.json").read_text(encoding="utf-8"))["left_out"]
    train, valid = (_mapped(folder, split) for split in SPLITS)
    return PreparedCorpus(train, valid, left_out, state)


def check_split(
    config: CorpusConfig, pieces: Iterable[PreparedPiece | TaskPiece], excluded: HeldOut | None = None
) -> None:
    """Raise InputError if a corpus has no pair to train on, or none to validate on.

    Reads until it has found one of each.

    Args:
        config: of the corpus.
        pieces: of the corpus.
        excluded: conversations of these are left out.
    """
    excluded, left_out, found = excluded or HeldOut(), 0, set()
    ids: set[str] = set()
    for conversation in itertools.chain.from_iterable(pieces):
        if len(conversation.turns) <= max(conversation.first_label, 1):
            continue
        if conversation.turns in excluded:
            left_out += 1
            continue
        ids.add(conversation.id)
        found.add(is_held_out(conversation.id, config.held_out))
        if len(found) == 2:
            return
    if left_out and not ids:
        problem = f"all {left_out:,} conversations are also in the data of the tasks to leave out"
        raise InputError("leave_out", problem=problem, fix="choose another corpus")
    if not ids:
        raise InputError("corpus.files", problem="there is no pair of a text and the one that follows it")
    missing, change = ("train", "lower it") if True in found else ("validate", "raise it")
    paired = any(source.startswith("pairs:") for source in config.files)
    others = "give the rows of each conversation an id" if paired else "add to the corpus"
    raise InputError(
        "corpus.held_out",
        problem=f"nothing is left to {missing} on: the corpus has {len(ids):,} "
        f"{'conversation, which stays together' if len(ids) == 1 else 'conversations'}"
        + (" (rows that begin with the same turn and have no id are one)" if paired else ""),
        got=config.held_out,
        fix=others if len(ids) == 1 else f"{change}, or {others}",
    )


def _make_tokens(
    config: CorpusConfig,
    pieces: Sequence[PreparedPiece | TaskPiece],
    folder: Path,
    tokenizer: Tokenizer,
    excluded: HeldOut,
) -> None:
    if (folder / "done.json").exists():  # another process made them while this one waited
        return
    folder.mkdir(parents=True, exist_ok=True)
    with meter("tokenising", len(pieces), unit="pieces") as shown:
        for number, piece in enumerate(pieces):
            if not (folder / f"piece-{number}.json").exists():
                _tokenise_piece(piece, folder, number, tokenizer, config.held_out, excluded)
            shown.add(1)
    _put_together(folder, len(pieces), tokenizer)


def _state(
    config: CorpusConfig,
    pieces: Sequence[PreparedPiece | TaskPiece],
    tokenizer_dir: Path,
    excluded: HeldOut,
) -> str:
    digest = hashlib.sha256(repr((2, config.held_out, excluded.digest)).encode())
    for piece in pieces:
        digest.update(piece.name.encode())
    for path in sorted(tokenizer_dir.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _tokenise_piece(
    piece: PreparedPiece | TaskPiece,
    folder: Path,
    number: int,
    tokenizer: Tokenizer,
    held_out: float,
    excluded: HeldOut,
) -> None:
    counts: dict[str, Any] = {"left_out": 0}
    chosen: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    for conversation in piece:
        if conversation.turns in excluded:
            counts["left_out"] += 1
        else:
            chosen["valid" if is_held_out(conversation.id, held_out) else "train"].append(conversation)
    for split, conversations in chosen.items():
        tokens = tokenise(conversations, tokenizer, allow_empty=True)
        for name in ARRAYS:
            save_array(folder / f"piece-{number}-{split}-{name}.npy", getattr(tokens, name))
    write_text(folder / f"piece-{number}.json", json.dumps(counts))


def _put_together(folder: Path, n: int, tokenizer: Tokenizer) -> None:
    """One array of each kind from those of all pieces, which are removed; one is in memory at a time."""
    left_out = 0
    for number in range(n):
        left_out += json.loads((folder / f"piece-{number}.json").read_text(encoding="utf-8"))["left_out"]
    for split in SPLITS:
        for name in ARRAYS:
            dtype = token_dtype(tokenizer.vocab_size) if name == "ids" else np.int64
            with_end = name in ("turns", "conversations")  # whose last entry is where the last one ends
            parts = [folder / f"piece-{number}-{split}-{name}.npy" for number in range(n)]
            lengths = [len(np.load(part, mmap_mode="r", allow_pickle=False)) - with_end for part in parts]
            aside = folder / f"{split}-{name}.npy{PARTIAL}"
            whole = np.lib.format.open_memmap(aside, "w+", dtype, (sum(lengths) + with_end,))
            at = offset = 0
            for part, length in zip(parts, lengths, strict=True):
                values = np.load(part, mmap_mode="r", allow_pickle=False)
                whole[at : at + length + with_end] = values[: length + with_end] + (offset if with_end else 0)
                at, offset = at + length, offset + (int(values[-1]) if with_end else 0)
            whole.flush()
            del whole
            os.replace(aside, folder / f"{split}-{name}.npy")
    write_text(folder / "done.json", json.dumps({"left_out": left_out}))
    for path in folder.glob("piece-*"):
        path.unlink()


def _mapped(folder: Path, split: str) -> CorpusTokens:
    arrays = {
        name: np.load(folder / f"{split}-{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS
    }
    return CorpusTokens(**arrays)
