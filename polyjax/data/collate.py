"""A planned batch of examples -> arrays: candidates are chosen, texts padded, labels found."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from polyjax.data.grain_library import grain
from polyjax.data.guide import Guide
from polyjax.data.negatives import CandidateSource, Choice, DrawnAnew, Negatives, Row, label_score
from polyjax.data.text import Ids, TextEncoder
from polyjax.types import AnyArray, Batch, DualInputs, Example, Listed, PairInputs, Shared, Teacher, Tokens

__all__ = ["CandidateSource", "Collator", "DrawnAnew", "PlannedBatch"]


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Which examples make a batch.

    Attributes:
        epoch: the epoch it belongs to.
        indices: theirs, int [b].
        lengths: padded lengths of their longest context and label, in tokens.
    """

    epoch: int
    indices: np.ndarray
    lengths: tuple[int, int]


class Collator(grain.transforms.Map):
    """A planned batch -> Batch of numpy arrays.

    Args:
        examples: the training split.
        text: tokenises and pads.
        inputs: ``dual`` for scorers that encode both sides apart, ``pairs`` for a cross-encoder.
        source: of the candidates, see BatchConfig.
        seed: of the sampled negatives.
        n_negatives: how many are sampled.
        fixed: candidates of all contexts.
        n_hard: at most this many of a row's own negatives are added as candidates.
        mask_duplicates: leave right answers of a context, and copies of them, out of its negatives.
        guide: leaves labels of the batch that it takes for right answers out of a row's negatives.
        part: rows of each batch that are wanted, int [p]; all where None. The arrays have those rows only,
            and are otherwise the whole batch's: its padded lengths, its candidates.

    Attributes:
        negatives: chooses the candidates.

    Raises:
        InputError: a row lists no candidates, or its label is not among the fixed ones. Raised when its
            batch is built.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        text: TextEncoder,
        *,
        inputs: Literal["dual", "pairs"],
        source: CandidateSource,
        seed: int,
        n_negatives: int = 15,
        fixed: Sequence[str] = (),
        n_hard: int = 0,
        mask_duplicates: bool = True,
        guide: Guide | None = None,
        part: np.ndarray | None = None,
    ):
        self._part, self._text, self._guide = part, text, guide
        self._inputs: Literal["dual", "pairs"] = inputs
        self._shares = inputs == "dual" and source in ("batch", "fixed")
        self._of_rows = source == "batch"
        self.negatives = Negatives(
            examples,
            source=source,
            seed=seed,
            n_negatives=n_negatives,
            fixed=fixed,
            n_hard=n_hard,
            mask=mask_duplicates,
        )
        text.prepare(fixed, keep=True)

    # grain's abstract ``map`` has no annotations, so its result is inferred to be None.
    def map(self, element: PlannedBatch) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batch's arrays."""
        negatives, epoch, text = self.negatives, element.epoch, self._text
        wanted = np.arange(len(element.indices)) if self._part is None else self._part
        if self._shares and not negatives.n_hard and not negatives.drawn_anew:
            # The other rows are not needed: the plan has their lengths.
            return self._sharing(negatives.rows(element.indices[wanted].tolist(), epoch), wanted, element)
        batch = negatives.rows(element.indices.tolist(), epoch)
        rows = [batch[i] for i in wanted]
        if negatives.drawn_anew:  # it has other lengths than the plan knows
            element = dataclasses.replace(element, lengths=self._lengths(batch))
        if not self._shares:
            choices = [negatives.choice(row, epoch, batch, place) for place, row in enumerate(batch)]
            label = np.array([choices[i].label for i in wanted], np.int32)
            if self._inputs == "pairs":
                return self._pairs(batch, choices, wanted, label)
            tokens, where, teacher = self._own(batch, choices, wanted)
            context = text.pad_contexts(self._contexts(rows), length=element.lengths[0])
            return Batch(DualInputs(context, listed=Listed(tokens)), label, where, teacher)
        common = self._sharing(rows, wanted, element, batch)
        if not negatives.n_hard:
            return common
        choices = [negatives.hard(row, epoch) for row in batch]
        return _both(common, *self._own(batch, choices, wanted, c=negatives.n_hard))

    def _lengths(self, batch: list[Row]) -> tuple[int, int]:
        """Padded lengths of a batch's longest context and label."""
        text, config = self._text, self._text.config
        contexts = (text.context_length(row.example.context) for row in batch)
        labels = (text.candidate_length(row.example.label_text) for row in batch)
        return (
            config.bucket(max(contexts), config.context_tokens),
            config.bucket(max(labels), config.candidate_tokens),
        )

    def _contexts(self, rows: list[Row]) -> list[Ids]:
        return [self._text.context(row.example.context) for row in rows]

    def _sharing(
        self, rows: list[Row], wanted: np.ndarray, element: PlannedBatch, batch: list[Row] | None = None
    ) -> Batch:
        """A batch whose contexts share their candidates: its labels, or the fixed ones.

        Args:
            rows: the rows wanted.
            wanted: their places.
            element: the plan, with the lengths of the whole batch.
            batch: all rows, where they are not those of the split.
        """
        text, negatives = self._text, self.negatives
        if self._of_rows:
            ids = [text.candidate(row.example.label_text) for row in rows]
            shared, places = Shared(text.pad_candidates(ids, length=element.lengths[1])), wanted
            where = negatives.among_labels(rows, wanted, negatives.hashes_of(element.indices, batch))
            if self._guide is not None:
                where &= ~self._guide.false_negatives(element.indices[wanted], element.indices)
                where[np.arange(len(wanted)), wanted] = True
        else:
            shared = Shared(self._fixed_tokens, of_rows=False)
            places = np.array([negatives.place_of_label(row.example) for row in rows])
            where = negatives.among_fixed(rows)
        context = text.pad_contexts(self._contexts(rows), length=element.lengths[0])
        teacher = self._teacher_of_labels(rows, places, where.shape[1])
        return Batch(DualInputs(context, shared=shared), places.astype(np.int32), where, teacher)

    @functools.cached_property
    def _fixed_tokens(self) -> Tokens:
        """The fixed candidates, the same in every batch."""
        return self._text.pad_candidates([self._text.candidate(text) for text in self.negatives.fixed])

    def _pairs(self, batch: list[Row], choices: list[Choice], wanted: np.ndarray, label: np.ndarray) -> Batch:
        """Each candidate in one sequence with its context."""
        text, c = self._text, max(len(choice.texts) for choice in choices)
        rows, kept = [batch[i] for i in wanted], [choices[i] for i in wanted]
        longest = max(
            text.pair_length(text.context_length(row.example.context), self._longest(choice))
            for row, choice in zip(batch, choices, strict=True)
        )
        pairs = [
            text.pair(context, text.candidate(candidate))
            for context, choice in zip(self._contexts(rows), kept, strict=True)
            for candidate in _filled(choice, c)
        ]
        tokens = text.pad_pairs(pairs, length=text.config.bucket(longest, text.config.pair_limit()))
        tokens = jax.tree.map(lambda x: x.reshape(-1, c, x.shape[1]), tokens)
        return Batch(PairInputs(tokens), label, self._where(rows, kept, c), self._teacher(kept, c))

    def _own(
        self, batch: list[Row], choices: list[Choice], wanted: np.ndarray, *, c: int | None = None
    ) -> tuple[Tokens, np.ndarray, Teacher | None]:
        """Candidates of the wanted rows' own: tokens [p, c, t], which are real [p, c], a teacher's scores.

        Args:
            batch: all rows.
            choices: their candidates.
            wanted: places of those whose arrays are made.
            c: candidates of a row; as many as the longest list has by default.
        """
        text, kept = self._text, [choices[i] for i in wanted]
        c = c or max(len(choice.texts) for choice in choices)
        length = text.config.bucket(max(map(self._longest, choices)), text.config.candidate_tokens)
        ids = [text.candidate(candidate) for choice in kept for candidate in _filled(choice, c)]
        tokens = jax.tree.map(lambda x: x.reshape(-1, c, x.shape[1]), text.pad_candidates(ids, length=length))
        return tokens, self._where([batch[i] for i in wanted], kept, c), self._teacher(kept, c)

    def _longest(self, choice: Choice) -> int:
        """Tokens of the longest candidate."""
        return max(map(self._text.candidate_length, choice.texts), default=1)

    def _where(self, rows: list[Row], choices: list[Choice], c: int) -> np.ndarray:
        pairs = zip(rows, choices, strict=True)
        return np.array([self.negatives.among_listed(row, choice, c) for row, choice in pairs])

    def _teacher(self, choices: list[Choice], c: int) -> Teacher | None:
        """A teacher's scores of listed candidates; None where no row of the split carries any."""
        if not self.negatives.taught:
            return None
        teacher = _no_scores(len(choices), c)
        for i, choice in enumerate(choices):
            for j, score in enumerate(choice.scores):
                if score is not None:
                    teacher.scores[i, j], teacher.where[i, j] = score, True
        return teacher

    def _teacher_of_labels(self, rows: list[Row], places: np.ndarray, n: int) -> Teacher | None:
        """A teacher's scores of the labels, which are at places of n shared candidates."""
        if not self.negatives.taught:
            return None
        teacher = _no_scores(len(rows), n)
        for i, (row, place) in enumerate(zip(rows, places.tolist(), strict=True)):
            score = label_score(row.example)
            if score is not None:
                teacher.scores[i, place], teacher.where[i, place] = score, True
        return teacher


def _no_scores(b: int, c: int) -> Teacher:
    return Teacher(np.zeros((b, c), np.float32), np.zeros((b, c), bool))


def _filled(choice: Choice, c: int) -> list[str]:
    """c texts; places without a candidate repeat the first, which ``where`` leaves out."""
    first = choice.texts[0] if choice.texts else ""
    return [*choice.texts, *[first] * (c - len(choice.texts))]


def _both(common: Batch, tokens: Tokens, where: np.ndarray, teacher: Teacher | None) -> Batch:
    """A batch of shared candidates with listed ones besides."""
    assert isinstance(common.inputs, DualInputs)

    def joined(one: AnyArray, other: AnyArray) -> np.ndarray:
        return np.concatenate([one, other], axis=1)

    return Batch(
        dataclasses.replace(common.inputs, listed=Listed(tokens)),
        common.label,
        joined(common.where, where),
        jax.tree.map(joined, common.teacher, teacher),
    )
