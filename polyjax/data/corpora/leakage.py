"""Conversations that a task is validated and tested on, recognised in a corpus by hashes of both."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from polyjax.data.identity import text_key
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import Task, read_to_rank

WORDS = 13
"""Words of a run that identifies a text, as in arXiv 2005.14165, appendix C; mutual greetings have ten."""
LONG_TURN = 10
"""Words of a turn that two people hardly say alike."""
_FACTOR = 0x9E3779B97F4A7C15
_POWERS = np.array([pow(_FACTOR, i, 1 << 64) for i in range(WORDS)], np.uint64)
_TURN_ENDS = 0x5851F42D4C957F2D
_ROWS_AT_ONCE = 4096


def word_keys(turns: Sequence[str]) -> np.ndarray:
    """Hashes by which a conversation is known again, uint64 [n].

    Of every two successive turns, however short, and of turns of ten words or more: turns are the same by
    the rule of ``data.identity``. And of every 13 successive words, wherever turns end between them, so that
    a dialogue that was joined to one text is known as well; between these words punctuation does not count,
    as in the appendix.
    """
    keys = [text_key(turn) for turn in turns]
    words = [[_word(word) for word in key.translate(_SPACES).split()] for key in keys]
    running = np.array([word for turn in words for word in turn], np.uint64)
    runs = running[:0]
    if len(running) >= WORDS:
        runs = np.lib.stride_tricks.sliding_window_view(running, WORDS) @ _POWERS
    said = [(_word(key), turn) for key, turn in zip(keys, words, strict=True)]
    pairs = zip(said, said[1:], strict=False)
    windows = [(one, _TURN_ENDS, two) for (one, a), (two, b) in pairs if a and b]
    windows += [(_TURN_ENDS, key) for key, turn in said if len(turn) >= LONG_TURN]
    return np.concatenate([runs, np.array([_of(window) for window in windows], np.uint64)])


class _Spaces(dict[int, int]):
    """A table for ``str.translate`` by which punctuation becomes white space."""

    def __missing__(self, code: int) -> int:
        self[code] = ord(" ") if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_SPACES = _Spaces()


@lru_cache(maxsize=1 << 20)
def _word(word: str) -> int:
    content = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _of(words: Sequence[int]) -> int:
    key = 0
    for word in words:
        key = (key * _FACTOR + word) & 0xFFFFFFFFFFFFFFFF
    return key ^ _TURN_ENDS  # so that a turn of 13 words differs from a run of them


class HeldOut:
    """What must not be in a corpus.

    Args:
        conversations: turns of each.

    Attributes:
        keys: ``word_keys`` of all, in order, each once, uint64 [n].

    >>> held_out = HeldOut([("Hi there!", "Where do you live?")])
    >>> ("well", "hi  there!", "WHERE do you live?", "in Rome") in held_out
    True
    >>> ("Where do you live?", "Hi there!") in held_out
    False
    """

    def __init__(self, conversations: Iterable[Sequence[str]] = ()):
        parts, waiting = [np.zeros(0, np.uint64)], []
        for turns in conversations:
            waiting.append(word_keys(turns))
            if len(waiting) == _ROWS_AT_ONCE:  # rows of a dialogue repeat its turns
                parts, waiting = [np.unique(np.concatenate([*parts, *waiting]))], []
        self.keys = np.unique(np.concatenate([*parts, *waiting]))

    def __contains__(self, turns: Sequence[str]) -> bool:
        """Whether a conversation has a run of words, or two successive turns, of these."""
        if not len(self.keys):
            return False
        wanted = word_keys(turns)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return bool((self.keys[places] == wanted).any())

    def __or__(self, other: "HeldOut") -> "HeldOut":
        """What is in either."""
        both = HeldOut()
        both.keys = np.union1d(self.keys, other.keys)
        return both

    @property
    def digest(self) -> str:
        """The same for the same conversations."""
        return hashlib.sha256(self.keys.tobytes()).hexdigest()[:24]


def held_out_of(task: Task) -> HeldOut:
    """All that a task is validated and tested on: contexts and right answers.

    Raises:
        InputError: its files are missing, not the official ones, or broken.
    """
    splits = (read_to_rank(task, split, RankConfig()).examples for split in ("valid", "test"))
    rows = (example for examples in splits for example in examples)
    return HeldOut((*row.context, answer) for row in rows for answer in (row.label_text, *row.answers))
