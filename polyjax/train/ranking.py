"""The objective of rankers: a context's label before the other candidates."""

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.pipeline import BatchConfig, make_loader
from polyjax.data.rows import Rows
from polyjax.data.text import TextEncoder
from polyjax.evaluation import check_candidates, evaluate, some
from polyjax.losses import ranking_loss
from polyjax.models import DualScorer, Scorer
from polyjax.scoring import TextScorer
from polyjax.train.objective import Validation, Work
from polyjax.train.sharding import BatchPlacer, one_device, row_devices
from polyjax.train.step import Loss
from polyjax.types import Batch, DualInputs, InputError


class Ranking:
    """Trains a scorer on examples, and ranks held-out rows with it; see ``Objective``.

    Args:
        scorer: with its initial parameters; they are given away.
        text: tokenises and pads.
        train_examples: their labels are learnt.
        valid: rows to rank.
        batch: how batches are drawn.
        validate_examples: at most so many of the rows are ranked, drawn once.
        mesh: devices that share the work, from ``make_mesh``; one device where None.

    Raises:
        InputError: the batch cannot be split, nothing would be learnt, or the rows cannot be ranked.
    """

    def __init__(
        self,
        scorer: Scorer,
        text: TextEncoder,
        train_examples: Sequence,
        valid: Rows,
        *,
        batch: BatchConfig,
        validate_examples: int,
        mesh: Mesh | None = None,
    ):
        is_dual = isinstance(scorer, DualScorer)
        self.model: nnx.Module = scorer
        self.encoder = (scorer.context_encoder if isinstance(scorer, DualScorer) else scorer.encoder).config
        self.mesh = mesh or one_device()
        self.n_examples, self.batch_size = len(train_examples), batch.batch_size
        self.loss: Loss = functools.partial(ranking_loss, chunk=batch.chunk)
        self._inputs: Literal["dual", "pairs"] = "dual" if is_dual else "pairs"
        self._text, self._examples, self._batch = text, train_examples, batch
        source = batch.source(self._inputs)
        if source == "batch" and batch.batch_size < 2:
            raise InputError(
                f"batch batch_size of {batch.batch_size}: with batch candidates a model learns from the "
                "other labels of the batch; choose at least 2"
            )
        self.place = BatchPlacer(self.mesh, batch.batch_size, "whole" if source == "fixed" else "split")
        self._valid, self._shared = some(valid.examples, validate_examples), valid.shared
        check_candidates(self._valid, self._shared, source="valid")
        self._validator: TextScorer | None = None

    @property
    def compilations(self) -> int:
        """Programs compiled for validating so far."""
        return 0 if self._validator is None else self._validator.compilations

    @property
    def at_once(self) -> tuple[str, str]:
        """What was too much where memory is exhausted, and the way out of it."""
        return too_much(self._batch, devices=row_devices(self.mesh))

    def batches(self, first: int, n_batches: int, *, seed: int) -> Iterator[Batch]:
        """This process's parts of the batches from number ``first`` up to ``n_batches``."""
        loader, _ = make_loader(
            self._examples,
            self._text,
            self._batch,
            inputs=self._inputs,
            n_batches=n_batches,
            seed=seed,
            first=first,
            part=self.place.rows,
        )
        return loader

    def work(self, batch: Batch) -> Iterator[Work]:
        """What this process's part of a batch gives the transformer to do."""
        return work_of(batch, self.batch_size)

    def validate(self, model: nnx.Module) -> Validation:
        """Ranks the held-out rows."""
        assert isinstance(model, Scorer)
        if self._validator is None:
            self._validator = TextScorer(model, self._text, mesh=self.mesh)
        else:
            self._validator.update(model)
        outcome = evaluate("valid", self._validator, self._valid, shared=self._shared)
        ranking = outcome.ranking
        low, high = ranking.recall_interval(1)
        return Validation(
            outcome.loss,
            {"loss": outcome.loss, **ranking.summary()},
            f"recall@1/{ranking.n_candidates} {ranking.recall(1):.3f} [{low:.3f}, {high:.3f}] "
            f"on {len(ranking.ranks)} examples",
        )


def work_of(batch: Batch, batch_size: int) -> Iterator[Work]:
    """What a process's part of a batch of so many contexts gives the transformer to do."""
    inputs = batch.inputs
    sides = [inputs.context, inputs.candidates] if isinstance(inputs, DualInputs) else [inputs.pairs]
    for tokens in sides:
        mask = np.asarray(tokens.mask)
        # Candidates that all contexts have, whatever the batch, are in every process.
        part = len(mask) == len(batch.label)
        if mask.ndim == 3:  # places of lists that hold no candidate are filled up, for nothing
            mask = mask & np.asarray(batch.where)[..., None]
        yield Work(mask.sum(-1), mask.size, len(batch.label) / batch_size if part else 1.0)


def too_much(batch: BatchConfig, *, devices: int) -> tuple[str, str]:
    """What was too much for the devices' memory, and the way out; each has a context of a chunk at least."""
    contexts = batch.chunk or batch.batch_size
    if contexts <= devices:
        return f"{contexts} contexts", (
            "keep less of it (--encoder.remat), split parameters over devices (--mesh fsdp=N), shorten "
            "text.context-tokens, or use a smaller encoder"
        )
    chunk = max(contexts // 2, devices)
    return f"{contexts} contexts", (
        f"the same command with --batch.chunk {chunk} goes on, with the same negatives"
    )
