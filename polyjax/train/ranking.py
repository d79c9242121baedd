"""The training objective of rankers: rank a context's label before its other candidates."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from polyjax.data.batches import BatchConfig, make_loader
from polyjax.data.candidates import read_candidates
from polyjax.data.guide import Guide
from polyjax.data.negatives import CandidateSource
from polyjax.data.rows import Rows
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError
from polyjax.evaluation.candidates import check_candidates
from polyjax.evaluation.rankings import evaluate, some
from polyjax.inference.scorer import TextScorer
from polyjax.mesh.placement import ROWS, BatchPlacer, everywhere, one_device, row_devices
from polyjax.nn.heads import Inputs
from polyjax.nn.scorers import ModelConfig, Scorer
from polyjax.runs import ModelCard, write_card
from polyjax.train.losses import Loss, loss_of, ranking_loss
from polyjax.train.objective import Validation, Work
from polyjax.train.step import BatchLoss
from polyjax.types import Batch, DualInputs, Listed, PairInputs, Shared, Teacher, Tokens


class Ranking:
    """Trains a scorer on examples, and validates it by ranking held-out rows; see ``Objective``.

    Args:
        scorer: the model with its initial parameters.
        text: turns texts into padded tokens.
        train_examples: training examples.
        valid: held-out rows to rank.
        batch: how batches are drawn.
        validate_examples: maximum number of held-out rows to rank, drawn once.
        mesh: devices that share the work, from ``make_mesh``; None for one device.
        guide: finds false negatives among the labels of a batch.
        loss: the loss of the scores: a name in ``polyjax.train.losses.LOSSES``, or a function.

    Raises:
        InputError: the batch cannot be split over the devices, is too small to learn from, the held-out rows
            cannot be ranked, or the loss is unknown or needs a teacher's scores that no row has.
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
        guide: Guide | None = None,
        loss: str | Loss = "softmax",
    ):
        self.model: nnx.Module = scorer
        self.encoder = scorer.settings.encoder
        self.mesh = mesh or one_device()
        self.n_examples, self.batch_size = len(train_examples), batch.batch_size
        of_scores = loss_of(loss)
        self.loss: BatchLoss = functools.partial(ranking_loss, chunk=batch.chunk, loss=of_scores)
        self._needs_teacher = bool(getattr(of_scores, "needs_teacher", False))
        if self._needs_teacher and all(example.scores is None for example in train_examples):
            raise InputError(
                "loss",
                problem="it learns from a teacher's scores, and the rows have none",
                fix="give rows `scores`, or choose another loss",
            )
        self._inputs: Inputs = scorer.inputs
        self._text, self._examples, self._batch, self._guide = text, train_examples, batch, guide
        source = batch.source(self._inputs)
        if source == "batch" and batch.batch_size < 2:
            raise InputError(
                "batch.batch_size",
                expected="at least 2: the labels of the other rows are the negatives",
                got=batch.batch_size,
            )
        self.place = BatchPlacer(self.mesh, batch.batch_size)
        self._valid, self._shared = some(valid.examples, validate_examples), valid.shared
        check_candidates(self._valid, self._shared, source="valid")
        self._validator: TextScorer | None = None

    @property
    def compilations(self) -> int:
        """Number of programs compiled for validation so far."""
        return 0 if self._validator is None else self._validator.compilations

    @property
    def too_much(self) -> tuple[str, str]:
        """For the error of exhausted memory: what does not fit in a step, and what to do."""
        return too_much(self._batch, devices=row_devices(self.mesh))

    def write_card(self, run_dir: Path) -> None:
        """Write the tokenizer and model.json (settings of the scorer and of texts)."""
        assert isinstance(self.model, Scorer)
        card = ModelCard(model=self.model.settings, text=self._text.config)
        write_card(run_dir, card, self._text.tokenizer)

    def batches(self, first: int, n_batches: int, *, seed: int) -> Iterator[Batch]:
        """This process's parts of batches ``first`` to ``n_batches - 1``, in order."""
        loader, _ = make_loader(
            self._examples,
            self._text,
            self._batch,
            inputs=self._inputs,
            n_batches=n_batches,
            seed=seed,
            first=first,
            part=self.place.rows,
            needs_teacher=self._needs_teacher,
            guide=self._guide,
        )
        return loader

    def largest_batch(self) -> Batch:
        """Shapes and shardings of the largest global batch: texts of maximum length."""
        source = self._batch.source(self._inputs)
        listed = self._batch.n_negatives + 1
        most, hard, taught = 0, 0, False
        for example in self._examples:
            most, hard = max(most, len(example.candidates)), max(hard, len(example.negatives))
            taught |= example.scores is not None
        if source == "inline":
            listed = most
        elif source == "fixed":
            assert self._batch.fixed_file is not None
            listed = len(read_candidates(self._batch.fixed_file))
        scorer = self.model
        assert isinstance(scorer, Scorer)
        return longest_batch(
            scorer.settings,
            self._text.config,
            self.mesh,
            batch_size=self.batch_size,
            source=source,
            listed=listed,
            hard=min(hard, self._batch.hard_negatives),
            taught=taught,
        )

    def work(self, batch: Batch) -> Iterator[Work]:
        """The transformer's work on this process's part of a batch."""
        return work_of(batch, self.batch_size)

    def validate(self, model: nnx.Module) -> Validation:
        """Rank the held-out rows; the metrics are the loss, recalls and MRR."""
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
    hard: int = 0,
    taught: bool = False,
) -> Batch:
    """Shapes and shardings of a batch whose texts all have the maximum length.

    Args:
        model: settings of encoder and head.
        text: maximum lengths of texts.
        mesh: from ``make_mesh``.
        batch_size: number of contexts.
        source: where candidates come from.
        listed: candidates per context, unless they are the labels of the batch.
        hard: hard negatives per context, in addition.
        taught: whether the batch has a teacher's scores.
    """
    rows, everyone = NamedSharding(mesh, ROWS), everywhere(mesh)

    def array(kind: Any, sharding: NamedSharding, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)

    def tokens(sharding: NamedSharding, *shape: int) -> Tokens:
        ids = array(jnp.int32, sharding, *shape)
        return Tokens(ids, array(bool, sharding, *shape), ids)

    b, of_rows = batch_size, source == "batch"
    common = b if of_rows else listed
    c = common + hard
    if model.head.inputs == "pairs":
        inputs = PairInputs(tokens(rows, b, c, text.pair_limit()))
    else:
        shares = source in ("batch", "fixed")
        length, own = text.candidate_tokens, hard if shares else c
        inputs = DualInputs(
            tokens(rows, b, text.context_tokens),
            Shared(tokens(rows if of_rows else everyone, common, length), of_rows) if shares else None,
            Listed(tokens(rows, b, own, length)) if own else None,
        )
    where = array(bool, rows, b, c)
    teacher = Teacher(array(jnp.float32, rows, b, c), where) if taught else None
    return Batch(inputs, array(jnp.int32, rows, b), where, teacher)


