"""Where a pre-training corpus comes from: files of conversations or documents, in pieces of bounded size."""

import dataclasses
import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from polyjax.data.corpora.corpus import Conversation
from polyjax.data.corpora.identity import content_hash
from polyjax.data.corpora.lines import is_compressed, lines_between, unpack
from polyjax.data.corpora.reddit import RedditConfig, buckets_needed, read_bucket, scatter
from polyjax.errors import InputError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")
"""Between two sentences of a paragraph; wrong after some abbreviations."""


@runtime_checkable
class Piece(Protocol):
    """A part of a corpus that is prepared at once."""

    @property
    def name(self) -> str:
        """The prepared piece's name, which changes with the files' content and with the readers."""
        ...

    @property
    def shown(self) -> str:
        """Its name for the user."""
        ...

    @property
    def laid_out(self) -> Sequence[str]:
        """Folders of parts that it is read from, which ``remove_parts`` may empty when it is prepared."""
        ...

    def split(self, n: int) -> "Sequence[Piece]":
        """The same in at most about n pieces."""
        ...

    def read(self) -> Iterator[Conversation]:
        """The conversations that begin in it.

        Raises:
            InputError: a line cannot be parsed or the file is corrupt; the message names file and line.
        """
        ...


@dataclasses.dataclass(frozen=True)
class FilePiece:
    """Successive lines of a file.

    Attributes:
        kind: what its lines are, one of READERS.
        path: of the file.
        start: the first byte; a line that begins before it belongs to the piece before.
        end: a line that begins here or later belongs to the next piece.
        content: a hash of the whole file, unpacked or not, as it was given.
        unpacked_from: the file that ``path`` was cut out of; "" where it is the file itself.
        origin: the byte of that file, unpacked, where ``path`` begins.
    """

    kind: str
    path: str
    start: int
    end: int
    content: str
    unpacked_from: str = ""
    origin: int = 0

    @property
    def shown(self) -> str:
        """See Piece."""
        return self.unpacked_from or self.path

    @property
    def laid_out(self) -> Sequence[str]:
        """See Piece."""
        return [str(Path(self.path).parent)] if self.unpacked_from else []

    @property
    def name(self) -> str:
        """See Piece."""
        # The file's name is part of its conversations' ids.
        what = (self.kind, self.content, Path(self.shown).name, self.start, self.end, self.origin)
        return f"{self.kind}-{_hash(*what)}"

    def split(self, n: int) -> "list[FilePiece]":
        """See Piece."""
        size = max(math.ceil((self.end - self.start) / n), 1 << 16)
        return self.cut(size)

    def cut(self, size: int) -> "list[FilePiece]":
        """The same in pieces of about this many bytes."""
        starts = range(self.start, max(self.end, self.start + 1), size)
        return [dataclasses.replace(self, start=s, end=min(s + size, self.end)) for s in starts]

    def read(self) -> Iterator[Conversation]:
        """See Piece."""
        reader = READERS[self.kind]
        for number, (at, line) in enumerate(lines_between(self.path, self.start, self.end), start=1):
            first = not self.start and not self.origin
            place = f":{number}" if first else f", the line at byte {self.origin + at}"
            try:
                text = line.decode("utf-8-sig" if first and number == 1 else "utf-8").strip()
                # By its byte, whatever piece it is read in.
                for found in reader(text, f"{Path(self.shown).name}:{self.origin + at}") if text else ():
                    found.id.encode()  # a lone surrogate is not valid text
                    yield found
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                wrong = InputError.in_row(expected=EXPECTED[self.kind], got=error)
                raise wrong.at(f"{self.shown}{place}") from None


@dataclasses.dataclass(frozen=True)
class ThreadsPiece:
    """Threads of Reddit, in successive buckets.

    Attributes:
        laid_out: where each file's comments lie, by bucket.
        start: the first bucket.
        end: the one after the last.
        config: which comments are used.
    """

    laid_out: tuple[str, ...]
    start: int
    end: int
    config: RedditConfig

    @property
    def name(self) -> str:
        """See Piece."""
        folders = [Path(folder).name for folder in self.laid_out]
        return f"reddit-{_hash(folders, self.start, self.end, self.config)}"

    @property
    def shown(self) -> str:
        """See Piece."""
        return f"threads {self.start} to {self.end - 1} of {', '.join(self.laid_out)}"

    def split(self, n: int) -> "list[ThreadsPiece]":
        """See Piece."""
        return [dataclasses.replace(self, start=b, end=b + 1) for b in range(self.start, self.end)]

    def read(self) -> Iterator[Conversation]:
        """See Piece."""
        for bucket in range(self.start, self.end):
            yield from read_bucket(self.laid_out, bucket, self.config)


