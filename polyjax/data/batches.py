"""Examples -> batches: a shuffled, length-grouped plan of batches, which grain hands to the collator.

The plan is a pure function of (seed, epoch), and a batch a pure function of the plan's entry, so that
the iterator's state is one number, and a resumed run takes the same batches.
"""

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import flags

from polyjax.data.candidates import read_candidates
from polyjax.data.collate import CandidateSource, Collator, PlannedBatch
from polyjax.data.grain_library import grain
from polyjax.data.guide import Guide
from polyjax.data.negatives import Negatives
from polyjax.data.text import TextEncoder
from polyjax.errors import InputError
from polyjax.types import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How training batches are drawn.

    Attributes:
        batch_size: contexts of a batch.
        candidates: what a label is ranked among: ``batch``, the labels of the batch; ``inline``,
            the candidates that its row lists; ``sampled``, ``n_negatives`` labels of other rows; ``fixed``,
            the lines of ``fixed_file``. ``auto`` is batch for bi and poly, sampled for a cross-encoder.
        n_negatives: sampled negatives of a context.
        hard_negatives: at most this many of a row's own ``negatives`` are added as candidates, drawn anew in
            each epoch; no effect if rows have no negatives.
        fixed_file: candidates of all contexts, one a line; every label must be among them.
        mask_duplicates: exclude right answers of a context, and copies of them, from its negatives, wherever
            these come from (the paper does not).
        group_batches: number of batches whose examples are sorted by length together; 1 for no grouping.
        workers: processes that collate; 0 collates in threads of this process.
        chunk: contexts whose activations are in memory at once, for a batch that does not fit: same
            negatives, loss and gradients, at the cost of a second forward pass (a cross-encoder with a
            built-in loss needs none, except in float16); 0 for the whole batch.
    """

    batch_size: int = 32
    candidates: Literal["auto", "batch", "inline", "sampled", "fixed"] = "auto"
    n_negatives: int = 15
    hard_negatives: int = 8
    fixed_file: Path | None = None
    mask_duplicates: bool = True
    group_batches: int = 64
    workers: int = 0
    chunk: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        least = {
            "batch_size": 1,
            "n_negatives": 1,
            "hard_negatives": 0,
            "group_batches": 1,
            "workers": 0,
            "chunk": 0,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"batch.{name}", expected=f"at least {smallest}", got=getattr(self, name))
        if self.chunk > self.batch_size:
            raise InputError(
                "batch.chunk", expected=f"at most the {self.batch_size} contexts of a batch", got=self.chunk
            )
        if (self.candidates == "fixed") != (self.fixed_file is not None):
            raise InputError(
                "batch.fixed_file",
                problem="`batch.candidates` of fixed and a file of fixed candidates go together",
                got=self.fixed_file,
                fix="give both or neither",
            )

    def source(self, inputs: Literal["dual", "pairs"]) -> CandidateSource:
        """Where candidates come from, for scorers that encode both sides separately or as pairs."""
        if self.candidates == "auto":
            return "batch" if inputs == "dual" else "sampled"
        return self.candidates


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
        check_enough(len(shapes), config)
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
        indices = self._epoch(epoch)[place]
        context, label = map(int, self._shapes[indices].max(axis=0))
        return PlannedBatch(epoch, indices, (context, label))

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


def prepare_texts(examples: Sequence[Example], text: TextEncoder) -> None:
    """Tokenise all contexts, labels and hard negatives at once, and keep their ids."""
    text.prepare((t for e in examples for t in (*e.context, e.label_text, *e.negatives)), keep=True)


def padded_shapes(examples: Sequence[Example], text: TextEncoder) -> np.ndarray:
    """The context and candidate buckets of each example's context and label, int [n, 2]."""
    config = text.config
    return np.array(
        [
            (
                config.bucket(text.context_length(e.context), config.context_tokens),
                config.bucket(text.candidate_length(e.label_text), config.candidate_tokens),
            )
            for e in examples
        ]
    )


def check_enough(n: int, config: BatchConfig) -> None:
    """Raise InputError where n training rows are too few for a batch."""
    if n < config.batch_size:
        expected = f"at most the {n} examples of the training split"
        raise InputError("batch.batch_size", expected=expected, got=config.batch_size)


def check_training_rows(
    examples: Sequence[Example], config: BatchConfig, *, inputs: Literal["dual", "pairs"], needs_teacher: bool
) -> None:
    """Check rows before anything is tokenised or compiled; arguments as for ``make_loader``.

    Raises:
        InputError: they are fewer than a batch, or a row has no candidates or scores that training needs.
    """
    check_enough(len(examples), config)
    source = config.source(inputs)
    if needs_teacher or source in ("inline", "sampled"):
        negatives = Negatives(
            examples,
            source=source,
            seed=0,
            n_negatives=config.n_negatives,
            fixed=(),
            n_hard=config.hard_negatives,
            mask=config.mask_duplicates,
        )
        negatives.check(needs_teacher=needs_teacher)


def make_loader(
    examples: Sequence[Example],
    text: TextEncoder,
    config: BatchConfig,
    *,
    inputs: Literal["dual", "pairs"],
    n_batches: int,
    seed: int,
    first: int = 0,
    part: np.ndarray | None = None,
    needs_teacher: bool = False,
    guide: Guide | None = None,
) -> tuple[grain.DatasetIterator, BatchPlan]:
    """An iterator over the training batches from number ``first`` up to ``n_batches``, and the plan of all.

    A batch is a function of its number, so the number of completed steps is all that a resumed run needs
    to know. Grain's own iterator state would tie it to the same number of workers. Each process of a run
    asks for its ``part``, the rows of every batch that its devices compute, int [p]. A loss that learns a
    teacher's scores ``needs_teacher``: then every row must carry them. A ``guide`` finds false negatives
    among the labels of a batch.
    """
    prepare_texts(examples, text)
    plan = BatchPlan(padded_shapes(examples, text), config, seed=seed, n_batches=n_batches)
    collator = Collator(
        examples,
        text,
        inputs=inputs,
        source=config.source(inputs),
        seed=seed,
        n_negatives=config.n_negatives,
        fixed=() if config.fixed_file is None else read_candidates(config.fixed_file),
        n_hard=config.hard_negatives,
        mask_duplicates=config.mask_duplicates,
        guide=guide,
        part=part,
    )
    collator.negatives.check(needs_teacher=needs_teacher)
    return load(plan, collator, first=first, workers=config.workers), plan


def load(plan: Any, collator: grain.transforms.Map, *, first: int, workers: int) -> grain.DatasetIterator:
    """The batches that a collator makes of a plan's entries from number ``first`` on, prefetched.

    Args:
        plan: has a length, and entries by number.
        collator: entry -> batch.
        first: number of the first batch.
        workers: processes that collate; 0 for a thread of this one.
    """
    dataset = grain.MapDataset.source(plan)[first:].map(collator)
    loader = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags, which polyjax does not use
        options = grain.MultiprocessingOptions(num_workers=workers)
        loader = loader.mp_prefetch(options, worker_init_fn=_end_with_parent)
    return iter(loader)


def _end_with_parent(index: int, count: int) -> None:
    """In a worker: exit when the run's process has ended. A full queue would keep it waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
