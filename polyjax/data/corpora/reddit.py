"""Public dumps of Reddit comments -> conversations: comments meet their threads on disk, then in memory.

A dump has a comment a line, in order of time, so a thread is spread over all of it. First each line goes into
the bucket of its thread's hash, a file each; then a bucket at a time is read, and its threads are built.
"""

import dataclasses
import html
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.data.corpora.corpus import Conversation
from polyjax.data.corpora.lines import DONE, is_removed, lines, new_folder, reading
from polyjax.errors import InputError
from polyjax.runtime.files import write_text

EXPECTED = "a comment of Reddit's dump, with id, parent_id, link_id, author and body"
BUFFER = 32 * 2**20
"""Bytes of comments that wait in memory to be written."""
SLIM = 0.25
"""Approximate share of a dump's bytes that the needed fields make up; it sets the number of buckets."""
UNPACKED = {".zst": 10.0, ".gz": 6.0}
"""Approximate ratio of unpacked to compressed size."""
MAX_BUCKETS = 4096
"""Each file of the dump has a folder with one file per bucket; dumps of terabytes get larger buckets."""
ASCII_LETTERS = 0.9
"""Least share of a's to z's among the letters of an English text."""
FEW_WORDS = 8
"""Texts of fewer words are not checked."""
COMMON = frozenset(
    "the and to of that it you for with have this but not are my they what if at on be as just your can "
    "would there about from or an do don't i'm it's get how when all been has he she i we them their".split()
)
"""Words that are frequent in English and rare in other languages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RedditConfig:
    """Which comments are used; a comment that is not used is dropped with all replies below it.

    The rules follow those of arXiv 2004.13637 for the same corpus, by some of the poly-encoder's authors;
    words are counted here instead of BPE tokens, and a share of words stands for a list of subreddits.
    Left out are comments that were deleted or removed, those of AutoModerator and of names that end in "bot",
    with a link, or whose first letter is not ASCII; quotations are cut out of a comment.

    Attributes:
        min_chars: of the shortest comment.
        max_chars: of the longest one.
        max_words: of the longest one.
        max_depth: comments of the longest path through a thread.
        english: least share of frequent English words in a comment of 8 words or more; 0 for any language.
    """

    min_chars: int = 5
    max_chars: int = 2048
    max_words: int = 128
    max_depth: int = 7
    english: float = 0.1

    def __post_init__(self) -> None:
        """Raise InputError for a value that keeps nothing."""
        if self.max_depth < 2:
            raise InputError("corpus.reddit.max_depth", expected="at least 2, a pair", got=self.max_depth)
        if not 0 <= self.english < 1:
            raise InputError("corpus.reddit.english", expected="a share in [0, 1)", got=self.english)
        if self.min_chars < 1:
            raise InputError("corpus.reddit.min_chars", expected="at least 1", got=self.min_chars)
        if self.min_chars > self.max_chars:
            expected = f"at most the {self.max_chars} of `corpus.reddit.max_chars`"
            raise InputError("corpus.reddit.min_chars", expected=expected, got=self.min_chars)


@dataclasses.dataclass(frozen=True)
class Comment:
    """What is kept of a comment.

    Attributes:
        id: of the comment.
        parent: the id that it replies to, or the submission's.
        thread: the submission's id.
        text: None for a comment that is left out, with all below it.
    """

    id: str
    parent: str
    thread: str
    text: str | None


def text_of(author: str, body: str, config: RedditConfig) -> str | None:
    r"""A comment's text as one line without quotations; None where it is left out.

    >>> text_of("someone", "&gt; you said\n\nI know &amp; agree", RedditConfig())
    'I know & agree'
    >>> text_of("RemindMeBot", "I will message you", RedditConfig())
    """
    if body.strip() in ("[deleted]", "[removed]") or author.lower() == "automoderator":
        return None
    if author.lower().endswith("bot"):
        return None
    spoken = (line for line in html.unescape(body).splitlines() if not line.lstrip().startswith(">"))
    text = " ".join(" ".join(spoken).split())
    words = text.split(" ")
    fits = config.min_chars <= len(text) <= config.max_chars and len(words) <= config.max_words
    if not text or not fits or "http" in text or "www." in text or ord(text[0]) > 127:
        return None
    return text if not config.english or is_english(text, config.english) else None


def is_english(text: str, share: float) -> bool:
    """Whether letters and frequent words are those of English.

    >>> is_english("I think that you have to ask them about it again", 0.1)
    True
    >>> is_english("Ich glaube, dass man sie danach noch einmal fragen muss", 0.1)
    False
    """
    letters = [letter for letter in text if letter.isalpha()]
    if sum(map(str.isascii, letters)) < ASCII_LETTERS * len(letters):
        return False
    words = re.findall(r"[a-z']+", text.lower().replace("\u2019", "'"))
    return len(words) < FEW_WORDS or sum(word in COMMON for word in words) >= share * len(words)


def comment_of(line: bytes, config: RedditConfig) -> Comment:
    """A line of the dump.

    Raises:
        ValueError, TypeError, KeyError: it cannot be parsed.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__}")
    body, author = row["body"] or "", row.get("author") or ""
    ids = [row[name] for name in ("id", "parent_id", "link_id")]
    # Some dumps have the number that an id spells in base 36.
    ids = [np.base_repr(value, 36).lower() if type(value) is int else value for value in ids]
    if not all(isinstance(value, str) for value in (body, author, *ids)):
        raise TypeError("a field that is not a text")
    id_, parent, thread = (value[3:] if re.match(r"t\d_", value) else value for value in ids)
    text = text_of(author, body, config)
    "".join([*ids, text or ""]).encode()  # a lone surrogate is not valid text
    return Comment(id_, parent, thread, text)


