"""The candidates of a training row, and which of them are negatives."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from polyjax.data.identity import other_answers, text_hash, text_key
from polyjax.errors import InputError
from polyjax.types import Example

CandidateSource = Literal["batch", "inline", "sampled", "fixed"]
TRIES = 100
"""Draws for each sampled negative, after which those that are left are listed and drawn from."""


@runtime_checkable
class DrawnAnew(Protocol):
    """Examples that differ from epoch to epoch."""

    def at(self, index: int, epoch: int) -> Example:
        """The example of a place in an epoch; that of epoch 0 is what indexing gives."""
        ...


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a batch.

    Attributes:
        example: the row.
        index: its place in the split.
        right: keys (``data.identity``) of texts that are no negatives: its label, and other right answers of
            its context; empty where copies count as negatives.
    """

    example: Example
    index: int
    right: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The candidates of one context.

    Attributes:
        texts: the candidates.
        label: place of the right one; None if that is among the candidates that all contexts share.
        scores: a teacher's; None for a candidate that it did not score.
    """

    texts: Sequence[str]
    label: int | None
    scores: Sequence[float | None]


class Negatives:
    """Chooses the candidates of a split's rows.

    Args:
        examples: the training split.
        source: of the candidates, see BatchConfig.
        seed: of the draws.
        n_negatives: how many are sampled.
        fixed: candidates of all contexts.
        n_hard: at most this many of a row's own negatives are taken, drawn anew in each epoch.
        mask: exclude right answers of a context, and copies of them, from its negatives.

    Attributes:
        n_hard: the largest number of own negatives of a row, limited by the argument.
        taught: whether rows have a teacher's scores.

    Raises:
        InputError: a row has a different number of scores than of texts.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        source: CandidateSource,
        seed: int,
        n_negatives: int,
        fixed: Sequence[str],
        n_hard: int,
        mask: bool,
    ):
        self.examples, self._seed, self._mask = examples, seed, mask
        self._source: CandidateSource = source
        self._n_negatives, self.fixed = n_negatives, fixed
        self.drawn_anew = isinstance(examples, DrawnAnew)
        most, self.taught = 0, False
        self._hashes = np.zeros(len(examples), np.int32)
        for i, example in enumerate(examples):
            most = max(most, len(example.negatives))
            self.taught |= _is_taught(example)
            if mask and source == "batch":
                self._hashes[i] = text_hash(example.label_text)
        self.n_hard = min(n_hard, most)
        # Rows that are drawn anew have other contexts in each epoch: those of a batch are compared.
        self._others = other_answers(examples) if mask and not self.drawn_anew else {}

    @functools.cached_property
    def _places(self) -> dict[str, list[int]]:
        """Where each text is among the fixed candidates, by its key."""
        places: dict[str, list[int]] = {}
        for place, text in enumerate(self.fixed):
            places.setdefault(text_key(text), []).append(place)
        return places

    def check(self, *, needs_teacher: bool) -> None:
        """Raise InputError for the first row that cannot be trained on, before training starts.

        Args:
            needs_teacher: whether the loss learns a teacher's scores.
        """
        for i, example in enumerate(self.examples):
            if self._source in ("inline", "fixed"):
                self.choice(Row(example, i, frozenset()), 0, [], 0)
            if needs_teacher:
                self._check_taught(example)
        if self._source == "sampled" and not self.drawn_anew:
            self._check_sampled()

    @functools.cached_property
    def _labels(self) -> dict[str, str]:
        """The different labels of the split, by their keys."""
        labels: dict[str, str] = {}
        for example in self.examples:
            labels.setdefault(text_key(example.label_text), example.label_text)
        return labels

    def _check_sampled(self) -> None:
        labels = self._labels
        for i, example in enumerate(self.examples):
            others = self._others.get(i, frozenset())
            if len(labels) <= self._n_negatives + len(example.context) + len(others):
                n = len(labels.keys() - self._taken(Row(example, i, others)))
                if n < self._n_negatives:
                    raise self._too_few(example, n)

    def _too_few(self, example: Example, n: int) -> InputError:
        return InputError(
            "batch.n_negatives",
            problem=f"row {example.id} has {n} wrong answers among the {len(self._labels)} different labels "
            "of the training rows (no turn of its context is one, nor another right answer)",
            got=self._n_negatives,
            fix=f"use {n}" if n else "set `batch.candidates` to batch, or leave out this row",
        )

    def _check_taught(self, example: Example) -> None:
        listed = len(example.candidates) if self._source == "inline" else 1
        if example.scores is None or listed + min(len(example.negatives), self.n_hard) < 2:
            raise InputError(
                "loss",
                expected="a teacher's scores of the label and of a negative in every training row",
                got=f"row {example.id}: {len(example.scores or ())} scores, "
                f"{listed + len(example.negatives)} candidates of its own",
                fix="give rows `negatives` and `scores`, or choose another loss",
            )

    def at(self, index: int, epoch: int) -> Example:
        """The example of a place in an epoch."""
        examples = self.examples
        return examples.at(index, epoch) if isinstance(examples, DrawnAnew) else examples[index]

    def rows(self, indices: Sequence[int], epoch: int) -> list[Row]:
        """Rows of an epoch that are a batch together."""
        examples = [self.at(i, epoch) for i in indices]
        if not self._mask:
            return [Row(example, i, frozenset()) for i, example in zip(indices, examples, strict=True)]
        if self.drawn_anew:
            others = {indices[place]: keys for place, keys in other_answers(examples).items()}
        else:
            others = self._others
        return [
            Row(example, i, others.get(i, frozenset()) | {text_key(example.label_text)})
            for i, example in zip(indices, examples, strict=True)
        ]

    def hashes_of(self, indices: np.ndarray, rows: Sequence[Row] | None = None) -> np.ndarray:
        """A hash of each label of a batch, int32 [n].

        Args:
            indices: places of its rows in the split.
            rows: these, if their labels may differ from those of epoch 0.
        """
        if rows is None or not self.drawn_anew:
            return self._hashes[indices]
        return np.array([text_hash(row.example.label_text) for row in rows], np.int32)

    def among_labels(self, rows: Sequence[Row], places: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Which labels of a batch are the row's own, or negatives of it, bool [p, n].

        Args:
            rows: some of the batch's.
            places: theirs in the batch, int [p].
            hashes: of the labels of the whole batch, int32 [n].
        """
        where = np.ones((len(rows), len(hashes)), bool)
        if self._mask:
            for i, row in enumerate(rows):
                where[i] = ~np.isin(hashes, [text_hash(key) for key in row.right])
            where[np.arange(len(rows)), places] = True
        return where

    def among_fixed(self, rows: Sequence[Row]) -> np.ndarray:
        """Which fixed candidates are the row's label, or negatives of it, bool [p, n]."""
        where = np.ones((len(rows), len(self.fixed)), bool)
        for i, row in enumerate(rows):
            right = [place for key in row.right for place in self._places.get(key, ())]
            where[i, right] = False
            where[i, self.place_of_label(row.example)] = True
        return where

    def among_listed(self, row: Row, choice: Choice, c: int) -> np.ndarray:
        """Which of c places hold the label or a negative, bool [c]."""
        where = np.arange(c) < len(choice.texts)
        if row.right:
            right = [i for i, text in enumerate(choice.texts) if text_key(text) in row.right]
            where[[i for i in right if i != choice.label]] = False
        return where

    def place_of_label(self, example: Example) -> int:
        """The place of a row's label among the fixed candidates."""
        places = self._places.get(text_key(example.label_text))
        if places is None:
            raise InputError(
                "batch.fixed_file",
                expected="every label among its candidates",
                got=f"row {example.id}: {example.label_text[:40]!r} is not",
                fix="add it to the file, or set `batch.candidates` to batch or sampled",
            )
        return places[0]

    def choice(self, row: Row, epoch: int, batch: Sequence[Row], place: int) -> Choice:
        """All candidates of a row, for a scorer that reads each with its context, or that lists them.

        Args:
            row: the row.
            epoch: the epoch.
            batch: all rows of its batch.
            place: its place among them.
        """
        texts, label = self._of_source(row, epoch, batch, place)
        scores: list[float | None] = [None] * len(texts)
        if self._source == "inline" and row.example.scores is not None:
            scores = list(row.example.scores[: len(texts)])
        scores[label] = label_score(row.example)
        hard = self.hard(row, epoch)
        return Choice([*texts, *hard.texts], label, [*scores, *hard.scores])

    def _of_source(self, row: Row, epoch: int, batch: Sequence[Row], place: int) -> tuple[Sequence[str], int]:
        """The candidates that the source names, and the label's place among them."""
        example = row.example
        match self._source:
            case "batch":
                return [other.example.label_text for other in batch], place
            case "inline":
                if len(example.candidates) < 2:
                    raise InputError(
                        "batch.candidates",
                        expected="rows that list candidates beside their label, for inline",
                        got=f"row {example.id} of the training split with its label alone",
                        fix="set it to batch or sampled",
                    )
                return example.candidates, example.label
            case "sampled":
                return [example.label_text, *self._sampled(row, epoch)], 0
            case "fixed":
                return self.fixed, self.place_of_label(example)

    def hard(self, row: Row, epoch: int) -> Choice:
        """The row's own negatives of an epoch, ``n_hard`` at most, without right answers."""
        example = row.example
        places = [j for j, text in enumerate(example.negatives) if text_key(text) not in row.right]
        if len(places) > self.n_hard:
            draw = np.random.default_rng([self._seed, epoch, row.index, 1])
            places = sorted(draw.choice(places, self.n_hard, replace=False).tolist())
        first, scores = len(example.candidates), example.scores
        return Choice(
            [example.negatives[j] for j in places],
            None,
            [None if scores is None else scores[first + j] for j in places],
        )

    def _sampled(self, row: Row, epoch: int) -> list[str]:
        """Other examples' labels, none of them right for the row or a turn of its context."""
        draw = np.random.default_rng([self._seed, epoch, row.index])
        taken = self._taken(row)
        negatives: list[str] = []
        for _ in range(TRIES * self._n_negatives):
            other = int(draw.integers(len(self.examples)))
            candidate = self.at(other, epoch).label_text
            if other != row.index and (key := text_key(candidate)) not in taken:
                taken.add(key)
                negatives.append(candidate)
                if len(negatives) == self._n_negatives:
                    return negatives
        # A few frequent labels hide the others.
        left = [text for key, text in self._labels.items() if key not in taken]
        missing = self._n_negatives - len(negatives)
        if len(left) < missing:
            raise self._too_few(row.example, len(negatives) + len(left))
        return negatives + [left[i] for i in draw.choice(len(left), missing, replace=False)]

    def _taken(self, row: Row) -> set[str]:
        """Keys of texts that are not sampled for a row: right answers and turns of its context."""
        return {text_key(text) for text in (row.example.label_text, *row.example.context)} | row.right


def label_score(example: Example) -> float | None:
    """A teacher's score of the label."""
    return None if example.scores is None else example.scores[example.label]


def _is_taught(example: Example) -> bool:
    """Whether a row has a teacher's scores."""
    if example.scores is None:
        return False
    n = len(example.candidates) + len(example.negatives)
    if len(example.scores) != n:
        raise InputError(
            "scores",
            expected=f"{n} numbers for row {example.id}, of its candidates and then of its negatives",
            got=len(example.scores),
            is_argument=False,
        )
    return True
