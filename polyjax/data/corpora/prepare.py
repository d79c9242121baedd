"""A corpus -> conversations on disk, a piece at a time, by tensorflow-datasets with Apache Beam.

Beam runs on this machine or on a cluster's runner. One piece is in memory at a time; pieces that are already
prepared are kept.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tensorflow_datasets as tfds
import tyro

from polyjax.data.corpora.beam import beam_options, causes, check_runner
from polyjax.data.corpora.corpus import AT_ONCE, Conversation
from polyjax.data.corpora.identity import content_hash
from polyjax.data.corpora.leakage import HeldOut
from polyjax.data.corpora.lines import is_removed, remove_folder, remove_parts
from polyjax.data.corpora.reddit import RedditConfig
from polyjax.data.corpora.sources import Piece, files_of, find_pieces
from polyjax.data.tasks import Task, TaskConfig, conversations, task_named
from polyjax.data.tasks.builders import absl_quiet, no_bars
from polyjax.errors import InputError, first_line
from polyjax.runtime.files import exclusive_lock
from polyjax.runtime.progress import console, meter

LOCAL_RUNNER = "DirectRunner"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What is pre-trained on, and how it is prepared.

    Attributes:
        files: ``pairs:FILES`` (JSON lines of conversations, with ``turns``, or of pairs, with a ``context``
            and a ``response`` or ``label``), ``text:FILES`` (a document or paragraph a line, whose
            sentences follow each other), ``reddit:FILES`` (the public dump's comments, grouped into
            threads), or ``task:NAME``, the training split of a data set; several are combined. FILES may
            be a pattern, and compressed (.gz, .zst).
        reddit: which comments are used.
        dir: where prepared pieces and tokens are kept.
        piece_mb: megabytes of a file that are prepared at once, which bounds the memory.
        held_out: share of the conversations to validate on.
        tokens: train on at most this many tokens, of conversations drawn once; 0 for all.
        task_dir: folder with the files of the tasks that ``task:`` and ``--leave-out`` name, where these have
            files.
        unverified: take files of those tasks that are not known to be the official ones.
        beam_runner: of Apache Beam; this machine by default.
        beam_options: Beam's own flags for the runner, as one text: ``--corpus.beam-options="--a=1 --b=2"``.
        piece_parts: parts of a piece that the runner's workers may read at the same time.
    """

    files: Annotated[tuple[str, ...], tyro.conf.arg(name="corpus", prefix_name=False)] = ()
    reddit: RedditConfig = RedditConfig()
    dir: Path = Path("data")
    piece_mb: float = 16.0
    held_out: float = 0.01
    tokens: int = 0
    task_dir: Path | None = None
    unverified: bool = False
    beam_runner: str = LOCAL_RUNNER
    beam_options: str = ""
    piece_parts: int = 8

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if not 0 < self.held_out < 1:
            raise InputError("corpus.held_out", expected="more than 0 and less than 1", got=self.held_out)
        if not 0 < self.piece_mb < 1e6:
            expected = "more than 0 and less than 1,000,000 (a terabyte)"
            raise InputError("corpus.piece_mb", expected=expected, got=self.piece_mb)
        if self.tokens < 0:
            raise InputError("corpus.tokens", expected="at least 0 (all tokens)", got=self.tokens)
        if self.piece_parts < 1:
            raise InputError("corpus.piece_parts", expected="at least 1", got=self.piece_parts)

    def task(self, name: str) -> TaskConfig:
        """The settings of a task that is named, with this folder of files.

        Raises:
            InputError: there is no such task.
        """
        task = task_named(name)
        mine: dict[str, Any] = {"data_dir": self.dir, "unverified": self.unverified}
        if self.task_dir is not None:
            mine["source"] = self.task_dir
        known = {field.name for field in dataclasses.fields(task)}
        return dataclasses.replace(task, **{name: value for name, value in mine.items() if name in known})