def buckets_needed(paths: Sequence[str], *, size: int) -> int:
    """Number of buckets for about ``size`` bytes of comments in each; MAX_BUCKETS at most."""
    total = 0.0
    for path in paths:
        total += Path(path).stat().st_size * UNPACKED.get(Path(path).suffix, 1.0)
    return min(max(math.ceil(total * SLIM / size), 1), MAX_BUCKETS)


def scatter(path: str, folder: Path, n: int, config: RedditConfig) -> None:
    """The comments of a file in ``n`` buckets by thread: the files "0" to "n-1" of a folder, made once.

    Raises:
        InputError: a line is not a comment, or the file is damaged; the message names file and line.
    """
    if (folder / DONE).exists():
        return
    with new_folder(folder) as aside:
        waiting: dict[int, list[bytes]] = {}
        size = 0
        for number, (_, line) in enumerate(lines(path), start=1):
            if not line.strip():
                continue
            try:
                found = comment_of(line, config)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise InputError.in_file(path, number, expected=EXPECTED, got=error) from None
            slim = json.dumps([found.id, found.parent, found.thread, found.text]).encode() + b"\n"
            waiting.setdefault(zlib.crc32(found.thread.encode()) % n, []).append(slim)
            size += len(slim)
            if size > BUFFER:
                _write(waiting, aside)
                size = 0
        _write(waiting, aside)
        filled = sorted(int(path.name) for path in aside.iterdir())
        write_text(aside / DONE, json.dumps({"buckets": n, "filled": filled}))


def _write(waiting: dict[int, list[bytes]], folder: Path) -> None:
    # Opened for each write: there may be more buckets than a process may have files.
    for bucket, found in waiting.items():
        with (folder / str(bucket)).open("ab") as file:
            file.writelines(found)
    waiting.clear()


def read_bucket(folders: Sequence[str], bucket: int, config: RedditConfig) -> Iterator[Conversation]:
    """The conversations of a bucket, of the folders of all files together; see ``scatter``.

    Raises:
        InputError: the comments were removed.
    """
    filled: dict[str, list[int]] = {}
    for folder in folders:
        if is_removed(Path(folder)) or not (Path(folder) / DONE).exists():
            raise InputError.in_file(folder, problem="its comments were removed", fix="run again")
        filled[folder] = json.loads((Path(folder) / DONE).read_text(encoding="utf-8"))["filled"]
    threads: dict[str, list[Comment]] = {}
    for folder in folders:
        if bucket not in filled[folder]:  # no thread fell into it
            continue
        path = Path(folder) / str(bucket)
        with reading(str(path)):
            rows: Iterable[Any] = map(json.loads, path.read_bytes().splitlines())
            for row in rows:
                comment = Comment(*row)
                threads.setdefault(comment.thread, []).append(comment)
    for thread, comments in threads.items():
        yield from conversations(thread, comments, max_depth=config.max_depth)


def conversations(thread: str, comments: Sequence[Comment], *, max_depth: int) -> Iterator[Conversation]:
    """The paths through a thread, from a comment without a parent here to one without a reply.

    Each reply is a label once: of a path that begins like the one before it, only the new turns are. All
    have the thread's id.
    """
    known = {comment.id for comment in comments}
    kept = {comment.id: comment for comment in comments if comment.text is not None}
    replies: dict[str, list[Comment]] = {}
    for comment in kept.values():
        replies.setdefault(comment.parent, []).append(comment)
    # The parent of a root is the submission, or a comment from before the dump's first day.
    waiting = [(root, 0) for root in reversed(kept.values()) if root.parent not in known]
    path: list[str] = []
    first_label = 1
    while waiting:
        comment, depth = waiting.pop()
        if depth < len(path):  # another branch begins
            del path[depth:]
            first_label = max(depth, 1)
        path.append(comment.text or "")
        below = replies.get(comment.id, ()) if depth + 1 < max_depth else ()
        if below:
            waiting += ((reply, depth + 1) for reply in reversed(below))
        elif len(path) > 1:
            yield Conversation(thread, tuple(path), first_label)
