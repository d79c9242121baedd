"""Which sequences share a batch, and to which length they are padded: pure numpy functions of lengths."""

import dataclasses
import math
from collections.abc import Iterator, Sequence, Sized

import jax
import numpy as np

from polyjax.data.text import TextConfig
from polyjax.types import Tokens

MANY_BATCHES, STEP = 64, 8
"""Number of full batches from which each is padded to its own longest row, to a multiple of these tokens.

Each such length is one more program to compile, which pays only for many texts.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How sequences are batched into few shapes.

    Attributes:
        text: length buckets.
        tokens: rows of a full batch times their padded length, on each device.
        devices: devices that share the rows of a batch.
    """

    text: TextConfig
    tokens: int
    devices: int = 1

    def full(self, length: int) -> int:
        """Rows of a full batch of a padded length."""
        return self.devices * max(self.tokens // length, 1)

    def rows(self, n: int, length: int) -> int:
        """Rows to which a batch of n sequences is filled up: 1, 8 or full, the same number on each device."""
        full = self.full(length)
        few = (-(-rows // self.devices) * self.devices for rows in (1, 8))
        return next((rows for rows in few if n <= rows < full), full)

    def batches(
        self, lengths: np.ndarray, limit: int, longest: int | None = None
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Places and padded length of each batch.

        Few sequences: one padded length per bucket, shortest first. Many: tightly padded batches in a fixed
        shuffled order.

        Args:
            lengths: of the sequences, in tokens, int [n].
            limit: the longest that there can be.
            longest: padded length of all if the configuration pads to the longest; by default the largest.
        """
        if not len(lengths):
            return
        if self.text.padding == "longest":
            padded = np.full(len(lengths), max(longest or int(lengths.max()), 1))
        else:
            padded = np.array([self.text.bucket(n, limit) for n in lengths.tolist()])
            if padded.sum() >= self._many:
                batches = list(self._tight(lengths, limit))
                # With the shortest first, the displayed time left would be far too short until the end.
                yield from (batches[i] for i in np.random.default_rng(0).permutation(len(batches)))
                return
        for length in map(int, np.unique(padded)):
            (places,) = np.nonzero(padded == length)
            for part in np.array_split(places, math.ceil(len(places) / self.full(length))):
                yield part, length

    def shapes(self, n: int, limit: int) -> list[tuple[int, int]]:
        """All rows and padded lengths that batches of up to n sequences can have, in increasing order.

        Args:
            n: number of sequences.
            limit: the longest that there can be, in tokens.
        """
        lengths = {self.text.bucket(length, limit) for length in range(1, limit + 1)}
        if self.text.padding == "bucket" and n * limit >= self._many:
            lengths |= {min(length, limit) for length in range(STEP, limit + STEP, STEP)}
        found = {
            (self.rows(rows, length), length)
            for length in lengths
            for rows in range(1, min(n, self.full(length)) + 1)
        }
        return sorted(found)

    @property
    def _many(self) -> int:
        """Tokens, padding included, that make many full batches."""
        return MANY_BATCHES * self.devices * self.tokens

    def _tight(self, lengths: np.ndarray, limit: int) -> Iterator[tuple[np.ndarray, int]]:
        """Full batches, longest first, each padded to little more than its longest row."""
        places = np.argsort(-lengths, kind="stable")
        while len(places):
            length = min(-(-max(int(lengths[places[0]]), 1) // STEP) * STEP, limit)
            size = self.full(length)
            yield places[:size], length
            places = places[size:]


def lengths_of(sequences: Sequence[Sized]) -> np.ndarray:
    """How long sequences are, int [n]."""
    return np.fromiter(map(len, sequences), int, len(sequences))


def column_bucket(n: int) -> int:
    """Padded number of candidates per context: the next power of two, at least 16."""
    return max(16, 1 << (n - 1).bit_length())


def column_buckets(n: int) -> list[int]:
    """All values of ``column_bucket`` for up to n candidates."""
    return [1 << i for i in range(4, column_bucket(n).bit_length())]


def filled(tokens: Tokens, rows: int) -> Tokens:
    """The tokens [n, t], padded with empty rows to a number of rows."""
    short = rows - tokens.ids.shape[0]
    return jax.tree.map(lambda x: np.pad(x, ((0, short), (0, 0))), tokens)


def real(candidates: Sequence[Sized]) -> np.ndarray:
    """True where a context has a candidate, bool [b, c]."""
    counts = lengths_of(candidates)
    return np.arange(counts.max()) < counts[:, None]
