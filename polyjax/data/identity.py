"""When two texts are one: the rule that training, candidates, evaluation, indexes and leakage checks share.

Two texts are one when they are equal after

1. removal of zero-width and other default-ignorable characters,
2. canonical normalisation and full case folding (canonical caseless matching, Unicode's D145), and
3. collapsing white space, that at both ends included.

Nothing else is ignored: texts that differ in accents, vowel signs, symbols, emoji or punctuation are two.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from polyjax.types import Example

IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, the same in versions 14 to 17."""


def text_key(text: str) -> str:
    """What two texts have in common if and only if they are one.

    The key of a key is that key. Its value may change with the Unicode version of Python, for characters
    that were not assigned before.

    >>> text_key("  Yes\\u200b  PLEASE ") == text_key("yes please")
    True
    >>> [text_key(text) for text in ("C++", "C#", "Straße", "e\\u0301")]
    ['c++', 'c#', 'strasse', 'é']
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Removal first: a character that is ignored may keep the marks around it from their canonical order.
    # Decomposition before folding, so that U+0345 is in that order before it is folded to a letter.
    folded = unicodedata.normalize("NFD", IGNORABLE.sub("", text)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def text_hash(text: str) -> int:
    """An int32 of the text's key, for arrays; two texts that are not one rarely share it.

    >>> text_hash("Yes  please") == text_hash("yes please")
    True
    """
    return zlib.crc32(text_key(text).encode("utf-8", "surrogatepass")) - 2**31


class Keys(dict[str, str]):
    """``text_key`` of texts that occur repeatedly, as turns of a dialogue do; each key is computed once."""

    def __missing__(self, text: str) -> str:
        """A new text's key."""
        key = self[text] = text_key(text)
        return key


def different(texts: Iterable[str]) -> list[str]:
    """The texts in their order, without those that are one with an earlier one.

    >>> different(["Yes", "no", "yes ", "no!"])
    ['Yes', 'no', 'no!']
    """
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(text_key(text), text)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class Digests:
    """64-bit digests of n rows: two rows that are one by the rule, turn by turn, have the same.

    Attributes:
        contexts: of each row's turns, uint64 [n].
        labels: of its right answer, uint64 [n].
        rows: of both, uint64 [n].
        answered: places of the rows that name further right answers.
    """

    contexts: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    answered: tuple[int, ...]

    @functools.cached_property
    def several(self) -> np.ndarray:
        """Digests of the contexts that have several right answers."""
        pairs = np.unique(np.stack([self.contexts, self.labels], axis=1), axis=0)
        contexts, counts = np.unique(pairs[:, 0], return_counts=True)
        return np.union1d(contexts[counts > 1], self.contexts[list(self.answered)])


def digests(examples: Iterable[Example]) -> Digests:
    """The digests of rows, in one pass."""
    keys = Keys()
    found: list[tuple[int, int, int]] = []
    answered = []
    for i, example in enumerate(examples):
        context, label = "\n".join([keys[turn] for turn in example.context]), keys[example.label_text]
        found.append((_digest(context), _digest(label), _row_digest(context, label)))
        if example.answers:
            answered.append(i)
    contexts, labels, rows = np.array(found, np.uint64).reshape(-1, 3).T
    return Digests(contexts, labels, rows, tuple(answered))


def right_digests(examples: Iterable[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Digests of rows with each of their right answers, as ``Digests.rows``, and the places of those rows.

    A context counts with its turns, as one turn, and with its lines as turns: a table and a JSON file read a
    turn with a line break otherwise.
    """
    keys = Keys()
    found, places = [], []
    for i, example in enumerate(examples):
        turns = [keys[turn] for turn in example.context]
        lines = [keys[line] for turn in example.context for line in turn.splitlines() if keys[line]]
        for context in dict.fromkeys(("\n".join(turns), " ".join(turns), "\n".join(lines))):
            for text in (example.label_text, *example.answers):
                found.append(_row_digest(context, keys[text]))
                places.append(i)
    return np.array(found, np.uint64), np.array(places, int)


def other_answers(examples: Sequence[Example]) -> dict[int, frozenset[str]]:
    """Further right answers, to be excluded from a row's negatives: keys by the row's place.

    Rows with one context (turn by turn, by the rule) are one group, whatever their labels. A right answer of
    one is never a negative of another, wherever it comes from: the batch, a draw, a list or a fixed file.
    Further right answers that a row names itself (``Example.answers``) count as well.

    Args:
        examples: all rows of a split.

    Returns:
        For the place of each row whose context has several right answers, ``text_key`` of the others.

    >>> rows = [Example(str(i), (c,), (a,), 0, "") for i, (c, a) in enumerate([("hi", "a"), ("Hi", "b")])]
    >>> other_answers(rows)
    {0: frozenset({'b'}), 1: frozenset({'a'})}
    """
    found = digests(examples)
    places = np.flatnonzero(np.isin(found.contexts, found.several)).tolist()
    right: dict[int, set[str]] = {}
    for i in places:
        example = examples[i]
        keys = map(text_key, (example.label_text, *example.answers))
        right.setdefault(int(found.contexts[i]), set()).update(keys)
    own = {i: text_key(examples[i].label_text) for i in places}
    others = {i: frozenset(right[int(found.contexts[i])] - {own[i]}) for i in places}
    return {i: keys for i, keys in others.items() if keys}


def with_answers(examples: Sequence[Example], pool: Sequence[Example] = ()) -> list[Example]:
    """The examples, each with the other right answers that rows of its context name (``Example.answers``).

    Args:
        examples: to be completed.
        pool: further rows to take answers from.
    """
    right: dict[int, dict[str, str]] = {}
    everything = [*examples, *pool]
    found = digests(everything)
    for i in np.flatnonzero(np.isin(found.contexts, found.several)).tolist():
        texts = right.setdefault(int(found.contexts[i]), {})
        for text in (everything[i].label_text, *everything[i].answers):
            texts.setdefault(text_key(text), text)
    completed = list(examples)
    for i, example in enumerate(examples):
        if texts := right.get(int(found.contexts[i])):
            own = text_key(example.label_text)
            answers = tuple(text for key, text in texts.items() if key != own)
            completed[i] = dataclasses.replace(example, answers=answers)
    return completed


def _row_digest(context: str, answer: str) -> int:
    """Of the keys of a context's turns, a line each, and of a right answer's key."""
    return _digest(f"{context}\n\n{answer}")


def _digest(text: str) -> int:
    content = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(content.digest(), "big")
