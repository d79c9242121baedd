"""Texts -> padded token arrays: joining turns, truncation, special tokens, length buckets."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from polyjax.data.tokenizers import Tokenizer
from polyjax.types import InputError, Tokens

Ids = list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How texts become token sequences.

    Attributes:
        max_turns: the last so many turns of a context are read.
        context_tokens: longest context, special tokens included; older tokens are cut (left).
        candidate_tokens: longest candidate, special tokens included; later tokens are cut (right).
        buckets: lengths to which sequences are padded, in tokens; few, because each is a compilation.
    """

    max_turns: int = 4
    context_tokens: int = 128
    candidate_tokens: int = 48
    buckets: tuple[int, ...] = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.max_turns < 1:
            raise InputError(f"text max_turns must be at least 1, got {self.max_turns}")
        for name in ("context_tokens", "candidate_tokens"):
            if getattr(self, name) < 3:
                raise InputError(
                    f"text {name} must be at least 3 (start, one token, end), got {getattr(self, name)}"
                )
        if (
            not self.buckets
            or any(b < 1 for b in self.buckets)
            or list(self.buckets) != sorted(set(self.buckets))
        ):
            raise InputError(f"text buckets must be increasing positive lengths, got {self.buckets}")

    def bucket(self, length: int, limit: int) -> int:
        """The padded length for a longest sequence of ``length`` tokens where ``limit`` is the most.

        >>> TextConfig(buckets=(16, 32)).bucket(17, limit=24)
        24
        """
        return min(next((b for b in self.buckets if b >= length), limit), limit)

    def check_positions(self, n_positions: int, *, paired: bool) -> None:
        """Raise InputError if a sequence may be longer than the encoder's positions."""
        longest = max(self.context_tokens, self.candidate_tokens)
        if paired:
            longest = self.context_tokens + self.candidate_tokens - 1
        if longest > n_positions:
            asked = "text.context_tokens + text.candidate_tokens - 1" if paired else "text.context_tokens"
            raise InputError(
                f"{asked} is {longest}, longer than the encoder's {n_positions} positions; "
                "lower text.context_tokens"
            )


class TextEncoder:
    """Turns texts into ids with the tokenizer, and ids into sequences with special tokens.

    A turn occurs in many contexts and again as a candidate; its ids are kept after the first time, so
    that ``prepare`` (one fast batch) pays once for all.
    """

    def __init__(self, tokenizer: Tokenizer, config: TextConfig):
        self.tokenizer = tokenizer
        self.config = config
        self._ids: dict[str, Ids] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenise all texts at once, and keep their ids."""
        new = list(dict.fromkeys(text for text in texts if text not in self._ids))
        self._ids.update(zip(new, self.tokenizer.encode(new), strict=True))

    def _plain(self, text: str) -> Ids:
        ids = self._ids.get(text)
        return self.tokenizer.encode([text])[0] if ids is None else ids

    def context(self, turns: Sequence[str]) -> Ids:
        """start, turns with separators between them, end; the oldest tokens are cut."""
        tokenizer, room = self.tokenizer, self.config.context_tokens - 2
        recent = [self._plain(turn) for turn in turns[-self.config.max_turns :]]
        joined = list(itertools.chain.from_iterable([tokenizer.separator_id, *ids] for ids in recent))[1:]
        return [tokenizer.start_id, *joined[-room:], tokenizer.end_id]

    def candidate(self, text: str) -> Ids:
        """start, text, end; the last tokens are cut."""
        room = self.config.candidate_tokens - 2
        return [self.tokenizer.start_id, *self._plain(text)[:room], self.tokenizer.end_id]

    def pair(self, context: Ids, candidate: Ids) -> tuple[Ids, int]:
        """A context and a candidate in one sequence (the candidate's start left out), and the
        number of its tokens that belong to segment 0."""
        return context + candidate[1:], len(context)

    def pad(self, sequences: Sequence[Ids], *, length: int) -> Tokens:
        """Sequences -> Tokens [n, length], padded on the right, all in segment 0."""
        ids = np.full((len(sequences), length), self.tokenizer.pad_id, np.int32)
        lengths = np.fromiter(map(len, sequences), int, len(sequences))
        mask = np.arange(length)[None, :] < lengths[:, None]
        ids[mask] = np.fromiter(itertools.chain.from_iterable(sequences), np.int32, lengths.sum())
        return Tokens(ids, mask, np.zeros_like(ids))

    def pad_contexts(self, sequences: Sequence[Ids]) -> Tokens:
        """Contexts -> Tokens, padded to their bucket."""
        longest = max(map(len, sequences))
        return self.pad(sequences, length=self.config.bucket(longest, self.config.context_tokens))

    def pad_candidates(self, sequences: Sequence[Ids]) -> Tokens:
        """Candidates -> Tokens, padded to their bucket."""
        longest = max(map(len, sequences))
        return self.pad(sequences, length=self.config.bucket(longest, self.config.candidate_tokens))

    def pad_pairs(self, pairs: Sequence[tuple[Ids, int]]) -> Tokens:
        """Pairs -> Tokens with segments, padded to their bucket."""
        limit = self.config.context_tokens + self.config.candidate_tokens - 1
        longest = max(len(ids) for ids, _ in pairs)
        tokens = self.pad([ids for ids, _ in pairs], length=self.config.bucket(longest, limit))
        first = np.fromiter((n for _, n in pairs), int, len(pairs))[:, None]
        segments = (np.arange(tokens.ids.shape[1])[None, :] >= first) & tokens.mask
        return dataclasses.replace(tokens, segments=segments.astype(np.int32))
