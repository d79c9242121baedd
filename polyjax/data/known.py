"""Digests of the rows that a run was trained on, which recognise them in any file or format."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from polyjax.data.identity import Digests, right_digests
from polyjax.errors import InputError, first_line
from polyjax.runtime.files import save_array
from polyjax.types import Example

KNOWN, BEFORE = "trained_on.npy", "trained_before.npy"
"""Files of a run directory: digests of its training rows, and of those of the models that it started from or
learnt from, 8 bytes each."""


def save_known(folder: Path, found: Digests, *, before: np.ndarray | None = None) -> None:
    """Keep the digests of training rows in a run directory, each once; no effect if they are there.

    Args:
        folder: the run directory.
        found: digests of the run's training rows.
        before: digests of the training rows of the models that it starts from or learns from.
    """
    _save(folder / KNOWN, np.unique(found.rows))
    if before is not None and len(before):
        _save(folder / BEFORE, before)


def _save(path: Path, rows: np.ndarray) -> None:
    try:
        if path.exists() and np.array_equal(_read(path), rows):
            return
    except InputError:
        pass  # damaged: it is written again
    save_array(path, rows)


def load_known(folder: Path) -> np.ndarray | None:
    """The digests of a run's training rows, in order; None if the run kept none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / KNOWN
    return _read(path) if path.exists() else None


def load_seen(folder: Path) -> np.ndarray | None:
    """The digests of all rows that a run's model was trained on, by this run or by those before.

    Raises:
        InputError: a file is damaged.
    """
    found = [_read(folder / name) for name in (KNOWN, BEFORE) if (folder / name).exists()]
    return np.unique(np.concatenate(found)) if found else None


def _read(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read ({first_line(error)})") from None
    except (ValueError, EOFError):  # numpy would advise to unpickle it
        raise InputError.in_file(path, problem="the file is damaged", fix="remove it") from None
    if rows.dtype != np.uint64 or rows.ndim != 1:
        raise InputError.in_file(
            path, expected="digests, uint64 [n]", got=f"{rows.dtype} {list(rows.shape)}", fix="remove it"
        )
    return rows


def count_known(rows: np.ndarray, known: np.ndarray) -> int:
    """How many rows are among the known ones, by their digests."""
    return int(np.isin(rows, known).sum())


def count_trained(examples: Iterable[Example], known: np.ndarray) -> int:
    """How many rows have a right answer, the label or a further one, that is known for their context.

    Args:
        examples: the rows.
        known: digests of the rows that a model was trained on.
    """
    found, places = right_digests(examples)
    return len(np.unique(places[np.isin(found, known)]))


def answers_note(found: Digests, split: str, *, rule: str) -> str:
    """What a report says of contexts with several right answers; "" without such contexts.

    Args:
        found: digests of a split's rows.
        split: its name.
        rule: what follows from it.
    """
    n = len(found.several)
    if not n:
        return ""
    return f"{n:,} of {len(np.unique(found.contexts)):,} {split} contexts have several right answers{rule}"


def ranked_note(examples: Sequence[Example], found: Digests, split: str) -> str:
    """``answers_note`` of rows to rank."""
    best_counts = any(example.answers for example in examples)
    rule = ": the best placed of them counts as the label" if best_counts else ""
    return answers_note(found, split, rule=rule)


def changed_rows(new: int, now: int, missing: int, before: int, *, rows: str = "") -> str:
    """How rows differ from earlier ones, in words.

    Args:
        new: number of the present rows that were not there before.
        now: number of present rows.
        missing: number of the earlier rows that are not there any more.
        before: number of earlier rows.
        rows: what they are called.

    >>> changed_rows(3, 161, 2, 160, rows="train rows")
    '3 of 161 train rows are new or changed, 2 of the 160 before are missing'
    """
    named = f"{now:,} {rows}".rstrip()
    return f"{new:,} of {named} are new or changed, {missing:,} of the {before:,} before are missing"
