"""A planned batch of examples -> arrays: candidates are chosen, texts padded, labels found."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import grain
import jax
import numpy as np

from polyjax.data.identity import text_hash, text_key
from polyjax.data.text import TextEncoder
from polyjax.errors import InputError
from polyjax.types import Batch, DualInputs, Example, PairInputs, Tokens

CandidateSource = Literal["batch", "inline", "sampled", "fixed"]


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Which examples make a batch.

    Attributes:
        epoch: they are taken in.
        indices: theirs, int [b].
        lengths: padded lengths of their longest context and label, in tokens.
    """

    epoch: int
    indices: np.ndarray
    lengths: tuple[int, int]


@runtime_checkable
class DrawnAnew(Protocol):
    """Examples that differ from epoch to epoch."""

    def at(self, index: int, epoch: int) -> Example:
        """The example of a place in an epoch; that of epoch 0 is what indexing gives."""
        ...


@dataclasses.dataclass(frozen=True)
class Listed:
    """Candidates of one context and the place of its label."""

    texts: Sequence[str]
    label: int


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
        mask_duplicates: leave copies of a label out of its negatives.
        part: rows of each batch that are wanted, int [p]; all where None. The arrays have those rows only,
            and are otherwise the whole batch's: its padded lengths, its candidates.

    Raises:
        InputError: a row lists no candidates, or its label is not among the fixed ones; when it is met.
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
        mask_duplicates: bool = True,
        part: np.ndarray | None = None,
    ):
        self._part = part
        self._examples, self._text, self._seed = examples, text, seed
        self._inputs: Literal["dual", "pairs"] = inputs
        self._source: CandidateSource = source
        self._n_negatives, self._mask_duplicates = n_negatives, mask_duplicates
        self._fixed = fixed
        self._place = {text_key(candidate): i for i, candidate in reversed(list(enumerate(fixed)))}
        text.prepare(fixed, keep=True)

    def check(self) -> None:
        """Raise InputError for the first row that cannot be learnt from, before anything is."""
        if self._source in ("inline", "fixed"):
            for i, example in enumerate(self._examples):
                self._candidates(i, example, 0, [], 0)

    # grain's abstract ``map`` has no annotations, so its result is inferred to be None.
    def map(self, element: PlannedBatch) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batch's arrays."""
        if self._inputs == "dual" and self._source == "batch":
            return self._in_batch(element)
        examples = [self._at(int(i), element.epoch) for i in element.indices]
        if self._inputs == "dual" and self._source == "fixed":
            return self._shared(examples)
        rows = [
            self._candidates(int(i), example, element.epoch, examples, place)
            for place, (i, example) in enumerate(zip(element.indices, examples, strict=True))
        ]
        return self._listed(examples, rows)

    def _at(self, index: int, epoch: int) -> Example:
        if isinstance(self._examples, DrawnAnew):
            return self._examples.at(index, epoch)
        return self._examples[index]

    def _wanted(self, n: int) -> np.ndarray:
        return np.arange(n) if self._part is None else self._part

    def _in_batch(self, element: PlannedBatch) -> Batch:
        """The labels of the batch are all contexts' candidates; only the rows wanted are looked at."""
        text, n = self._text, len(element.indices)
        wanted, (context_length, label_length) = self._wanted(n), element.lengths
        # What is drawn anew has other lengths than the plan knows.
        anew = isinstance(self._examples, DrawnAnew)
        places = element.indices if anew else element.indices[wanted]
        examples = [self._at(int(i), element.epoch) for i in places]
        contexts = [text.context(e.context) for e in examples]
        labels = [text.candidate(e.label_text) for e in examples]
        if anew:
            config = text.config
            context_length = config.bucket(max(map(len, contexts)), config.context_tokens)
            label_length = config.bucket(max(map(len, labels)), config.candidate_tokens)
            examples, contexts, labels = ([rows[i] for i in wanted] for rows in (examples, contexts, labels))
        keys = np.array([text_hash(e.label_text) for e in examples], np.int32)
        return Batch(
            DualInputs(text.pad(contexts, length=context_length), text.pad(labels, length=label_length)),
            label=wanted.astype(np.int32),
            where=np.ones((1, n), bool),
            keys=keys if self._mask_duplicates else None,
        )

    def _shared(self, examples: list[Example]) -> Batch:
        """All contexts have the fixed candidates, which are encoded once."""
        wanted = self._wanted(len(examples))
        candidates, keys = self._fixed_arrays
        return Batch(
            DualInputs(self._contexts(examples, wanted), candidates),
            label=np.array([self._place_of_label(examples[i]) for i in wanted], np.int32),
            where=np.ones((1, len(self._fixed)), bool),
            keys=keys if self._mask_duplicates else None,
        )

    @functools.cached_property
    def _fixed_arrays(self) -> tuple[Tokens, np.ndarray]:
        """The fixed candidates' tokens and keys, the same in every batch."""
        candidates = self._text.pad_candidates([self._text.candidate(text) for text in self._fixed])
        return candidates, np.array([text_hash(text) for text in self._fixed], np.int32)

    def _contexts(self, examples: list[Example], wanted: np.ndarray) -> Tokens:
        """The contexts of the rows wanted, as long as the whole batch's longest needs."""
        text = self._text
        longest = max(text.context_length(e.context) for e in examples)
        length = text.config.bucket(longest, text.config.context_tokens)
        return text.pad([text.context(examples[i].context) for i in wanted], length=length)

    def _listed(self, examples: list[Example], rows: list[Listed]) -> Batch:
        """Each context has candidates of its own, c of them at most."""
        text, wanted, c = self._text, self._wanted(len(examples)), max(len(row.texts) for row in rows)
        longest = [max(map(text.candidate_length, row.texts)) for row in rows]  # of the whole batch
        kept = [rows[i] for i in wanted]
        # Places without a candidate repeat the first, which ``where`` leaves out.
        filled = [[*row.texts, *[row.texts[0]] * (c - len(row.texts))] for row in kept]
        answers = [[text.candidate(candidate) for candidate in texts] for texts in filled]
        if self._inputs == "dual":
            length = text.config.bucket(max(longest), text.config.candidate_tokens)
            tokens = text.pad([ids for row in answers for ids in row], length=length)
        else:
            contexts = [text.context_length(e.context) for e in examples]
            pairs = max(map(text.pair_length, contexts, longest))
            tokens = text.pad_pairs(
                [
                    text.pair(text.context(examples[i].context), ids)
                    for i, row in zip(wanted, answers, strict=True)
                    for ids in row
                ],
                length=text.config.bucket(pairs, text.config.pair_limit()),
            )
        tokens = jax.tree.map(lambda x: x.reshape(-1, c, x.shape[1]), tokens)
        return Batch(
            DualInputs(self._contexts(examples, wanted), tokens)
            if self._inputs == "dual"
            else PairInputs(tokens),
            label=np.array([row.label for row in kept], np.int32),
            where=np.array([self._where(row, c) for row in kept]),
            keys=None,
        )

    def _where(self, row: Listed, c: int) -> np.ndarray:
        """Which of c places hold a candidate that is no copy of the label, bool [c]."""
        where = np.arange(c) < len(row.texts)
        if self._mask_duplicates:
            keys = [text_key(candidate) for candidate in row.texts]
            copies = [i for i, key in enumerate(keys) if key == keys[row.label] and i != row.label]
            where[copies] = False
        return where

    def _candidates(
        self, index: int, example: Example, epoch: int, batch: list[Example], place: int
    ) -> Listed:
        match self._source:
            case "batch":
                return Listed([e.label_text for e in batch], place)
            case "inline":
                if len(example.candidates) < 2:
                    raise InputError(
                        f"--batch.candidates inline: row {example.id} of the training split lists no "
                        "candidates but its label; choose batch or sampled"
                    )
                return Listed(example.candidates, example.label)
            case "sampled":
                return Listed([example.label_text, *self._sample_negatives(example, index, epoch)], 0)
            case "fixed":
                return Listed(self._fixed, self._place_of_label(example))

    def _place_of_label(self, example: Example) -> int:
        place = self._place.get(text_key(example.label_text))
        if place is None:
            raise InputError(
                f"--batch.candidates fixed: the label of row {example.id}, {example.label_text[:40]!r}, "
                "is not among the fixed candidates; add it to the file, or choose batch or sampled"
            )
        return place

    def _sample_negatives(self, example: Example, index: int, epoch: int) -> list[str]:
        """Other examples' labels, none a copy of the label or of a context turn."""
        draw = np.random.default_rng([self._seed, epoch, index])
        taken = {text_key(t) for t in (example.label_text, *example.context)}
        negatives: list[str] = []
        for _ in range(100 * self._n_negatives):
            other = int(draw.integers(len(self._examples)))
            candidate = self._at(other, epoch).label_text
            if other != index and (key := text_key(candidate)) not in taken:
                taken.add(key)
                negatives.append(candidate)
                if len(negatives) == self._n_negatives:
                    return negatives
        raise InputError(
            f"batch n_negatives of {self._n_negatives}: the training split has too few "
            "different labels; lower batch.n_negatives"
        )