def find_pieces(
    source: str, *, size: int, folder: Path, reddit: RedditConfig | None = None
) -> Sequence[Piece]:
    """The pieces of a corpus; what is compressed, or has to be put in order, is laid out in ``folder`` first.

    Args:
        source: ``pairs:GLOB``, ``text:GLOB`` or ``reddit:GLOB``; files may be compressed (.gz, .zst).
        size: bytes of a piece.
        folder: for the parts of compressed files and the buckets of threads, see ``remove_parts``, and for
            the files' hashes.
        reddit: which comments are kept.

    Raises:
        InputError: the kind is unknown, no file is there, or one is damaged.
    """
    kind, paths = files_of(source)
    if kind == "reddit":
        return _threads(paths, size, folder, reddit or RedditConfig())
    pieces: list[FilePiece] = []
    for path in paths:
        content = content_hash(path, folder)
        if is_compressed(path):
            parts = unpack(path, folder / f"unpacked-{_hash(content, size)}", size=size)
            pieces += (
                FilePiece(kind, part.path, 0, part.size, content, unpacked_from=path, origin=part.origin)
                for part in parts
            )
        else:
            pieces += FilePiece(kind, path, 0, Path(path).stat().st_size, content).cut(size)
    return pieces


def files_of(source: str) -> tuple[str, list[str]]:
    """The kind of a corpus's files, and their paths.

    Raises:
        InputError: the kind is unknown, or no file is there.
    """
    kind, colon, pattern = source.partition(":")
    if not colon or kind not in KINDS:
        kinds = " or ".join(f"{name}:FILES" for name in KINDS)
        expected = f"{kinds}, where FILES is a file or a pattern such as 'data/*.jsonl.gz'"
        raise InputError("corpus.files", expected=expected, got=source)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not paths:
        fix = "in a shell, quote a pattern"
        raise InputError("corpus.files", problem="no such file", got=source, fix=fix)
    return kind, paths


def _threads(paths: Sequence[str], size: int, folder: Path, config: RedditConfig) -> list[ThreadsPiece]:
    n = buckets_needed(paths, size=size) * BUCKETS
    # A file that is given twice counts once: its comments have the same ids.
    folders = {folder / f"reddit-{_hash(content_hash(path, folder), n, config)}": path for path in paths}
    for into, path in folders.items():
        scatter(path, into, n, config)
    named = tuple(map(str, folders))
    return [ThreadsPiece(named, start, start + BUCKETS, config) for start in range(0, n, BUCKETS)]


BUCKETS = 8
"""Of threads in a piece: parts that Beam may read at the same time."""


def _hash(*parts: object) -> str:
    return hashlib.sha1("/".join(map(repr, ("3", *parts))).encode()).hexdigest()[:16]


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("not a list of texts")
    found = tuple(" ".join(value.split()) for value in values)
    "".join(found).encode()  # a lone surrogate is not valid text
    return found


def _pairs(line: str, place: str) -> Iterator[Conversation]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__}")
    given = row.get("id")
    if "turns" in row:
        turns = tuple(turn for turn in _texts(row["turns"]) if turn)
        yield Conversation(place if given is None else str(given), turns, 1)
        return
    context = row["context"]
    answer = row["response"] if "response" in row else row["label"]
    context = tuple(turn for turn in _texts(context if isinstance(context, list) else [context]) if turn)
    (answer,) = _texts([answer])
    if context and answer:
        # Rows of one dialogue begin alike, and are held out together.
        yield Conversation(context[0] if given is None else str(given), (*context, answer), len(context))


def _documents(line: str, place: str) -> Iterator[Conversation]:
    if not line.startswith("{"):
        yield Conversation(place, tuple(SENTENCE_END.split(" ".join(line.split()))))
        return
    row = json.loads(line)
    if "sentences" in row:
        sentences = _texts(row["sentences"])
    else:
        parts = _texts(row["paragraphs"] if "paragraphs" in row else [row["text"]])
        sentences = tuple(sentence for part in parts for sentence in SENTENCE_END.split(part))
    yield Conversation(
        f"{place} {row.get('title', '')}", tuple(sentence for sentence in sentences if sentence)
    )


READERS: dict[str, Callable[[str, str], Iterator[Conversation]]] = {"pairs": _pairs, "text": _documents}
KINDS = (*READERS, "reddit")
EXPECTED: dict[str, str] = {
    "pairs": "an object with turns, or with a context and a response or label",
    "text": "a paragraph, or an object with sentences, paragraphs or a text",
}


def is_held_out(id_: str, share: float) -> bool:
    """Whether a conversation is one to validate on, by a stable hash of its id.

    >>> sum(is_held_out(str(i), 0.1) for i in range(1000))
    97
    """
    return int(hashlib.sha1(f"held out/{id_}".encode()).hexdigest()[:8], 16) < share * 2**32
