"""Examples -> batches: a shuffled, length-grouped plan of batches, collated by grain workers.

The plan is a pure function of (seed, epoch), and a batch a pure function of the plan's entry, so that
the iterator's state is one number, and a resumed run takes the same batches.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, assert_never

import grain
import numpy as np
from absl import flags

from polyjax.data.text import TextEncoder
from polyjax.types import Batch, DualInputs, Example, InputError, PairInputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How training batches are drawn.

    Attributes:
        batch_size: contexts of a batch; for bi and poly also the candidates each is ranked among.
        n_negatives: sampled negatives of a context, for a cross-encoder.
        mask_duplicates: leave copies of a label out of its in-batch negatives (the paper does not).
        group_batches: so many batches' examples are sorted by length together; 1 for no grouping.
        workers: processes that collate; 0 collates in threads of this process.
        chunk: contexts whose activations are kept in memory at once, for a batch that does not fit: same
            negatives, loss and gradients, for a second forward pass; 0 for the whole batch.
    """

    batch_size: int = 32
    n_negatives: int = 15
    mask_duplicates: bool = True
    group_batches: int = 64
    workers: int = 0
    chunk: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        least = {"batch_size": 1, "n_negatives": 1, "group_batches": 1, "workers": 0, "chunk": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"batch {name} must be at least {smallest}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Which examples (indices, int [b]) make a batch, and the epoch they are taken in."""

    epoch: int
    indices: np.ndarray


class BatchPlan:
    """All batches of all epochs, by number: a random-access source for grain.

    Each epoch is a new permutation. It is cut into groups of ``group_batches`` batches; within a group
    examples are ordered by padded shape (candidate bucket, then context bucket) so that batches pad
    little, and the group's batches are shuffled. An incomplete last batch is left to the next shuffle.

    Args:
        shapes: int [n, 2], the buckets of each example's context and label.
        config: batch size and grouping.
        seed: of the permutations.
        n_batches: length of the plan, over all epochs.
    """

    def __init__(self, shapes: np.ndarray, config: BatchConfig, *, seed: int, n_batches: int):
        if len(shapes) < config.batch_size:
            raise InputError(
                f"batch batch_size of {config.batch_size} is larger than the training split "
                f"of {len(shapes)} examples"
            )
        self._shapes = shapes
        self._config = config
        self._seed = seed
        self._n_batches = n_batches
        self.batches_per_epoch = len(shapes) // config.batch_size
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __len__(self) -> int:
        """Batches of all epochs."""
        return self._n_batches

    def __getitem__(self, index: int) -> PlannedBatch:
        """Batch number ``index``, counted over epochs."""
        epoch, place = divmod(int(index), self.batches_per_epoch)
        return PlannedBatch(epoch, self._epoch(epoch)[place])

    def __getstate__(self) -> dict:
        """The cache is not pickled to worker processes."""
        return {name: value for name, value in vars(self).items() if name != "_epoch"}

    def __setstate__(self, state: dict) -> None:
        """Restore with an empty cache."""
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        draw = np.random.default_rng([self._seed, epoch])
        size, group = self._config.batch_size, self._config.group_batches
        order = draw.permutation(len(self._shapes))[: self.batches_per_epoch * size]
        batches = []
        for start in range(0, len(order), group * size):
            chunk = order[start : start + group * size]
            if group > 1:
                context, label = self._shapes[chunk].T
                chunk = chunk[np.lexsort((context, label))]
            rows = chunk.reshape(-1, size)
            batches.append(rows[draw.permutation(len(rows))])
        return np.concatenate(batches)


def text_key(text: str) -> int:
    """A hash of the text, case and white space aside; int32.

    >>> text_key("Yes  please") == text_key("yes please")
    True
    """
    return zlib.crc32(" ".join(text.lower().split()).encode()) - 2**31


class Collator(grain.transforms.Map):
    """A planned batch -> Batch of numpy arrays.

    Args:
        examples: the training split.
        text: tokenises and pads.
        config: batch settings.
        inputs: ``dual`` takes the labels of the batch as candidates, ``pairs`` samples negatives.
        seed: of the sampled negatives.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        text: TextEncoder,
        config: BatchConfig,
        *,
        inputs: Literal["dual", "pairs"],
        seed: int,
    ):
        self._examples = examples
        self._text = text
        self._config = config
        self._inputs: Literal["dual", "pairs"] = inputs
        self._seed = seed

    # grain's abstract ``map`` has no annotations, so its result is inferred to be None.
    def map(self, element: PlannedBatch) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batch's arrays."""
        examples = [self._examples[i] for i in element.indices]
        match self._inputs:
            case "dual":
                return self._dual(examples)
            case "pairs":
                return self._pairs(examples, element)
            case other:
                assert_never(other)

    def _dual(self, examples: list[Example]) -> Batch:
        text, b = self._text, len(examples)
        inputs = DualInputs(
            context=text.pad_contexts([text.context(e.context) for e in examples]),
            candidates=text.pad_candidates([text.candidate(e.label_text) for e in examples]),
        )
        keys = np.array([text_key(e.label_text) for e in examples], np.int32)
        return Batch(
            inputs,
            label=np.arange(b, dtype=np.int32),
            where=np.ones((1, b), bool),
            keys=keys if self._config.mask_duplicates else None,
        )

    def _pairs(self, examples: list[Example], planned: PlannedBatch) -> Batch:
        text, pairs = self._text, []
        for i, example in zip(planned.indices, examples, strict=True):
            context = text.context(example.context)
            texts = [example.label_text, *self._sample_negatives(example, int(i), planned.epoch)]
            pairs += [text.pair(context, text.candidate(candidate)) for candidate in texts]
        c = self._config.n_negatives + 1
        tokens = text.pad_pairs(pairs)
        shaped = dataclasses.replace(
            tokens, **{name: value.reshape(-1, c, value.shape[1]) for name, value in vars(tokens).items()}
        )
        return Batch(PairInputs(shaped), np.zeros(len(examples), np.int32), np.ones((1, c), bool), keys=None)

    def _sample_negatives(self, example: Example, index: int, epoch: int) -> list[str]:
        """Other examples' labels, none a copy of the label or of a context turn."""
        draw = np.random.default_rng([self._seed, epoch, index])
        taken = {text_key(t) for t in (example.label_text, *example.context)}
        negatives: list[str] = []
        for _ in range(100 * self._config.n_negatives):
            candidate = self._examples[int(draw.integers(len(self._examples)))].label_text
            if (key := text_key(candidate)) not in taken:
                taken.add(key)
                negatives.append(candidate)
                if len(negatives) == self._config.n_negatives:
                    return negatives
        raise InputError(
            f"batch n_negatives of {self._config.n_negatives}: the training split has too few "
            "different labels; lower batch.n_negatives"
        )


def padded_shapes(examples: Sequence[Example], text: TextEncoder) -> np.ndarray:
    """The context and candidate buckets of each example's context and label, int [n, 2]."""
    config = text.config
    return np.array(
        [
            (
                config.bucket(len(text.context(e.context)), config.context_tokens),
                config.bucket(len(text.candidate(e.label_text)), config.candidate_tokens),
            )
            for e in examples
        ]
    )


def make_loader(
    examples: Sequence[Example],
    text: TextEncoder,
    config: BatchConfig,
    *,
    inputs: Literal["dual", "pairs"],
    n_batches: int,
    seed: int,
    first: int = 0,
) -> tuple[grain.DatasetIterator, BatchPlan]:
    """An iterator over the training batches from number ``first`` up to ``n_batches``, and the plan of all.

    A batch is a function of its number, so that the number of updates made is all that a resumed run needs
    to know: grain's own iterator state would tie it to the same number of workers.
    """
    text.prepare([*(turn for e in examples for turn in e.context), *(e.label_text for e in examples)])
    plan = BatchPlan(padded_shapes(examples, text), config, seed=seed, n_batches=n_batches)
    collator = Collator(examples, text, config, inputs=inputs, seed=seed)
    dataset = grain.MapDataset.source(plan)[first:].map(collator)
    loader = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if config.workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags, which polyjax does not use
        loader = loader.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return iter(loader), plan
