"""Which pairs make the rows of a batch: all drawn anew in each epoch, several to a row.

A plan is a pure function of (seed, epoch), and a batch one of its number: a resumed run takes the same.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from polyjax.data.corpora.corpus import Pairs, index_dtype
from polyjax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainBatchConfig:
    """How batches of pairs are drawn.

    Attributes:
        tokens: places of a batch, padding included: rows times their length.
        chunk: tokens whose activations are kept in memory at once, for a batch that does not fit: same
            gradients, at the cost of a second forward pass; 0 for all.
        packing: pairs share rows of one length, none of which sees another; else a row is a pair, and rows of
            a batch are of one length bucket.
        corrupted: share of the pairs whose second text is another conversation's.
        masked: share of a pair's tokens that are masked, to be predicted.
        replaced: share of those that become the mask token.
        random: share of those that become a random token; the rest stay unchanged.
        group_batches: number of batches whose pairs are packed, or sorted by length, together.
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
        """Raise InputError for an invalid value."""
        for name, smallest in {"tokens": 1, "chunk": 0, "group_batches": 1, "workers": 0}.items():
            if getattr(self, name) < smallest:
                raise InputError(f"batch.{name}", expected=f"at least {smallest}", got=getattr(self, name))
        if self.chunk > self.tokens:
            expected = f"at most the {self.tokens} tokens of `batch.tokens`"
            raise InputError("batch.chunk", expected=expected, got=self.chunk)
        for name in ("corrupted", "masked", "replaced", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"batch.{name}", expected="a share in [0, 1]", got=getattr(self, name))
        if self.replaced + self.random > 1:
            problem = f"with the {self.random:g} of `batch.random` it is more than 1"
            raise InputError("batch.replaced", problem=problem, got=self.replaced, fix="lower one of them")


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


class RaggedRows:
    """Rows of different numbers of integers, in two arrays.

    Args:
        members: of all rows, one after the other, integers [n].
        ends: where each row begins, and where the last ends, integers [n rows + 1].
    """

    def __init__(self, members: np.ndarray, ends: np.ndarray):
        self.members, self.ends = members, ends

    @classmethod
    def of_sizes(cls, members: np.ndarray, sizes: np.ndarray) -> "RaggedRows":
        """Rows of these sizes."""
        ends = np.zeros(len(sizes) + 1, index_dtype(len(members)))
        np.cumsum(sizes, out=ends[1:])
        return cls(members, ends)

    @classmethod
    def joined(cls, parts: "Sequence[RaggedRows]") -> "RaggedRows":
        """The rows of all parts."""
        sizes = np.concatenate([np.diff(part.ends) for part in parts])
        return cls.of_sizes(np.concatenate([part.members for part in parts]), sizes)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> np.ndarray:
        """A row's members."""
        return self.members[self.ends[row] : self.ends[row + 1]]

    def taken(self, rows: np.ndarray) -> "RaggedRows":
        """These rows, in this order."""
        sizes = np.diff(self.ends)[rows]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return RaggedRows.of_sizes(self.members[np.repeat(self.ends[:-1][rows], sizes) + within], sizes)


def pack(lengths: np.ndarray, room: int, most: int) -> RaggedRows:
    """Sequences of these lengths in rows of ``room`` tokens, ``most`` to a row: the places of each row's.

    A row takes the longest sequence that fits until none fits; rows of the same lengths are made at once.

    >>> [sorted(row.tolist()) for row in pack(np.array([3, 5, 2, 7, 8]), 10, 4)]
    [[2, 4], [0, 3], [1]]
    """
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=room + 1)
    if len(counts) > room + 1:
        raise InputError("lengths", expected=f"at most {room} tokens, a row's", got=len(counts) - 1)
    ends = np.cumsum(counts)  # of each length's places in ``order``; they are taken from the end
    members, sizes = [order[:0]], [order[:0]]
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
        rows = np.concatenate(taken, axis=1)
        members.append(rows.ravel())
        sizes.append(np.full(times, rows.shape[1]))
    return RaggedRows.of_sizes(np.concatenate(members), np.concatenate(sizes))


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """An epoch's batches, as arrays: about 9 bytes for each pair of a corpus.

    Attributes:
        labels: the pair whose label each pair has, integers [n pairs].
        rows: the pairs of each row of all batches.
        batches: the first row of each batch, and where the last ends, integers [n batches + 1].
        lengths: tokens of each batch's rows, int32 [n batches].
    """

    labels: np.ndarray
    rows: RaggedRows
    batches: np.ndarray
    lengths: np.ndarray


