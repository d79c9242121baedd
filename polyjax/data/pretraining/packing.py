"""Which pairs make the rows of a batch: all drawn anew in each epoch, several to a row.

A plan is a pure function of (seed, epoch), and a batch one of its number: a resumed run takes the same.
"""

import dataclasses
from functools import lru_cache

import numpy as np

from polyjax.data.pretraining.corpus import Pairs
from polyjax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainBatchConfig:
    """How batches of pairs are drawn.

    Attributes:
        tokens: places of a batch, padding included: rows times their length.
        chunk: tokens whose activations are kept in memory at once, for a batch that does not fit: same
            gradients, a second forward pass; 0 for all.
        packing: pairs share rows of one length, none of which sees another; else a row is a pair, and rows of
            a batch are of one length bucket.
        corrupted: share of the pairs whose second text is another conversation's.
        masked: share of a pair's tokens that are to be guessed.
        replaced: share of those that become the mask token.
        random: share of those that become any token; the rest stays as it is.
        group_batches: so many batches' pairs are packed, or sorted by length, together.
        workers: processes that build batches; 0 for threads of this process.
    """

    tokens: int = 4096
    chunk: int = 0
    packing: bool = True
    corrupted: float = 0.5
    masked: float = 0.15
    replaced: float = 0.8
    random: float = 0.1
    group_batches: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        for name, smallest in {"tokens": 1, "chunk": 0, "group_batches": 1, "workers": 0}.items():
            if getattr(self, name) < smallest:
                raise InputError(f"batch {name} must be at least {smallest}, got {getattr(self, name)}")
        if self.chunk > self.tokens:
            raise InputError(f"batch chunk of {self.chunk} is more than the {self.tokens} tokens of a batch")
        for name in ("corrupted", "masked", "replaced", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"batch {name} must be in [0, 1], got {getattr(self, name)}")
        if self.replaced + self.random > 1:
            raise InputError(
                f"batch replaced of {self.replaced:g} and random of {self.random:g} are more than all; "
                "lower one of them"
            )


@dataclasses.dataclass(frozen=True)
class PlannedRows:
    """What makes a batch.

    Attributes:
        epoch: its pairs are drawn in.
        length: of its rows, in tokens.
        pairs: those of each row.
        labels: the pair whose label each pair has: its own, or another's where it is corrupted.
    """

    epoch: int
    length: int
    pairs: list[np.ndarray]
    labels: list[np.ndarray]