def work_of(batch: Batch, batch_size: int) -> Iterator[Work]:
    """The transformer's work on a process's part of a batch; ``batch_size`` is that of the global batch."""
    share = len(batch.label) / batch_size
    inputs, where = batch.inputs, np.asarray(batch.where)
    if isinstance(inputs, PairInputs):
        yield _work(inputs.pairs, share, where)
        return
    yield _work(inputs.context, share)
    if inputs.shared is not None:
        # Fixed candidates, the same in every batch, are on every process.
        yield _work(inputs.shared.tokens, share if inputs.shared.of_rows else 1.0)
    if inputs.listed is not None:
        c = inputs.listed.tokens.ids.shape[1]
        yield _work(inputs.listed.tokens, share, where[:, where.shape[1] - c :])


def _work(tokens: Tokens, share: float, where: np.ndarray | None = None) -> Work:
    """The work on an array of tokens; unused entries of candidate lists (``where``) count as padding."""
    mask = np.asarray(tokens.mask)
    mask = mask if where is None else mask & where[..., None]
    return Work(mask.sum(-1), mask.size, share)


def too_much(batch: BatchConfig, *, devices: int) -> tuple[str, str]:
    """What does not fit in device memory, and what to do.

    Args:
        batch: settings of the batch.
        devices: number of devices; each holds at least one context of a chunk.
    """
    contexts = batch.chunk or batch.batch_size
    if contexts <= devices:
        fix = (
            "set `encoder.remat`, split parameters over devices (fsdp=N in `mesh`), lower "
            "`text.context_tokens`, or use a smaller encoder"
        )
    else:
        chunk = max(contexts // 2, devices)
        fix = f"resume with {chunk} as `batch.chunk`, which keeps the negatives the same"
    return f"{contexts} contexts", fix
