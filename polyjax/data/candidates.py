"""Candidates from a file, and for examples that have none but their label."""

import dataclasses
import random
import re
from collections.abc import Sequence
from pathlib import Path

from polyjax.errors import InputError
from polyjax.types import Example


def words(text: str) -> list[str]:
    """The words of a text, lower-cased: runs of a-z, 0-9 and '.

    >>> words("I'm OK :)")
    ["i'm", 'ok']
    """
    return re.findall(r"[a-z0-9']+", text.lower())


def normalise(text: str) -> str:
    """A text's words joined by spaces; texts that agree in it count as the same.

    Words of other alphabets than a-z count as well.

    >>> normalise("Как дела?"), normalise(":)")
    ('как дела', '')
    """
    if text.isascii() or not any(letter.isalpha() and not letter.isascii() for letter in text):
        return " ".join(words(text))
    return " ".join(re.findall(r"[\w']+", text.casefold()))


def add_candidates(
    examples: Sequence[Example],
    *,
    n_candidates: int,
    seed: int,
    pool: Sequence[str] | None = None,
    flag: str = "--task.n-candidates",
) -> list[Example]:
    """Each example with ``n_candidates``: its label and others, at random places.

    The others differ from the label, from each context turn and from one another after ``normalise``.
    The draw depends on the seed, the example's id and the pool only.

    Args:
        examples: with their label alone.
        n_candidates: at least 2.
        seed: of the draw.
        pool: texts to draw from; the examples' labels by default.
        flag: what ``n_candidates`` came from, for an error.

    Raises:
        InputError: there are too few different texts.
    """
    texts = [example.label_text for example in examples] if pool is None else pool
    keys = [normalise(text) for text in texts]
    known = set(keys)
    most = min(1 + len(known - _taken(example)) for example in examples)
    if most < n_candidates:
        way_out = f"use {flag} {most}" if most > 1 else "list candidates in the rows"
        raise InputError(
            f"{flag} {n_candidates}: there are {len(known)} different labels to draw from, which give a row "
            f"{most} candidates at most (no turn of its context is one); {way_out}"
        )
    rows = []
    for example in examples:
        draw = random.Random(f"{seed}/{example.id}")
        taken = _taken(example)
        candidates: list[str] = []
        while len(candidates) < n_candidates - 1:
            i = draw.randrange(len(texts))
            if keys[i] not in taken:
                taken.add(keys[i])
                candidates.append(texts[i])
        label = draw.randrange(n_candidates)
        candidates.insert(label, example.label_text)
        rows.append(dataclasses.replace(example, candidates=tuple(candidates), label=label))
    return rows


def _taken(example: Example) -> set[str]:
    """What no drawn candidate may be: the label, and the context's turns."""
    return {normalise(example.label_text), *map(normalise, example.context)}


def read_candidates(path: Path) -> list[str]:
    """The candidates of a text file, one a line, each once; white space at a line's ends is dropped.

    Raises:
        InputError: the file is missing, is not UTF-8, is named as JSON, is empty, or has an empty line.
    """
    if path.suffix in (".jsonl", ".json"):
        raise InputError(f"{path} holds JSON; expected a plain text file of candidates, one a line")
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
