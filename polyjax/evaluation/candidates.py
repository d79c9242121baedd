"""The candidates that rows are ranked among: checked, and which of them are right."""

from collections.abc import Sequence

import numpy as np

from polyjax.data.identity import Keys
from polyjax.errors import InputError
from polyjax.evaluation.metrics import Chance
from polyjax.types import Example


def check_candidates(examples: Sequence[Example], shared: Sequence[str], *, source: str) -> int:
    """The number of candidates among which each label is ranked; ``source`` is for error messages.

    Raises:
        InputError: the number differs between rows, there is nothing to rank, or two shared candidates are
            the same text, or all candidates of a row are right.
    """
    if not shared:
        n = check_listed(examples, source=source)
    elif not examples:
        raise _nothing(source)
    else:
        n = len(shared) + bool((_places(examples, shared) == len(shared)).any())
    won = np.flatnonzero(right_counts(examples, shared) >= n)
    if len(won):
        raise InputError(
            source,
            problem=f"{len(won):,} rows have no wrong candidate, the first is {examples[won[0]].id!r}",
            fix="give them wrong candidates, or leave them out",
            is_argument=False,
        )
    return n


def check_listed(examples: Sequence[Example], *, source: str) -> int:
    """The number of candidates that each row lists.

    Raises:
        InputError: there are no rows, the number differs between rows, or rows list only their label.
    """
    counts = {len(example.candidates) for example in examples}
    if not counts:
        raise _nothing(source)
    if len(counts) > 1:
        raise InputError(
            source,
            expected="the same number of candidates in every row",
            got=sorted(counts),
            is_argument=False,
        )
    if counts == {1}:
        raise InputError(
            source,
            problem="the rows list no candidates but their label",
            fix="set `rank.candidates` to sampled, batch or fixed",
            is_argument=False,
        )
    return counts.pop()


def _nothing(source: str) -> InputError:
    return InputError(source, problem="the split is empty", is_argument=False)


def right_places(examples: Sequence[Example]) -> np.ndarray:
    """Which of the listed candidates are right, bool [b, c].

    The right candidates are the label, its copies (texts that ``data.identity`` treats as the same), and the
    example's further ``answers``.
    """
    keys = Keys()
    right = np.zeros((len(examples), max((len(e.candidates) for e in examples), default=0)), bool)
    for i, example in enumerate(examples):
        answers = {keys[text] for text in (example.label_text, *example.answers)}
        right[i, : len(example.candidates)] = [keys[text] in answers for text in example.candidates]
    return right


def right_counts(examples: Sequence[Example], shared: Sequence[str]) -> np.ndarray:
    """How many of the candidates that each row is ranked among are right, int [b]."""
    if not shared:
        return right_places(examples).sum(axis=1)
    return np.array([len(set(places)) for places in right_shared(examples, shared)], int)


def chance(examples: Sequence[Example], shared: Sequence[str], *, n_candidates: int) -> Chance:
    """Chance on rows that list their candidates, or are ranked among ``shared`` ones."""
    groups = tuple(example.group for example in examples)
    return Chance(groups, n_candidates, right_counts(examples, shared))


def right_shared(examples: Sequence[Example], shared: Sequence[str]) -> list[list[int]]:
    """For each row, the indices of the right ones among n shared candidates, the label's first.

    The label's index is n if it is not among the shared candidates.

    Raises:
        InputError: two of the shared candidates are the same text.
    """
    keys = Keys()
    place: dict[str, int] = {}
    for i, text in enumerate(shared):
        if (first := place.setdefault(keys[text], i)) != i:
            raise InputError(
                "shared",
                problem=f"candidates {first} and {i} are the same text, {text[:40]!r}",
                fix="give each text once (`polyjax.data.different`)",
            )
    others = [[place[key] for text in e.answers if (key := keys[text]) in place] for e in examples]
    return [[place.get(keys[e.label_text], len(shared)), *o] for e, o in zip(examples, others, strict=True)]


def _places(examples: Sequence[Example], shared: Sequence[str]) -> np.ndarray:
    """The index of each label among n shared candidates [b]; n if it is not among them."""
    return np.array([places[0] for places in right_shared(examples, shared)])
