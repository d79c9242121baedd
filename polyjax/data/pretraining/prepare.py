"""A corpus -> tokens on disk, a piece at a time: memory is that of a piece, and what was stopped goes on.

Each piece is prepared by tensorflow-datasets with Apache Beam, on this machine or on a cluster's runner, and
then tokenised; what is there already is not made again. In the end all pieces' tokens are put together.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tensorflow_datasets as tfds
import tyro

from polyjax.data.pretraining.corpus import AT_ONCE, Conversation, CorpusTokens, token_dtype, tokenise
from polyjax.data.pretraining.sources import Piece, find_pieces, is_held_out, read_piece, window_keys
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import chitchat
from polyjax.data.tasks.registry import read, read_to_rank, task_named
from polyjax.data.tokenizers import Tokenizer
from polyjax.files import PARTIAL, save_array, write_text
from polyjax.progress import meter
from polyjax.types import InputError, first_line

PIECE_PARTS = 8
"""Parts of a piece that Beam may read at the same time."""
ARRAYS = ("ids", "turns", "conversations", "first_labels")
SPLITS = ("train", "valid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What is pre-trained on, and how it is prepared.

    Attributes:
        files: ``pairs:FILES`` (JSON lines of conversations, with ``turns``, or of pairs, with a ``context``
            and a ``response`` or ``label``) or ``text:FILES`` (a document or paragraph a line, whose
            sentences follow each other), or ``task:NAME``, the training split of a data set; several are
            put together. FILES may be a pattern.
        dir: where prepared pieces and tokens are kept.
        piece_mb: megabytes of a file that are prepared at once, which bounds the memory.
        held_out: share of the conversations to validate on.
        tokens: at most so many tokens are learnt from, of conversations drawn once; 0 for all.
        beam_runner: of Apache Beam; this machine by default.
        beam_options: of the runner, as Beam's own flags.
    """

    files: Annotated[tuple[str, ...], tyro.conf.arg(name="corpus", prefix_name=False)] = ()
    dir: Path = Path("data")
    piece_mb: float = 64.0
    held_out: float = 0.01
    tokens: int = 0
    beam_runner: str = "DirectRunner"
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if not 0 < self.held_out < 1:
            raise InputError(f"corpus held_out must be in (0, 1), got {self.held_out}")
        if not self.piece_mb > 0:
            raise InputError(f"corpus piece_mb must be positive, got {self.piece_mb}")
        if self.tokens < 0:
            raise InputError(f"corpus tokens must be 0 (all) or more, got {self.tokens}")


@dataclasses.dataclass(eq=False, kw_only=True)
class PieceConfig(tfds.core.BuilderConfig):
    """Which piece a builder prepares; its name says all that the piece depends on."""

    piece: Piece | None = None


