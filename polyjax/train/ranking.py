"""The objective of rankers: a context's label before the other candidates."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from polyjax.data.batches import BatchConfig, make_loader
from polyjax.data.candidates import fixed_candidates
from polyjax.data.collate import CandidateSource
from polyjax.data.rows import Rows
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError
from polyjax.evaluation.rankings import check_candidates, evaluate, some
from polyjax.inference.scorer import TextScorer
from polyjax.mesh.placement import ROWS, BatchPlacer, everywhere, one_device, row_devices
from polyjax.nn.heads import Inputs
from polyjax.nn.scorers import ModelConfig, Scorer
from polyjax.train.losses import ranking_loss
from polyjax.train.objective import Validation, Work
from polyjax.train.step import Loss
from polyjax.types import Batch, DualInputs, PairInputs, Tokens


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
        self.model: nnx.Module = scorer
        self.encoder = scorer.settings.encoder
        self.mesh = mesh or one_device()
        self.n_examples, self.batch_size = len(train_examples), batch.batch_size
        self.loss: Loss = functools.partial(ranking_loss, chunk=batch.chunk)
        self._inputs: Inputs = scorer.inputs
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

    def largest_batch(self) -> Batch:
        """The shapes of the largest global batch, and where its arrays are."""
        source = self._batch.source(self._inputs)
        listed = self._batch.n_negatives + 1
        if source == "inline":
            listed = max(len(example.candidates) for example in self._examples)
        elif source == "fixed":
            assert self._batch.fixed_file is not None
            listed = len(fixed_candidates(self._batch.fixed_file))
        scorer = self.model
        assert isinstance(scorer, Scorer)
        return longest_batch(
            scorer.settings,
            self._text.config,
            self.mesh,
            batch_size=self.batch_size,
            source=source,
            listed=listed,
            keys=self._batch.mask_duplicates,
        )

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


def longest_batch(
    model: ModelConfig,
    text: TextConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    source: CandidateSource,
    listed: int,
    keys: bool = True,
) -> Batch:
    """The shapes of a batch of the longest texts, and where its arrays are on a mesh.

    Args:
        model: its shape.
        text: lengths.
        mesh: from ``make_mesh``.
        batch_size: contexts.
        source: of the candidates.
        listed: candidates of a context where they are not the batch's labels.
        keys: whether copies of the labels are told by them, where candidates are shared.
    """
    rows, everyone = NamedSharding(mesh, ROWS), everywhere(mesh)

    def array(kind: Any, sharding: NamedSharding, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)

    def tokens(sharding: NamedSharding, *shape: int) -> Tokens:
        ids = array(jnp.int32, sharding, *shape)
        return Tokens(ids, array(bool, sharding, *shape), ids)

    b, shared, cross = batch_size, source in ("batch", "fixed"), model.head.inputs == "pairs"
    c = b if source == "batch" else listed
    of_candidates = everyone if source == "fixed" else rows
    if cross:
        inputs = PairInputs(tokens(rows, b, c, text.pair_limit()))
    else:
        candidates = tokens(of_candidates, *((c,) if shared else (b, c)), text.candidate_tokens)
        inputs = DualInputs(tokens(rows, b, text.context_tokens), candidates)
    in_common = shared and not cross
    return Batch(
        inputs,
        array(jnp.int32, rows, b),
        array(bool, everyone if in_common else rows, 1 if in_common else b, c),
        array(jnp.int32, of_candidates, c) if keys and in_common else None,
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
