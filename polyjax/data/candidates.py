"""Candidates from a file, and drawn candidates for examples that list only their label."""

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyjax.data.encodings import encoding_of, not_valid
from polyjax.data.identity import Keys, different, text_key, with_answers
from polyjax.errors import InputError, shown
from polyjax.runtime.progress import errors
from polyjax.types import Example

TRIES = 100
"""Draws for each candidate, after which those that are left are listed and drawn from."""


def words(text: str) -> list[str]:
    """The words of a text, lower-cased: runs of a-z, 0-9 and '.

    >>> words("I'm OK :)")
    ["i'm", 'ok']
    """
    return re.findall(r"[a-z0-9']+", text.lower())


def add_candidates(
    examples: Sequence[Example],
    *,
    n_candidates: int,
    seed: int,
    pool: Sequence[Example] | None = None,
    argument: str = "task.n_candidates",
    what: str = "candidates",
) -> list[Example]:
    """Each example with ``n_candidates`` candidates: its label and others, in random order.

    The others are labels of other rows. They differ, by the rule of ``data.identity``, from one another, from
    the label, from each context turn, and from the labels of all rows that have the same context.
    The draw depends on the seed, the example's id and the pool only.

    Args:
        examples: with their label alone.
        n_candidates: at least 2.
        seed: of the draw.
        pool: rows whose labels are drawn; the examples by default.
        argument: where ``n_candidates`` came from, for an error.
        what: what is drawn, for an error.

    Raises:
        InputError: there are too few different texts.
    """
    rows = examples if pool is None else pool
    texts = [row.label_text for row in rows]
    keys = [text_key(text) for text in texts]
    by_key = dict(zip(reversed(keys), reversed(texts), strict=True))  # the first text of each key
    known = by_key.keys()
    turn_keys = Keys()
    right = with_answers(examples, () if pool is None else pool)
    taken = [_taken(example, turn_keys) for example in right]
    most = min((1 + len(known) - len(known & some) for some in taken), default=n_candidates)
    if most < n_candidates:
        raise InputError(
            argument,
            problem=f"there are too few different labels to draw {what} from: {len(known)}, with which "
            f"some row has {most} (a turn of its context or another right answer is not one)",
            got=n_candidates,
            fix=f"use `{argument}` {most}" if most > 1 else "list candidates in the rows, or give more rows",
        )
    found = []
    for example, used in zip(examples, taken, strict=True):
        draw = random.Random(f"{seed}/{example.id}")
        candidates: list[str] = []
        for _ in range(TRIES * n_candidates):
            if len(candidates) == n_candidates - 1:
                break
            i = draw.randrange(len(texts))
            if keys[i] not in used:
                used.add(keys[i])
                candidates.append(texts[i])
        if missing := n_candidates - 1 - len(candidates):  # a few frequent labels hide the others
            left = [text for key, text in by_key.items() if key not in used]
            candidates += draw.sample(left, missing)
        label = draw.randrange(n_candidates)
        candidates.insert(label, example.label_text)
        found.append(dataclasses.replace(example, candidates=tuple(candidates), label=label))
    return found


def _taken(example: Example, keys: Keys) -> set[str]:
    """Keys of texts that must not be drawn: right answers, and turns of the context."""
    return {keys[text] for text in (example.label_text, *example.answers, *example.context)}


_KEYS = (
    *("text", "label", "candidate", "candidates", "context", "turns", "response", "reply", "answer"),
    *("query", "question", "positive", "sentence", "document", "passage"),
)
"""Of which an object has some where it is a row, and not itself a candidate."""


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(key), str | list) for key in _KEYS)


def _is_json(content: str) -> bool:
    """Whether it is one JSON list of texts or objects, or a row of some kind on each line."""
    if not content[:64].lstrip("\ufeff \t\r\n").startswith(("[", "{")):
        return False
    whole = content.strip().removeprefix("\ufeff")
    try:
        if whole.startswith("["):
            found = json.loads(whole)
            return bool(found) and all(isinstance(one, str | dict) for one in found)
        lines = whole.splitlines() if whole.startswith("{") else []
        return bool(lines) and all(_is_row(json.loads(line)) for line in lines if line.strip())
    except (ValueError, TypeError, RecursionError):
        return False


def say_copies(n: int) -> None:
    """Say on standard error how many candidates are left out: copies of earlier ones."""
    if n:
        errors.print(f"copies of earlier candidates, which are left out: {n:,}")


def read_candidates(path: Path) -> list[str]:
    """The candidates of a text file, each once: of lines that are one text by the rule, the first.

    Raises:
        InputError: as ``candidate_lines``.
    """
    return different(candidate_lines(path))


_TABLES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tab", ".tsv", ".xls", ".xlsx")
"""Endings of files that hold more than plain lines."""


def candidate_lines(path: Path, *, strip: bool = True) -> list[str]:
    """The candidates of a text file, one a line, copies too.

    Args:
        path: of the file.
        strip: drop white space at the ends of lines.

    Raises:
        InputError: the file is missing, is a table or JSON by its ending, is not text, is empty, or has an
            empty line.
    """
    if path.suffix.casefold() in _TABLES:
        raise InputError.in_file(
            path,
            expected="a plain text file of candidates, one a line",
            got=shown(f"a table or JSON ({path.suffix})"),
            fix="write the texts alone into a .txt file",
        )
    if not path.exists():
        raise InputError.missing_file(path, "candidates, one a line")
    encoding = encoding_of(path)
    try:
        content = path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise not_valid(path, encoding, error) from None
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error.strerror or error}") from None
    if _is_json(content):
        raise InputError.in_file(
            path,
            expected="a plain text file of candidates, one a line",
            got=shown("JSON"),
            fix="write the texts alone, without brackets and quotes",
        )
    # A mark of the byte order also begins later lines where files were joined.
    lines = [line.removeprefix("\ufeff") for line in content.split("\n")]
    texts = [line.strip() if strip else line.removesuffix("\r") for line in lines]
    empty = [not text_key(text) for text in texts]
    while empty and empty[-1]:
        texts.pop()
        empty.pop()
    if not texts:
        raise InputError.in_file(path, problem="holds no candidate", expected="one a line")
    if any(empty):
        raise InputError.in_file(
            path, empty.index(True) + 1, expected="a candidate", got=shown("an empty line")
        )
    return texts
