"""Texts -> padded token arrays: joining turns, truncation, special tokens, length buckets."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from polyjax.data.token_store import Ids, TokenStore
from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import InputError
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How texts become token sequences.

    Attributes:
        max_turns: the last so many turns of a context are read.
        context_tokens: longest context, special tokens included; older tokens are cut (left).
        candidate_tokens: longest candidate, special tokens included; later tokens are cut (right).
        buckets: lengths to which sequences are padded, in tokens; few, because each is a compilation.
        padding: ``bucket``, or ``longest``: to the longest sequence of a call, as ParlAI pads, whose
            scores can depend on it; a compilation for every new length.
        layout: where special tokens go. ``standard`` keeps the end token of a candidate that is cut, and
            drops the candidate's start token in a pair. ``parlai`` cuts the end token off with the rest,
            keeps both start tokens in a pair, masks padding tokens that a text spells out, and makes an
            empty context an empty sequence.
    """

    max_turns: int = 4
    context_tokens: int = 128
    candidate_tokens: int = 48
    buckets: tuple[int, ...] = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 384, 512)
    padding: Literal["bucket", "longest"] = "bucket"
    layout: Literal["standard", "parlai"] = "standard"

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
        if self.padding == "longest":
            return length
        return min(next((b for b in self.buckets if b >= length), limit), limit)

    def pair_limit(self) -> int:
        """The longest pair of a context and a candidate, in tokens."""
        return self.context_tokens + self.candidate_tokens - (self.layout == "standard")

    def check_positions(self, n_positions: int, *, paired: bool) -> None:
        """Raise InputError if a sequence may be longer than the encoder's positions."""
        longest = max(self.context_tokens, self.candidate_tokens)
        name = "text.context_tokens" if longest == self.context_tokens else "text.candidate_tokens"
        if paired:
            longest = self.pair_limit()
        if longest > n_positions:
            asked = "a pair of text.context_tokens and text.candidate_tokens" if paired else name
            raise InputError(
                f"{asked} is {longest}, longer than the encoder's {n_positions} positions; lower {name}"
            )


class TextEncoder:
    """Turns texts into ids with the tokenizer, and ids into sequences with special tokens.

    A turn occurs in many contexts and again as a candidate. ``prepare`` tokenises it once for all of them.

    Args:
        tokenizer: text to ids.
        config: turns, lengths, padding.
        tokens_dir: where the ids of many texts are kept for the next run; None for memory only.
    """

    def __init__(self, tokenizer: Tokenizer, config: TextConfig, *, tokens_dir: Path | None = None):
        self.tokenizer = tokenizer
        self.config = config
        self._store = TokenStore(tokenizer, tokens_dir)

    def prepare(self, texts: Iterable[str], *, keep: bool = False) -> None:
        """Tokenise all texts at once.

        Args:
            texts: in any number.
            keep: their ids for good, as training needs them; otherwise until newer texts need the room.
        """
        self._store.add(texts, keep=keep)

    def context(self, turns: Sequence[str]) -> Ids:
        """start, turns with separators between them, end, int32 [t]; the oldest tokens are cut."""
        room = self.config.context_tokens - 2
        separator = np.array(self.tokenizer.separator_ids, np.int32)
        recent = [self._store.ids(turn) for turn in turns[-self.config.max_turns :]]
        parts = [part for ids in recent for part in (separator, ids)][1:]
        joined = np.concatenate(parts) if parts else np.empty(0, np.int32)
        if not len(joined) and self.config.layout == "parlai":
            return joined
        return self._between_marks(joined[-room:])

    def candidate(self, text: str) -> Ids:
        """start, text, end, int32 [t]; the last tokens are cut."""
        limit, ids = self.config.candidate_tokens, self._store.ids(text)
        if self.config.layout == "parlai":
            return self._between_marks(ids[:limit])[:limit]
        return self._between_marks(ids[: limit - 2])

    def _between_marks(self, ids: Ids) -> Ids:
        """The ids between start and end."""
        row = np.empty(len(ids) + 2, np.int32)
        row[0], row[-1] = self.tokenizer.start_id, self.tokenizer.end_id
        row[1:-1] = ids
        return row

    def cuts_context(self, turns: Sequence[str]) -> bool:
        """Whether a context has more tokens than fit."""
        recent = turns[-self.config.max_turns :]
        separators = max(len(recent) - 1, 0) * len(self.tokenizer.separator_ids)
        return sum(map(self._store.length, recent)) + separators > self.config.context_tokens - 2

    def cuts_candidate(self, text: str) -> bool:
        """Whether a candidate has more tokens than fit."""
        return self._store.length(text) > self.config.candidate_tokens - 2

    def context_length(self, turns: Sequence[str]) -> int:
        """How many tokens ``context`` gives."""
        recent = turns[-self.config.max_turns :]
        joined = sum(map(self._store.length, recent))
        joined += (len(recent) - 1) * len(self.tokenizer.separator_ids) if recent else 0
        if not joined and self.config.layout == "parlai":
            return 0
        return min(joined + 2, self.config.context_tokens)

    def candidate_length(self, text: str) -> int:
        """How many tokens ``candidate`` gives."""
        return min(self._store.length(text) + 2, self.config.candidate_tokens)

    def pair(self, context: Ids, candidate: Ids) -> tuple[Ids, int]:
        """A context and a candidate in one sequence, and the number of its tokens in segment 0."""
        if self.config.layout == "parlai":
            # ParlAI copies as many ids as are no padding, from the front.
            context = context[: np.count_nonzero(context != self.tokenizer.pad_id)]
            return np.concatenate([context, candidate]), len(context)
        return np.concatenate([context, candidate[1:]]), len(context)

    def pair_length(self, context: int, candidate: int) -> int:
        """How many tokens ``pair`` gives at most, for a context and a candidate of so many."""
        return context + candidate - (self.config.layout == "standard")

    def pad(self, sequences: Sequence[Ids], *, length: int) -> Tokens:
        """Sequences -> Tokens [n, length], padded on the right, all in segment 0."""
        ids = np.full((len(sequences), length), self.tokenizer.pad_id, np.int32)
        lengths = np.fromiter(map(len, sequences), int, len(sequences))
        mask = np.arange(length)[None, :] < lengths[:, None]
        if len(sequences):
            ids[mask] = np.concatenate(sequences)
        if self.config.layout == "parlai":
            mask &= ids != self.tokenizer.pad_id
        return Tokens(ids, mask, np.zeros_like(ids))

    def pad_contexts(self, sequences: Sequence[Ids]) -> Tokens:
        """Contexts -> Tokens, padded to their bucket."""
        longest = max(map(len, sequences))
        return self.pad(sequences, length=self.config.bucket(longest, self.config.context_tokens))

    def pad_candidates(self, sequences: Sequence[Ids]) -> Tokens:
        """Candidates -> Tokens, padded to their bucket."""
        longest = max(map(len, sequences))
        return self.pad(sequences, length=self.config.bucket(longest, self.config.candidate_tokens))

    def pad_pairs(self, pairs: Sequence[tuple[Ids, int]], *, length: int | None = None) -> Tokens:
        """Pairs -> Tokens with segments, padded to their bucket or to the length given."""
        if length is None:
            length = self.config.bucket(max(len(ids) for ids, _ in pairs), self.config.pair_limit())
        tokens = self.pad([ids for ids, _ in pairs], length=length)
        first = np.fromiter((n for _, n in pairs), int, len(pairs))[:, None]
        segments = (np.arange(length)[None, :] >= first) & tokens.mask
        return dataclasses.replace(tokens, segments=segments.astype(np.int32))