def pack(lengths: np.ndarray, room: int, most: int) -> list[np.ndarray]:
    """Sequences of these lengths in rows of ``room`` tokens, ``most`` to a row: the places of each row's.

    A row takes the longest that fits until none does; rows of the same lengths are made at once.

    >>> [sorted(row.tolist()) for row in pack(np.array([3, 5, 2, 7, 8]), 10, 4)]
    [[2, 4], [0, 3], [1]]
    """
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=room + 1)
    if len(counts) > room + 1:
        raise InputError(f"a sequence of {len(counts) - 1} tokens does not fit a row of {room}")
    ends = np.cumsum(counts)  # of each length's places in ``order``; they are taken from the end
    rows: list[np.ndarray] = []
    while counts.any():
        left, pattern = room, np.zeros_like(counts)
        for _ in range(most):
            fitting = np.flatnonzero((counts > pattern)[: left + 1])
            if not len(fitting):
                break
            pattern[fitting[-1]] += 1
            left -= int(fitting[-1])
        used = np.flatnonzero(pattern)
        times = int((counts[used] // pattern[used]).min())
        taken = []
        for length in used:
            n = times * int(pattern[length])
            taken.append(order[ends[length] - n : ends[length]].reshape(times, -1))
            ends[length] -= n
            counts[length] -= n
        rows += list(np.concatenate(taken, axis=1))
    return rows


class PairPlan:
    """All batches of all epochs, by number: a random-access source for grain.

    Args:
        pairs: of the corpus.
        config: of the batches.
        seed: of the draws.
        n_batches: length of the plan, over all epochs.
        multiple: rows of a batch are a multiple of it: of the devices that share them.

    Attributes:
        row_length: of packed rows: the longest pair fits.
        most: pairs of a row.
        rows: of a batch of packed rows.

    Raises:
        InputError: a batch has no room for a row, or the corpus not enough pairs for a batch.
    """

    def __init__(
        self, pairs: Pairs, config: PretrainBatchConfig, *, seed: int, n_batches: int, multiple: int = 1
    ):
        self._pairs, self._config, self._seed, self._n_batches = pairs, config, seed, n_batches
        self._multiple = multiple
        self.row_length = pairs.text.pair_limit()
        if not self._rows_of(self.row_length):
            raise InputError(
                f"batch tokens of {config.tokens} are less than a row of {self.row_length} tokens (text "
                f"context_tokens and candidate_tokens) on each of {multiple} devices; raise batch.tokens"
            )
        self.most = max(self.row_length // 12, 1) if config.packing else 1
        self.rows = self._rows_of(self.row_length)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._counts: list[int] = []
        if not self.batches_in(0):
            raise InputError(
                f"batch tokens of {config.tokens}: {len(pairs)} pairs do not fill a batch; lower it, "
                "or, where these are the pairs to validate on, raise corpus.held-out"
            )

    def _rows_of(self, length: int) -> int:
        return self._config.tokens // length // self._multiple * self._multiple

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch; the draws differ in how well they pack."""
        while len(self._counts) <= epoch:
            self._counts.append(len(self._epoch(len(self._counts))[0]))
        return self._counts[epoch]

    def __len__(self) -> int:
        """Batches of all epochs."""
        return self._n_batches

    def __getitem__(self, index: int) -> PlannedRows:
        """Batch number ``index``, counted over epochs."""
        epoch, place = 0, int(index)
        while place >= self.batches_in(epoch):
            place -= self.batches_in(epoch)
            epoch += 1
        batches, labels = self._epoch(epoch)
        length, rows = batches[place]
        return PlannedRows(epoch, length, rows, [labels[row] for row in rows])

    def __getstate__(self) -> dict:
        """The cache is not pickled to worker processes."""
        return {name: value for name, value in vars(self).items() if name != "_epoch"}

    def __setstate__(self, state: dict) -> None:
        """Restore with an empty cache."""
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def labels_of(self, epoch: int) -> np.ndarray:
        """The pair whose label each pair has in an epoch, int64 [n]; its own where it is not corrupted.

        A corrupted pair's label is of another conversation; where chance draws the own one again and again,
        which it does in a corpus of one conversation, the pair stays as it is.
        """
        draw = np.random.default_rng([self._seed, epoch, 0])
        n, conversation = len(self._pairs), self._pairs.conversation
        labels = np.arange(n)
        open_ = np.flatnonzero(draw.random(n) < self._config.corrupted)
        for _ in range(20):
            other = draw.integers(n, size=len(open_))
            good = conversation[other] != conversation[open_]
            labels[open_[good]] = other[good]
            open_ = open_[~good]
            if not len(open_):
                break
        return labels

    def _make_epoch(self, epoch: int) -> tuple[list[tuple[int, list[np.ndarray]]], np.ndarray]:
        pairs, config = self._pairs, self._config
        labels = self.labels_of(epoch)
        lengths = pairs.context_lengths + pairs.label_lengths[labels]
        draw = np.random.default_rng([self._seed, epoch, 1])
        order = draw.permutation(len(pairs))
        mean = max(float(lengths.mean()), 1.0)
        group = max(int(config.group_batches * config.tokens / mean), 1)
        batches: list[tuple[int, list[np.ndarray]]] = []
        rest: list[np.ndarray] = []
        for start in range(0, len(order), group):
            chunk = order[start : start + group]
            # What does not fill a batch joins the next group; the last is left to the next epoch.
            if config.packing:
                rows = rest + [chunk[row] for row in pack(lengths[chunk], self.row_length, self.most)]
                shuffled = [rows[i] for i in draw.permutation(len(rows))]
                whole = len(rows) // self.rows * self.rows
                batches += [
                    (self.row_length, shuffled[i : i + self.rows]) for i in range(0, whole, self.rows)
                ]
                rest = shuffled[whole:]
            else:
                found, left = self._bucketed(np.concatenate([*rest, chunk]), lengths, draw)
                batches, rest = batches + found, [left]
        return batches, labels

    def _bucketed(
        self, chunk: np.ndarray, lengths: np.ndarray, draw: np.random.Generator
    ) -> tuple[list[tuple[int, list[np.ndarray]]], np.ndarray]:
        """Batches of pairs of one bucket each, in a random order, and the pairs that do not fill one."""
        text = self._pairs.text
        buckets = np.array([text.bucket(int(n), self.row_length) for n in lengths[chunk]])
        found, left = [], [chunk[:0]]
        for bucket in np.unique(buckets):
            rows, members = self._rows_of(int(bucket)), chunk[buckets == bucket]
            whole = len(members) // rows * rows
            for i in range(0, whole, rows):
                found.append((int(bucket), [members[j : j + 1] for j in range(i, i + rows)]))
            left.append(members[whole:])
        return [found[i] for i in draw.permutation(len(found))], np.concatenate(left)