@dataclasses.dataclass(eq=False, kw_only=True)
class PieceConfig(tfds.core.BuilderConfig):
    """Which piece a builder prepares, in how many parts; its name says all that the piece depends on."""

    piece: Piece | None = None
    parts: int = 1


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

        config = cast(PieceConfig, self.builder_config)
        assert config.piece is not None
        return beam.Create(list(enumerate(config.piece.split(config.parts)))) | beam.FlatMapTuple(_keyed)


def _keyed(part: int, piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    found = piece.read()
    # tensorflow-datasets refuses an empty split; a conversation without turns stands for it.
    for number, one in enumerate(itertools.chain([next(found, Conversation("", ()))], found)):
        yield f"{part}/{number}", {"id": one.id, "turns": list(one.turns), "first_label": one.first_label}


class PreparedPiece:
    """The conversations of a prepared piece, read from disk when they are asked for."""

    def __init__(self, piece: Piece, folder: Path):
        self.name = piece.name
        self._rows: Any = cast(Mapping[str, Any], _builder(piece, folder, 1).as_data_source())["rows"]

    def __iter__(self) -> Iterator[Conversation]:
        """All of them."""
        n = len(self._rows)
        for start in range(0, n, AT_ONCE):
            for row in self._rows.__getitems__(list(range(start, min(start + AT_ONCE, n)))):
                turns = tuple(turn.decode() for turn in row["turns"])
                if turns:
                    yield Conversation(row["id"].decode(), turns, int(row["first_label"]))


class TaskPiece:
    """The conversations of a task's training split, in memory."""

    def __init__(self, name: str, config: CorpusConfig):
        self._conversations = list(_of_task(name, config.task(name)))
        digest = hashlib.sha256(repr(self._conversations).encode())
        self.name = f"task-{name}-{digest.hexdigest()[:16]}"

    def __iter__(self) -> Iterator[Conversation]:
        """All of them."""
        return iter(self._conversations)


def _of_task(name: str, task: Task) -> Iterator[Conversation]:
    """A task's training conversations."""
    for id_, turns, first_label in conversations(task):
        yield Conversation(f"{name}/{id_}", turns, first_label)


def _builder(piece: Piece, folder: Path, parts: int) -> PretrainingPiece:
    config = PieceConfig(name=piece.name, piece=piece, parts=parts)
    try:
        with absl_quiet():
            return PretrainingPiece(data_dir=folder, file_format="array_record", config=config)
    except OSError as error:
        raise InputError("corpus.dir", problem=f"cannot be read: {error}", got=str(folder)) from None


def corpus_identity(config: CorpusConfig, contents: Sequence[str] | None = None) -> str:
    """A digest that changes when a corpus's files do, without preparing them; of paths only the names count.

    Args:
        config: the corpus.
        contents: its ``corpus_contents``, if they are known already.

    Raises:
        InputError: no file is there, or one cannot be read.
    """
    digest = hashlib.sha256(repr(config.reddit).encode())
    for line in corpus_contents(config) if contents is None else contents:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:24]


def corpus_contents(config: CorpusConfig) -> list[str]:
    """Kind, name and hash of each file of a corpus: ``kind/name/hash``.

    Raises:
        InputError: as for ``corpus_identity``.
    """
    _, files = _sources(config)
    found = []
    for source in files:
        kind, paths = files_of(source)
        with writing(config.dir):
            found += [f"{kind}/{Path(path).name}/{content_hash(path, _parts(config))}" for path in paths]
    return found


def _sources(config: CorpusConfig) -> tuple[list[str], list[str]]:
    """The names of tasks, and the sources that are files."""
    if not config.files:
        kinds = "pairs:FILES, text:FILES, reddit:FILES or task:NAME"
        raise InputError("corpus.files", problem="no corpus is given", expected=kinds)
    tasks = [source.removeprefix("task:") for source in config.files if source.startswith("task:")]
    return tasks, [source for source in config.files if not source.startswith("task:")]


def _parts(config: CorpusConfig) -> Path:
    return config.dir / "pretraining_parts"