class PretrainingPiece(tfds.core.GeneratorBasedBuilder):
    """The conversations of a piece of a corpus."""

    name = "pretraining_piece"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "id": text(),
                "turns": tfds.features.Sequence(text()),
                "first_label": tfds.features.Scalar(dtype=np.int64),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"rows": self._generate_examples()}

    def _generate_examples(self) -> Any:
        import apache_beam as beam  # slow to import, and needed to prepare only

        piece = cast(PieceConfig, self.builder_config).piece
        assert piece is not None
        size = max((piece.end - piece.start) // PIECE_PARTS, 1 << 16)
        return beam.Create(piece.split(size)) | beam.FlatMap(_keyed)


def _keyed(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, found in enumerate(read_piece(piece)):
        row = {"id": found.id, "turns": list(found.turns), "first_label": found.first_label}
        yield f"{piece.start}/{number}", row


class PreparedPiece:
    """The conversations of a prepared piece, read from disk when they are asked for."""

    def __init__(self, piece: Piece, folder: Path):
        self.name = piece.name
        self._rows: Any = cast(Mapping[str, Any], _builder(piece, folder).as_data_source())["rows"]

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Conversation]:
        """All of them."""
        for start in range(0, len(self), AT_ONCE):
            for row in self._rows.__getitems__(list(range(start, min(start + AT_ONCE, len(self))))):
                turns = tuple(turn.decode() for turn in row["turns"])
                yield Conversation(row["id"].decode(), turns, int(row["first_label"]))


class TaskPiece:
    """The conversations of a task's training split."""

    def __init__(self, name: str, data_dir: Path):
        self.name, self._task, self._data_dir = f"task-{name}", name, data_dir

    def __iter__(self) -> Iterator[Conversation]:
        """All of them; of tasks that keep rows only, each row's context and label."""
        if self._task == "chitchat":
            for found in chitchat.read_conversations("train", self._data_dir):
                yield Conversation(f"chitchat/{found.id}", found.turns)
            return
        for example in read(task_named(self._task), "train").examples:
            turns = (*example.context, example.label_text)
            yield Conversation(f"{self._task}/{example.id}", turns, len(example.context))


def _builder(piece: Piece, folder: Path) -> PretrainingPiece:
    config = PieceConfig(name=piece.name, piece=piece)
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of folders that are not there yet
    try:
        return PretrainingPiece(data_dir=folder, file_format="array_record", config=config)
    except OSError as error:
        raise InputError(f"--corpus.dir {str(folder)!r} cannot be read: {error}") from None


def prepare_pieces(config: CorpusConfig) -> list[PreparedPiece | TaskPiece]:
    """All pieces of a corpus, those that are not there yet prepared first.

    Raises:
        InputError: no file is there, one is broken, or the folder cannot be written.
    """
    if not config.files:
        raise InputError("name a corpus: --corpus pairs:FILES or text:FILES")
    size = max(int(config.piece_mb * 1e6), 1)
    tasks = [source.removeprefix("task:") for source in config.files if source.startswith("task:")]
    files = [source for source in config.files if not source.startswith("task:")]
    pieces = [piece for source in files for piece in find_pieces(source, size=size)]
    found = [TaskPiece(name, config.dir) for name in tasks if task_named(name)]
    with meter("preparing the corpus", len(pieces), unit="pieces") as shown:
        for piece in pieces:
            builder = _builder(piece, config.dir)
            if not builder.is_prepared():
                _prepare(builder, piece, config)
            shown.add(1)
    return [*found, *(PreparedPiece(piece, config.dir) for piece in pieces)]


def _prepare(builder: PretrainingPiece, piece: Piece, config: CorpusConfig) -> None:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError:
        raise InputError("preparing a corpus needs Apache Beam; run: pip install -e '.[beam]'") from None
    download = tfds.download.DownloadConfig(
        beam_runner=config.beam_runner, beam_options=PipelineOptions(list(config.beam_options))
    )
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it talks of downloads; there are none
            builder.download_and_prepare(download_config=download)
    except InputError:
        raise
    except Exception as error:  # Beam wraps what a reader raises, the message kept
        if builder.is_prepared():  # by another process, meanwhile
            return
        named = next((part for part in _chain(error) if isinstance(part, InputError)), None)
        if named is None and "InputError: " in str(error):
            named = str(error).split("InputError: ", 1)[1].split(" [while running")[0]
        if named is None and isinstance(error, OSError):
            named = f"--corpus.dir {str(config.dir)!r} cannot be written: {error}"
        if named is None:
            raise
        raise InputError(first_line(Exception(str(named)))) from None
    if not builder.info.splits:
        raise InputError(f"{piece.path}: no conversation in it")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """The tokens of a corpus.

    Attributes:
        train: to learn from.
        valid: to validate on.
        left_out: conversations that were left out because they are also in the data of the task to come.
    """

    train: CorpusTokens
    valid: CorpusTokens
    left_out: int


def tokens_of(
    config: CorpusConfig, tokenizer: Tokenizer, tokenizer_dir: Path, *, excluded: frozenset[int] = frozenset()
) -> PreparedCorpus:
    """The tokens of a corpus, memory-mapped from ``config.dir``, made first where they are not there.

    Args:
        config: of the corpus.
        tokenizer: text to ids.
        tokenizer_dir: its files, by which the tokens are known again.
        excluded: of ``window_keys``; a conversation with one of them is left out.

    Raises:
        InputError: the corpus is broken, or holds no pair to learn from or to validate on.
    """
    pieces = prepare_pieces(config)
    folder = config.dir / "pretraining_tokens" / _state(config, pieces, tokenizer_dir, excluded)
    if not (folder / "done.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with meter("tokenising", len(pieces), unit="pieces") as shown:
            for number, piece in enumerate(pieces):
                if not (folder / f"piece-{number}.json").exists():
                    _tokenise_piece(piece, folder, number, tokenizer, config.held_out, excluded)
                shown.add(1)
        _put_together(folder, len(pieces), tokenizer)
    left_out = json.loads((folder / "done.json").read_text(encoding="utf-8"))["left_out"]
    train, valid = (_mapped(folder, split) for split in SPLITS)
    return PreparedCorpus(train, valid, left_out)


def held_out_keys(task: str) -> frozenset[int]:
    """``window_keys`` of all that a task is validated and tested on; see ``tokens_of``."""
    keys: set[int] = set()
    for split in ("valid", "test"):
        for example in read_to_rank(task_named(task), split, RankConfig()).examples:
            keys |= window_keys((*example.context, example.label_text))
    return frozenset(keys)


def sampled_turns(pieces: Sequence[PreparedPiece | TaskPiece], n: int) -> Iterator[str]:
    """About n turns of a corpus, drawn once, for a vocabulary; all where it has fewer."""
    total = sum(len(conversation.turns) for piece in pieces for conversation in piece)
    draw = np.random.default_rng(0)
    for piece in pieces:
        for conversation in piece:
            taken = draw.random(len(conversation.turns)) * total < n
            yield from (turn for turn, keep in zip(conversation.turns, taken, strict=True) if keep)


def _state(
    config: CorpusConfig,
    pieces: Sequence[PreparedPiece | TaskPiece],
    tokenizer_dir: Path,
    excluded: frozenset[int],
) -> str:
    digest = hashlib.sha256(repr((1, config.held_out, sorted(excluded))).encode())
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
    excluded: frozenset[int],
) -> None:
    counts: dict[str, Any] = {"left_out": 0}
    chosen: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    for conversation in piece:
        if excluded and not excluded.isdisjoint(window_keys(conversation.turns)):
            counts["left_out"] += 1
        else:
            chosen["valid" if is_held_out(conversation.id, held_out) else "train"].append(conversation)
    for split, conversations in chosen.items():
        tokens = tokenise(conversations, tokenizer, allow_empty=True)
        for name in ARRAYS:
            save_array(folder / f"piece-{number}-{split}-{name}.npy", getattr(tokens, name))
    write_text(folder / f"piece-{number}.json", json.dumps(counts))


def _put_together(folder: Path, n: int, tokenizer: Tokenizer) -> None:
    """One array of each kind, from those of all pieces, which are removed; memory is that of one."""
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
    if not len(arrays["first_labels"]):
        what = "to validate on; raise --corpus.held-out" if split == "valid" else "to learn from"
        raise InputError(f"the corpus holds no pair {what}")
    return CorpusTokens(**arrays)
