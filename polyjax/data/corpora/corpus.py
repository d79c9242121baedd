"""The tokens of a corpus of conversations, and the pairs of context and next utterance that it holds."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from polyjax.data.text import TextConfig
from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import InputError

_BLOCK = 1 << 20
"""Pairs that are looked at together."""
AT_ONCE = 4096
"""Conversations that are tokenised together."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Texts of which each follows the one before: turns of a dialogue, sentences of a document.

    Attributes:
        id: of the conversation; those that share one, as paths through a thread do, are held out together.
        turns: texts, oldest first.
        first_label: the first turn that is used as a label; those before it are context
            only, for example where two threads of a discussion share their beginning.
    """

    id: str
    turns: tuple[str, ...]
    first_label: int = 1


@dataclasses.dataclass(frozen=True)
class CorpusTokens:
    """A corpus as flat arrays, which may be memory-mapped; a turn is kept once, whatever contexts it is in.

    Attributes:
        ids: tokens of all turns, without special ones, integers [n tokens].
        turns: where each turn begins in ``ids``, and where the last ends, int64 [n turns + 1].
        conversations: the first turn of each conversation, and the number of turns, int64
            [n conversations + 1].
        first_labels: see Conversation, int64 [n conversations].
    """

    ids: np.ndarray
    turns: np.ndarray
    conversations: np.ndarray
    first_labels: np.ndarray

    def __getstate__(self) -> dict[str, np.ndarray | Path]:
        """Memory-mapped arrays go to other processes by the names of their files, not as copies."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: Path(array.filename) if isinstance(array, np.memmap) and array.filename else array
            for name, array in arrays.items()
        }

    def __setstate__(self, state: dict[str, np.ndarray | Path]) -> None:
        """Map the files again."""
        for name, value in state.items():
            mapped = np.load(value, mmap_mode="r", allow_pickle=False) if isinstance(value, Path) else value
            object.__setattr__(self, name, mapped)

    def turn(self, number: int) -> np.ndarray:
        """The tokens of a turn."""
        return self.ids[self.turns[number] : self.turns[number + 1]]

    def lengths(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Tokens of the turns from ``first`` up to, and without, ``last``; for arrays of both."""
        return self.turns[last] - self.turns[first]


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest integers that hold the ids of a vocabulary.

    >>> token_dtype(30522).__name__
    'uint16'
    """
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def index_dtype(n: int) -> type[np.signedinteger]:
    """The smallest integers that count to n.

    >>> index_dtype(10**9).__name__
    'int32'
    """
    return np.int32 if n < 1 << 31 else np.int64


def tokenise(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, *, allow_empty: bool = False
) -> CorpusTokens:
    """A corpus in memory as tokens; conversations without a label are left out.

    Raises:
        InputError: there is no pair in it, and that is not allowed.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    ids: list[np.ndarray] = [np.zeros(0, dtype)]
    lengths: list[int] = []
    counts: list[int] = []
    first_labels: list[int] = []
    for batch in _batches(conversations, AT_ONCE):
        batch = [c for c in batch if len(c.turns) > max(c.first_label, 1)]
        encoded = tokenizer.encode([turn for c in batch for turn in c.turns])
        lengths += map(len, encoded)
        ids.append(np.fromiter((id_ for turn in encoded for id_ in turn), dtype))
        counts += (len(c.turns) for c in batch)
        first_labels += (max(c.first_label, 1) for c in batch)
    if not counts and not allow_empty:
        raise InputError("corpus.files", problem="there is no pair of a text and the one that follows it")
    return CorpusTokens(np.concatenate(ids), _ends(lengths), _ends(counts), np.array(first_labels, np.int64))


def _batches(items: Iterable[Conversation], size: int) -> Iterator[list[Conversation]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _ends(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])


class Pairs:
    """All pairs of a corpus: a label turn, and the turns of its conversation before it as context.

    Args:
        tokens: of the corpus.
        text: how many turns and tokens are read.
        tokenizer: of its special tokens.
        most_tokens: only conversations of so many tokens together, drawn once; all where 0.

    Raises:
        InputError: not even one conversation has so few tokens.

    Attributes:
        label: the turn that is the label, integers [n].
        first: the first turn of the context, integers [n].
        conversation: that it belongs to, integers [n].
        context_lengths: tokens of each context, special ones included, int32 [n].
        label_lengths: tokens of each label, its end token included, int32 [n].
    """

    def __init__(self, tokens: CorpusTokens, text: TextConfig, tokenizer: Tokenizer, *, most_tokens: int = 0):
        self.tokens, self.text, self.tokenizer = tokens, text, tokenizer
        begins, ends = tokens.conversations[:-1], tokens.conversations[1:]
        counts = ends - begins - tokens.first_labels
        if most_tokens:
            counts = np.where(_drawn(tokens.lengths(begins, ends), most_tokens), counts, 0)
        n, of_turns = int(counts.sum()), index_dtype(len(tokens.turns))
        self.conversation = np.repeat(np.arange(len(counts), dtype=index_dtype(len(counts))), counts)
        self.label, self.first = np.empty(n, of_turns), np.empty(n, of_turns)
        self.context_lengths, self.label_lengths = np.empty(n, np.int32), np.empty(n, np.int32)
        before = np.cumsum(counts) - counts
        for start in range(0, n, _BLOCK):  # what is in between is larger than the result
            block = slice(start, min(start + _BLOCK, n))
            conversation = self.conversation[block]
            within = np.arange(block.start, block.stop) - before[conversation]
            label = begins[conversation] + tokens.first_labels[conversation] + within
            first = np.maximum(begins[conversation], label - text.max_turns)
            between = (label - first - 1) * len(tokenizer.separator_ids)
            plain = tokens.lengths(first, label) + between
            self.label[block], self.first[block] = label, first
            self.context_lengths[block] = np.minimum(plain + 2, text.context_tokens)
            own = tokens.lengths(label, label + 1) + 1
            self.label_lengths[block] = np.minimum(own, text.candidate_tokens - 1)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.label)

    def context(self, pair: int) -> np.ndarray:
        """start, turns with separators between them, end; the oldest tokens are cut. Int32."""
        tokenizer, pieces = self.tokenizer, []
        for turn in range(int(self.first[pair]), int(self.label[pair])):
            pieces += [tokenizer.separator_ids, self.tokens.turn(turn)]
        joined = np.concatenate(pieces[1:]).astype(np.int32)
        room = self.text.context_tokens - 2
        cut = joined[max(len(joined) - room, 0) :]
        return np.concatenate([[tokenizer.start_id], cut, [tokenizer.end_id]]).astype(np.int32)

    def label_tokens(self, pair: int) -> np.ndarray:
        """A pair's label and an end token, as a pair's second part; the last tokens are cut. Int32."""
        kept = self.tokens.turn(int(self.label[pair]))[: self.text.candidate_tokens - 2]
        return np.concatenate([kept, [self.tokenizer.end_id]]).astype(np.int32)


def _drawn(lengths: np.ndarray, most: int) -> np.ndarray:
    """Which conversations of these lengths are chosen, at random, of ``most`` tokens together; bool [n]."""
    order = np.random.default_rng(0).permutation(len(lengths))
    chosen = order[np.cumsum(lengths[order]) <= most]
    if not len(chosen):
        raise InputError(
            "corpus.tokens",
            expected=f"at least {lengths.min():,}, the tokens of the shortest conversation",
            got=most,
        )
    return np.isin(np.arange(len(lengths)), chosen)
