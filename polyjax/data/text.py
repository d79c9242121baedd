"""Texts -> padded token arrays: joining turns, truncation, special tokens, length buckets."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from polyjax.data.layout import STANDARD, TextLayout, between_marks
from polyjax.data.token_store import Ids, TokenStore
from polyjax.data.tokenizers import PairTemplate, Tokenizer
from polyjax.errors import InputError
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How texts become token sequences.

    Attributes:
        max_turns: number of the last turns of a context that are read.
        context_tokens: longest context, special tokens included; see ``cut``.
        candidate_tokens: longest candidate, special tokens included; later tokens are cut (right).
        buckets: lengths to which sequences are padded, in tokens; few, because each is a compilation.
        padding: ``bucket``, or ``longest``: to the longest sequence of a call, which is a compilation for
            every new length.
        layout: where special tokens go. ``standard`` keeps the end token of a candidate that is cut, and
            drops the candidate's start token in a pair. From Python also an object that keeps ``TextLayout``.
        cut: how a context that is too long is cut: ``oldest`` cuts its oldest tokens; ``end`` cuts the end
            of a single text, as sentence-transformers does (and the oldest tokens of several turns).
        pair_tokens: longest pair, special tokens included, of which the longer text is cut first
            (``longest_first`` of transformers); 0 to cut context and candidate separately.
        pairs: ``joined``, one sequence with one start token, as cross-encoders read it; ``apart``, both texts
            as a bi-encoder reads them, one after the other, for a cross-encoder with gates.
        context_prompt: put before the first turn that is read.
        candidate_prompt: put before a candidate.
        embedding_prompt: put before a text to embed, if no other prompt is given.
        prompts: further prompts by name, as (name, text).
        pool_prompts: whether the tokens of a prompt count where a head reduces token outputs to a vector;
            they are always attended to.
    """

    max_turns: int = 4
    context_tokens: int = 128
    candidate_tokens: int = 48
    buckets: tuple[int, ...] = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 384, 512)
    padding: Literal["bucket", "longest"] = "bucket"
    layout: Literal["standard"] | TextLayout = "standard"
    cut: Literal["oldest", "end"] = "oldest"
    pair_tokens: int = 0
    pairs: Literal["joined", "apart"] = "joined"
    context_prompt: str = ""
    candidate_prompt: str = ""
    embedding_prompt: str = ""
    prompts: tuple[tuple[str, str], ...] = ()
    pool_prompts: bool = True

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.max_turns < 1:
            raise InputError("text.max_turns", expected="at least 1", got=self.max_turns)
        for name in ("context_tokens", "candidate_tokens"):
            if getattr(self, name) < 3:
                expected = "at least 3 (start, one token, end)"
                raise InputError(f"text.{name}", expected=expected, got=getattr(self, name))
        if self.pair_tokens and self.pair_tokens < 6:
            expected = "0, or at least 6 (special tokens, and one of each text)"
            raise InputError("text.pair_tokens", expected=expected, got=self.pair_tokens)
        if (
            not self.buckets
            or any(b < 1 for b in self.buckets)
            or list(self.buckets) != sorted(set(self.buckets))
        ):
            raise InputError("text.buckets", expected="increasing positive lengths", got=self.buckets)

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
        if self.pair_tokens:
            return self.pair_tokens
        return self.context_tokens + self.candidate_tokens - self.shared_marks

    @property
    def placing(self) -> TextLayout:
        """The layout as an object."""
        return STANDARD if isinstance(self.layout, str) else self.layout

    @property
    def shared_marks(self) -> int:
        """Special tokens that two texts save by being a pair."""
        return self.placing.joined if self.pairs == "joined" else 0

    def check_positions(self, n_positions: int, *, paired: bool) -> None:
        """Raise InputError if a sequence may be longer than the encoder's positions."""
        longest = max(self.context_tokens, self.candidate_tokens)
        name = "text.context_tokens" if longest == self.context_tokens else "text.candidate_tokens"
        if paired:  # apart, each text has positions of its own, but a row is no longer than there are
            longest = self.pair_limit()
        if longest > n_positions:
            together = paired and not self.pair_tokens
            raise InputError(
                "text.pair_tokens" if paired and self.pair_tokens else name,
                problem="a pair has `text.context_tokens` and `text.candidate_tokens`" if together else None,
                expected=f"at most the encoder's {n_positions} positions",
                got=longest,
            )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that are kept of two texts, as transformers' ``longest_first`` keeps them.

    >>> longest_first(3, 20, 10), longest_first(20, 30, 11), longest_first(30, 20, 11)
    ((3, 7), (5, 6), (6, 5))
    """
    if first + second <= room:
        return first, second
    if first > second:
        second, first = longest_first(second, first, room)
        return first, second
    second = first if first > room else max(first, room - first)
    return (room // 2, room // 2 + room % 2) if first + second > room else (first, second)


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
        self._layout = config.placing
        self._store = TokenStore(tokenizer, tokens_dir)

    def prepare(self, texts: Iterable[str], *, keep: bool = False) -> None:
        """Tokenise all texts at once, also with the prompts that are put before them.

        Args:
            texts: in any number.
            keep: keep their ids permanently, as training needs; otherwise until newer texts need the room.
        """
        config = self.config
        prompts = [prompt for prompt in {config.context_prompt, config.candidate_prompt} if prompt]
        if prompts:
            texts = list(texts)
            texts = [*texts, *(prompt + text for prompt in prompts for text in texts)]
        self._store.add(texts, keep=keep)

    def tokenise(self, texts: Iterable[str]) -> None:
        """Tokenise texts without prompts, all at once."""
        self._store.add(texts)

    def single(self, text: str) -> Ids:
        """start, a text that is neither context nor candidate, end, int32 [t]; its end is cut."""
        return between_marks(self._store.ids(text)[: self.config.candidate_tokens - 2], self.tokenizer)

    def read(self, turns: Sequence[str]) -> list[str]:
        """The turns of a context that are read, the first with its prompt."""
        recent = list(turns[-self.config.max_turns :])
        if recent and self.config.context_prompt:
            recent[0] = self.config.context_prompt + recent[0]
        return recent

    def context(self, turns: Sequence[str]) -> Ids:
        """start, turns with separators between them, end, int32 [t]; cut as the configuration says."""
        config, room = self.config, self.config.context_tokens - 2
        separator = np.array(self.tokenizer.separator_ids, np.int32)
        recent = [self._store.ids(turn) for turn in self.read(turns)]
        parts = [part for ids in recent for part in (separator, ids)][1:]
        joined = np.concatenate(parts) if parts else np.empty(0, np.int32)
        if not config.pair_tokens and len(joined) > room:
            if config.cut == "end" and len(recent) == 1:
                joined = joined[:room]
            else:
                n = min(self._store.length(config.context_prompt), room) if config.context_prompt else 0
                joined = np.concatenate([joined[:n], joined[len(joined) - room + n :]])
        return self._layout.context(joined, self.tokenizer)

    def candidate(self, text: str) -> Ids:
        """start, text, end, int32 [t]; the last tokens are cut."""
        limit = None if self.config.pair_tokens else self.config.candidate_tokens
        ids = self._store.ids(self.config.candidate_prompt + text)
        return self._layout.candidate(ids, limit, self.tokenizer)

    def cuts_context(self, turns: Sequence[str]) -> bool:
        """Whether a context has more tokens than fit; never where pairs are cut as a whole."""
        recent = self.read(turns)
        separators = max(len(recent) - 1, 0) * len(self.tokenizer.separator_ids)
        n = sum(map(self._store.length, recent)) + separators
        return not self.config.pair_tokens and n > self.config.context_tokens - 2

    def cuts_candidate(self, text: str) -> bool:
        """Whether a candidate has more tokens than fit; never where pairs are cut as a whole."""
        n = self._store.length(self.config.candidate_prompt + text)
        return not self.config.pair_tokens and n > self.config.candidate_tokens - 2

    def context_length(self, turns: Sequence[str]) -> int:
        """How many tokens ``context`` gives."""
        recent = self.read(turns)
        joined = sum(map(self._store.length, recent))
        joined += (len(recent) - 1) * len(self.tokenizer.separator_ids) if recent else 0
        length = self._layout.context_length(joined)
        return length if self.config.pair_tokens else min(length, self.config.context_tokens)

    def candidate_length(self, text: str) -> int:
        """How many tokens ``candidate`` gives."""
        length = self._store.length(self.config.candidate_prompt + text) + 2
        return length if self.config.pair_tokens else min(length, self.config.candidate_tokens)

    def pair(self, context: Ids, candidate: Ids, *, keep_end: bool = False) -> tuple[Ids, int]:
        """A context and a candidate in one sequence, and the number of its tokens in segment 0.

        Args:
            context: ids, from ``context``.
            candidate: ids, from ``candidate``.
            keep_end: whether ``pair_tokens`` drops the first tokens of a candidate, not the last.
        """
        if self.config.pair_tokens:
            first, second = self.kept_of_pair(len(context), len(candidate))
            context = self.shortened(context, first)
            candidate = self.shortened(candidate, second, keep_end=keep_end)
        if self.config.pairs == "apart":
            return np.concatenate([context, candidate]), len(context)
        between, segments = self._between
        over = self._whole_pair(len(context), len(candidate)) - self.config.pair_limit()
        if over > 0 and not self.config.pair_tokens:
            # Templates with more tokens between the texts than one: the candidate gives way.
            candidate = self.shortened(candidate, len(candidate) - 2 - over)
        row, n = self._layout.pair(context, candidate, between, self.tokenizer)
        return row, n if segments else len(row)

    def cuts_pair(self, context: int, candidate: int) -> tuple[bool, bool]:
        """Which of a context and a candidate of so many tokens are cut to fit into ``pair_tokens``."""
        first, second = self.kept_of_pair(context, candidate)
        return first < context - 2, second < candidate - 2

    def kept_of_pair(self, context: int, candidate: int) -> tuple[int, int]:
        """Tokens left of each between start and end; the lengths given include these two."""
        if not self.config.pair_tokens:
            return context - 2, candidate - 2
        return longest_first(context - 2, candidate - 2, self._pair_room)

    @property
    def _pair_room(self) -> int:
        """Tokens of two texts that fit into ``pair_tokens`` beside the special ones."""
        marks = 4 if self.config.pairs == "apart" else 3 + len(self._between[0])
        return self.config.pair_tokens - marks

    @functools.cached_property
    def _between(self) -> tuple[Ids, bool]:
        """Tokens between the two texts of a pair beside the first one's end, and whether segments differ."""
        if isinstance(self.tokenizer, PairTemplate):
            return np.array(self.tokenizer.between_ids, np.int32), self.tokenizer.pair_segments
        return np.empty(0, np.int32), True

    def shortened(self, row: Ids, n: int, *, keep_end: bool = False) -> Ids:
        """A sequence with its first (or last) n tokens between start and end."""
        if len(row) - 2 <= n:
            return row
        return between_marks(row[len(row) - 1 - n : -1] if keep_end else row[1 : n + 1], self.tokenizer)

    def pair_length(self, context: int, candidate: int) -> int:
        """How many tokens ``pair`` gives at most, for a context and a candidate of these lengths."""
        return min(self._whole_pair(context, candidate), self.config.pair_limit())

    def _whole_pair(self, context: int, candidate: int) -> int:
        """Tokens of a pair of which nothing is cut."""
        between = len(self._between[0]) if self.config.pairs == "joined" else 0
        return context + candidate - self.config.shared_marks + between

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens at the beginning of a sequence that a head's reduction ignores."""
        return 0 if self.config.pool_prompts or not prompt else 1 + self._store.length(prompt)

    def pad(self, sequences: Sequence[Ids], *, length: int, prompt: str = "") -> Tokens:
        """Sequences -> Tokens [n, length], padded on the right, all in segment 0.

        Args:
            sequences: of ids.
            length: of the rows.
            prompt: that the sequences begin with; needed if its tokens do not count in a reduction.
        """
        ids = np.full((len(sequences), length), self.tokenizer.pad_id, np.int32)
        lengths = np.fromiter(map(len, sequences), int, len(sequences))
        mask = np.arange(length)[None, :] < lengths[:, None]
        if len(sequences):
            ids[mask] = np.concatenate(sequences)
        mask = self._layout.real(ids, mask, self.tokenizer)
        left_out = self.prompt_tokens(prompt)
        # The last token always counts, also where a prompt alone fills the sequence.
        first = np.minimum(left_out, lengths - 1)[:, None]
        pooled = mask & (np.arange(length)[None, :] >= first) if left_out else None
        return Tokens(ids, mask, np.zeros_like(ids), pooled=pooled)

    def pad_contexts(self, sequences: Sequence[Ids], *, length: int | None = None) -> Tokens:
        """Contexts -> Tokens, padded to their bucket or to the length given."""
        if length is None:
            length = self.config.bucket(max(map(len, sequences)), self.config.context_tokens)
        return self.pad(sequences, length=length, prompt=self.config.context_prompt)

    def pad_candidates(self, sequences: Sequence[Ids], *, length: int | None = None) -> Tokens:
        """Candidates -> Tokens, padded to their bucket or to the length given."""
        if length is None:
            length = self.config.bucket(max(map(len, sequences)), self.config.candidate_tokens)
        return self.pad(sequences, length=length, prompt=self.config.candidate_prompt)

    def pad_pairs(self, pairs: Sequence[tuple[Ids, int]], *, length: int | None = None) -> Tokens:
        """Pairs -> Tokens with segments, padded to their bucket or to the length given."""
        if length is None:
            length = self.config.bucket(max(len(ids) for ids, _ in pairs), self.config.pair_limit())
        tokens = self.pad([ids for ids, _ in pairs], length=length)
        first = np.fromiter((n for _, n in pairs), int, len(pairs))[:, None]
        segments = (np.arange(length)[None, :] >= first) & tokens.mask
        tokens = dataclasses.replace(tokens, segments=segments.astype(np.int32))
        prompts = (self.config.context_prompt, self.config.candidate_prompt)
        left_out = [self.prompt_tokens(prompt) for prompt in prompts]
        if self.config.pairs == "joined" or not any(left_out):
            return tokens
        place = np.arange(length)[None, :] - np.where(segments, first, 0)  # within its own text
        pooled = tokens.mask & (place >= np.where(segments, left_out[1], left_out[0]))
        return dataclasses.replace(tokens, pooled=pooled)