def prepare_pieces(config: CorpusConfig) -> list[PreparedPiece | TaskPiece]:
    """All pieces of a corpus; missing ones are prepared first.

    Raises:
        InputError: no file is there, one is broken, or the folder cannot be written.
    """
    size = max(int(config.piece_mb * 1e6), 1)
    tasks, files = _sources(config)
    found = [TaskPiece(name, config) for name in tasks]
    with writing(config.dir), absl_quiet():

        def laid_out() -> list[Piece]:
            make = functools.partial(find_pieces, size=size, folder=_parts(config), reddit=config.reddit)
            return [piece for source in files for piece in make(source)]

        def builder_of(piece: Piece) -> PretrainingPiece:
            return _builder(piece, config.dir, config.piece_parts)

        pieces = laid_out()
        wanted = [piece for piece in pieces if not builder_of(piece).is_prepared()]
        # Parts are removed once prepared; a piece whose parts are gone now belongs to another setting.
        gone = {Path(folder) for piece in wanted for folder in piece.laid_out if is_removed(Path(folder))}
        if gone:
            for folder in gone:
                remove_folder(folder)
            pieces = laid_out()
        with meter("preparing the corpus", len(pieces), unit="pieces") as shown:
            for piece in pieces:
                builder = builder_of(piece)
                if not builder.is_prepared():
                    _prepare(builder, config)
                shown.add(1)
        for folder in {folder for piece in pieces for folder in piece.laid_out}:
            remove_parts(Path(folder))
    return [*found, *(PreparedPiece(piece, config.dir) for piece in pieces)]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only process that prepares in a folder; wait for another one.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, problem = folder / ".pretraining.lock", "another process prepares a corpus"
        with exclusive_lock(lock, problem, fix="waiting for it", waiting=console.print):
            yield
    except OSError as error:
        raise InputError("corpus.dir", problem=f"cannot be written: {error}", got=str(folder)) from None


def _prepare(builder: PretrainingPiece, config: CorpusConfig) -> None:
    check_runner(config.beam_runner)
    options = beam_options(config.beam_options)
    download = tfds.download.DownloadConfig(beam_runner=config.beam_runner, beam_options=options)
    for left in Path(builder.data_dir).parent.glob("incomplete.*"):  # by one that was killed
        shutil.rmtree(left)
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)  # what it logs of an error is raised as well
    try:
        # It reports downloads, although nothing is downloaded.
        with (
            absl_quiet(),
            no_bars(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            builder.download_and_prepare(download_config=download)
    except Exception as error:  # Beam wraps what a reader raises, or adds to its message
        if named := next((part for part in causes(error) if isinstance(part, InputError)), None):
            raise named from None
        if "InputError: " in str(error):  # of another process
            problem = str(error).split("InputError: ", 1)[1].split(" [while running")[0]
            raise InputError("corpus.files", problem=first_line(Exception(problem))) from None
        if isinstance(error, OSError):
            problem = f"cannot be written: {first_line(error)}"
            raise InputError("corpus.dir", problem=problem, got=str(config.dir)) from None
        if config.beam_runner != LOCAL_RUNNER:
            problem = first_line(error) or repr(error)
            raise InputError("corpus.beam_runner", problem=problem, got=config.beam_runner) from None
        raise
    finally:
        beam_log.setLevel(level)


def sampled_turns(
    pieces: Sequence[PreparedPiece | TaskPiece], n: int, *, excluded: HeldOut | None = None
) -> Iterator[str]:
    """About n turns of a corpus, drawn once, for a vocabulary; all where it has fewer.

    Args:
        pieces: of the corpus.
        n: how many.
        excluded: conversations of these are left out.
    """
    total = sum(len(conversation.turns) for piece in pieces for conversation in piece)
    draw = np.random.default_rng(0)
    for piece in pieces:
        for conversation in piece:
            taken = draw.random(len(conversation.turns)) * total < n
            if excluded is None or conversation.turns not in excluded:
                yield from (turn for turn, keep in zip(conversation.turns, taken, strict=True) if keep)
