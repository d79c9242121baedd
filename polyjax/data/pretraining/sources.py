"""Where a pre-training corpus comes from: files of conversations or documents, in pieces of bounded size."""

import dataclasses
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from polyjax.data.pretraining.corpus import Conversation
from polyjax.types import InputError

Kind = Literal["pairs", "text"]
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")
"""Between two sentences of a paragraph; wrong after some abbreviations, as such rules are."""
MAX_LINE = 10 * 2**20
"""Bytes of a line; a longer one is no conversation."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a corpus that is read at once.

    Attributes:
        kind: what its lines are.
        path: of the file.
        start: the first byte; a line that begins before it belongs to the piece before.
        end: a line that begins here or later belongs to the next piece; -1 for a whole file, as where it is
            compressed.
    """

    kind: Kind
    path: str
    start: int = 0
    end: int = -1

    @property
    def name(self) -> str:
        """Of the prepared piece: it changes with the file's size and time, and with the readers."""
        state = Path(self.path).stat()
        text = f"1/{self}/{state.st_size}/{state.st_mtime_ns}"
        return f"{self.kind}-{hashlib.sha1(text.encode()).hexdigest()[:16]}"

    def split(self, size: int) -> list["Piece"]:
        """The same in pieces of about so many bytes."""
        if self.end < 0:
            return [self]
        starts = range(self.start, max(self.end, self.start + 1), size)
        return [dataclasses.replace(self, start=s, end=min(s + size, self.end)) for s in starts]


def find_pieces(source: str, *, size: int) -> list[Piece]:
    """The pieces of a corpus.

    Args:
        source: ``pairs:GLOB`` or ``text:GLOB``; files may be compressed (.gz, .zst).
        size: bytes of a piece. Compressed files are not split.

    Raises:
        InputError: the kind is unknown, or no file is there.
    """
    kind, colon, pattern = source.partition(":")
    if not colon or kind not in READERS:
        raise InputError(
            f"--corpus {source!r}: expected {' or '.join(f'{name}:FILES' for name in READERS)}, where FILES "
            "is a file or a pattern such as 'data/*.jsonl.gz'"
        )
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not paths:
        raise InputError(f"--corpus {source!r}: no such file; quote a pattern, so that the shell keeps it")
    kind = cast(Kind, kind)
    pieces: list[Piece] = []
    for path in paths:
        whole = _is_compressed(path)
        pieces += Piece(kind, path, 0, -1 if whole else Path(path).stat().st_size).split(size)
    return pieces


def read_piece(piece: Piece) -> Iterator[Conversation]:
    """The conversations that begin in a piece.

    Raises:
        InputError: a line is none, or the file is damaged; file and line, or byte, are named.
    """
    reader = READERS[piece.kind]
    for place, line in _lines(piece):
        try:
            text = line.decode("utf-8").strip()
            yield from reader(text, f"{Path(piece.path).name}:{place}") if text else ()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{piece.path}, {place}: expected {EXPECTED[piece.kind]}; got {error!r}"
            ) from None


def _is_compressed(path: str) -> bool:
    return path.endswith((".gz", ".zst"))


def _open(path: str) -> Any:
    """A file for reading bytes, decompressed."""
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        try:
            import zstandard  # pyright: ignore[reportMissingImports]  (extra beam)
        except ModuleNotFoundError:
            raise InputError(f"{path} needs zstandard; run: pip install -e '.[beam]'") from None
        # Reddit's dumps are compressed with a window of 2 GiB.
        return io.BufferedReader(_Unpacked(path, zstandard.ZstdDecompressor(max_window_size=2**31)), 1 << 20)
    return open(path, "rb")


class _Unpacked(io.RawIOBase):
    """The bytes of a .zst file; unlike zstandard's own reader it tells a file that was cut off."""

    def __init__(self, path: str, unpacker: Any):
        self._file, self._unpacker = open(path, "rb"), unpacker
        self._frame: Any = None
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        while not self._left:
            packed = self._file.read(1 << 20)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of its data")
                return 0
            found = b""
            while packed:
                if self._frame is None or self._frame.eof:
                    self._frame = self._unpacker.decompressobj()
                found += self._frame.decompress(packed)
                packed = self._frame.unused_data if self._frame.eof else b""
            self._left = memoryview(found)
        n = min(len(buffer), len(self._left))
        buffer[:n] = self._left[:n]
        self._left = self._left[n:]
        return n


def _lines(piece: Piece) -> Iterator[tuple[str, bytes]]:
    """Lines that begin in the piece, and where that is."""
    try:
        with _open(piece.path) as file:
            at = piece.start
            if at:  # the line that the piece before ends with
                file.seek(at - 1)
                at += len(file.readline(MAX_LINE + 1)) - 1
            number = 0
            while (piece.end < 0 or at < piece.end) and (line := file.readline(MAX_LINE + 1)):
                number += 1
                place = f"line {number}" if not piece.start else f"the line at byte {at}"
                if len(line) > MAX_LINE:
                    raise InputError(f"{piece.path}, {place}: longer than {MAX_LINE / 2**20:.0f} MB")
                at += len(line)
                yield place, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{piece.path} cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # of an optional package
            raise
        raise InputError(f"{piece.path} cannot be read: {error}") from None


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("no list of texts")
    found = tuple(" ".join(value.split()) for value in values)
    "".join(found).encode()  # half a character, \\ud800, is no text
    return found


def _pairs(line: str, place: str) -> Iterator[Conversation]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__}")
    id_ = str(row.get("id", place))
    if "turns" in row:
        turns = tuple(turn for turn in _texts(row["turns"]) if turn)
        yield Conversation(id_, turns, 1)
        return
    context = row["context"]
    answer = row["response"] if "response" in row else row["label"]
    context = tuple(turn for turn in _texts(context if isinstance(context, list) else [context]) if turn)
    (answer,) = _texts([answer])
    if context and answer:
        yield Conversation(id_, (*context, answer), len(context))


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


def window_keys(turns: Sequence[str]) -> set[int]:
    """Hashes by which a conversation is known again: of every two successive turns, and of long ones.

    Case and white space do not count. Single short turns do not tell: everybody says "thank you".
    """
    plain = [" ".join(turn.lower().split()) for turn in turns]
    windows = [f"{one}\n{other}" for one, other in zip(plain, plain[1:], strict=False)]
    long = [turn for turn in plain if len(turn.split()) >= LONG_WORDS]
    return {_key(text) for text in (*windows, *long)}


LONG_WORDS = 10
"""Of a turn that two people hardly say alike."""


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