_BLOCK = 1 << 20
"""Pairs that are looked at together."""

Lengths = Callable[[np.ndarray], np.ndarray]
"""Pairs -> their lengths in tokens."""
Made = Iterator[tuple[RaggedRows, np.ndarray, np.ndarray]]
"""Rows, and for each batch that they make the number of its rows and their length."""


class PairPlan:
    """All batches of all epochs, by number: a random-access source for grain. One epoch is in memory.

    Args:
        pairs: of the corpus.
        config: of the batches.
        seed: of the draws.
        n_batches: length of the plan, over all epochs.

    Attributes:
        row_length: of packed rows: the longest pair fits.
        most: pairs of a row.
        rows: of a batch of packed rows.

    Raises:
        InputError: a batch has no room for a row, or the corpus not enough pairs for a batch.
    """

    def __init__(self, pairs: Pairs, config: PretrainBatchConfig, *, seed: int, n_batches: int):
        self._pairs, self._config, self._seed, self._n_batches = pairs, config, seed, n_batches
        self.row_length = pairs.text.pair_limit()
        self.rows = config.tokens // self.row_length
        if not self.rows:
            limits = "`text.context_tokens` and `text.candidate_tokens`"
            expected = f"at least {self.row_length}, a row's ({limits})"
            raise InputError("batch.tokens", expected=expected, got=config.tokens)
        self.most = max(self.row_length // 12, 1) if config.packing else 1
        self._epochs = _LastEpoch()
        self._counts: list[int] = []
        if not self.batches_in(0):
            fix = "lower it; if these are the pairs to validate on, raise `corpus.held_out`"
            problem = f"{len(pairs):,} pairs do not fill a batch"
            raise InputError("batch.tokens", problem=problem, got=config.tokens, fix=fix)

    def of_length(self, n_batches: int) -> "PairPlan":
        """The same plan with another number of batches; the cached epoch is shared."""
        plan = object.__new__(PairPlan)
        vars(plan).update(vars(self), _n_batches=n_batches)
        return plan

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch; the draws differ in how well they pack."""
        while len(self._counts) <= epoch:
            self._counts.append(len(self._epoch(len(self._counts)).lengths))
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
        plan = self._epoch(epoch)
        rows = [plan.rows[row] for row in range(int(plan.batches[place]), int(plan.batches[place + 1]))]
        return PlannedRows(epoch, int(plan.lengths[place]), rows, [plan.labels[row] for row in rows])

    def __getstate__(self) -> dict:
        """The cached epoch is not pickled to worker processes."""
        return vars(self) | {"_epochs": None}

    def __setstate__(self, state: dict) -> None:
        """Restore."""
        vars(self).update(state, _epochs=_LastEpoch())

    def _epoch(self, epoch: int) -> EpochPlan:
        with self._epochs.lock:
            if self._epochs.number != epoch:
                self._epochs.plan = None  # before the next is made
                self._epochs.plan, self._epochs.number = self._make_epoch(epoch), epoch
            assert self._epochs.plan is not None
            return self._epochs.plan

    def labels_of(self, epoch: int) -> np.ndarray:
        """The pair whose label each pair has in an epoch, integers [n]; its own where it is not corrupted.

        A corrupted pair's label is of another conversation. If every draw gives the pair's own conversation,
        as in a corpus of one conversation, the pair stays uncorrupted.
        """
        draw = np.random.default_rng([self._seed, epoch, 0])
        n, conversation = len(self._pairs), self._pairs.conversation
        labels = np.arange(n, dtype=index_dtype(n))
        for start in range(0, n, _BLOCK):
            size = min(_BLOCK, n - start)
            open_ = start + np.flatnonzero(draw.random(size) < self._config.corrupted)
            for _ in range(20):
                other = draw.integers(n, size=len(open_))
                good = conversation[other] != conversation[open_]
                labels[open_[good]] = other[good]
                open_ = open_[~good]
                if not len(open_):
                    break
        return labels

    def _make_epoch(self, epoch: int) -> EpochPlan:
        pairs, config, n = self._pairs, self._config, len(self._pairs)
        labels = self.labels_of(epoch)

        def lengths_of(chosen: np.ndarray) -> np.ndarray:
            return pairs.context_lengths[chosen] + pairs.label_lengths[labels[chosen]]

        blocks = (np.arange(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))
        mean = max(sum(int(lengths_of(block).sum()) for block in blocks) / max(n, 1), 1.0)
        group = max(int(config.group_batches * config.tokens / mean), 1)
        draw = np.random.default_rng([self._seed, epoch, 1])
        order = np.arange(n, dtype=index_dtype(n))
        draw.shuffle(order)
        groups = [order[start : start + group] for start in range(0, n, group)]
        make = self._packed if config.packing else self._sorted
        made = list(make(groups, lengths_of, draw))
        sizes, lengths = (np.concatenate(part) for part in list(zip(*made, strict=True))[1:])
        batches = np.concatenate([[0], np.cumsum(sizes)])
        return EpochPlan(labels, RaggedRows.joined([part[0] for part in made]), batches, lengths)

    def _packed(self, groups: Sequence[np.ndarray], lengths_of: Lengths, draw: np.random.Generator) -> Made:
        """What does not fill a batch joins the next group; the last is left out of the epoch."""
        rest = RaggedRows.of_sizes(groups[0][:0], np.zeros(0, int))
        for chunk in groups:
            found = pack(lengths_of(chunk), self.row_length, self.most)
            rows = RaggedRows.joined([rest, RaggedRows(chunk[found.members], found.ends)])
            rows = rows.taken(draw.permutation(len(rows)))
            n = len(rows) // self.rows
            yield rows.taken(np.arange(n * self.rows)), np.full(n, self.rows), np.full(n, self.row_length)
            rest = rows.taken(np.arange(n * self.rows, len(rows)))

    def _sorted(self, groups: Sequence[np.ndarray], lengths_of: Lengths, draw: np.random.Generator) -> Made:
        """Batches of one bucket each; what is left out of the epoch is less than one.

        What does not fill a batch joins the next group and, in the last group, the next longer bucket.
        """
        text = self._pairs.text
        bucket_of = np.array([text.bucket(n, self.row_length) for n in range(self.row_length + 1)])
        rest = groups[0][:0]
        for number, chunk in enumerate(groups):
            chunk = np.concatenate([rest, chunk])
            buckets = bucket_of[lengths_of(chunk)]
            found: list[tuple[int, np.ndarray]] = []
            left = [chunk[:0]]
            for bucket in np.unique(buckets).tolist():
                size, members = self._config.tokens // bucket, chunk[buckets == bucket]
                if number == len(groups) - 1:
                    members = np.concatenate([*left, members])
                    left = []
                whole = len(members) // size * size
                found += [(bucket, members[i : i + size]) for i in range(0, whole, size)]
                left.append(members[whole:])
            found = [found[i] for i in draw.permutation(len(found))]
            flat = np.concatenate([chunk[:0], *(members for _, members in found)])
            yield (
                RaggedRows.of_sizes(flat, np.ones(len(flat), int)),
                np.array([len(members) for _, members in found], int),
                np.array([bucket for bucket, _ in found], int),
            )
            rest = np.concatenate(left)


class _LastEpoch:
    """The epoch that was asked for last; several threads may ask."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = -1
        self.plan: EpochPlan | None = None
