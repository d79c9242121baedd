"""The objective of rankers: a context's label before the other candidates."""

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
from polyjax.data.candidates import fixed_candidates
from polyjax.data.guide import Guide
from polyjax.data.negatives import CandidateSource
from polyjax.data.rows import Rows
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError
from polyjax.evaluation.rankings import check_candidates, evaluate, some
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
    """Trains a scorer on examples, and ranks held-out rows with it; see ``Objective``.

    Args:
        scorer: with its initial parameters; they are given away.
        text: tokenises and pads.
        train_examples: their labels are learnt.
        valid: rows to rank.
        batch: how batches are drawn.
        validate_examples: at most so many of the rows are ranked, drawn once.
        mesh: devices that share the work, from ``make_mesh``; one device where None.
        guide: finds false negatives among the labels of a batch.
        loss: of the scores, one of ``polyjax.train.losses.LOSSES`` by name, or a function.

    Raises:
        InputError: the batch cannot be split, nothing would be learnt, the rows cannot be ranked, or there is
            no such loss.
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
                problem="it learns a teacher's scores, and the rows carry none",
                fix="give rows `scores`, or choose another loss",
            )
        self._inputs: Inputs = scorer.inputs
        self._text, self._examples, self._batch, self._guide = text, train_examples, batch, guide
        source = batch.source(self._inputs)
        if source == "batch" and batch.batch_size < 2:
            raise InputError(
                "batch.batch_size",
                expected="at least 2: the labels of the batch are what a model learns against",
                got=batch.batch_size,
            )
        self.place = BatchPlacer(self.mesh, batch.batch_size)
        self._valid, self._shared = some(valid.examples, validate_examples), valid.shared
        check_candidates(self._valid, self._shared, source="valid")
        self._validator: TextScorer | None = None

    @property
    def compilations(self) -> int:
        """Programs compiled for validating so far."""
        return 0 if self._validator is None else self._validator.compilations

    @property
    def too_much(self) -> tuple[str, str]:
        """What does not fit in a step where memory is exhausted, and what to do."""
        return too_much(self._batch, devices=row_devices(self.mesh))

    def write_card(self, run_dir: Path) -> None:
        """Write model.json, which says how the scorer is built and texts become tokens, and the tokenizer."""
        assert isinstance(self.model, Scorer)
        card = ModelCard(model=self.model.settings, text=self._text.config)
        write_card(run_dir, card, self._text.tokenizer)

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
            needs_teacher=self._needs_teacher,
            guide=self._guide,
        )
        return loader

    def largest_batch(self) -> Batch:
        """The shapes of the largest global batch, and where its arrays are."""
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
            hard=min(hard, self._batch.hard_negatives),
            taught=taught,
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
    hard: int = 0,
    taught: bool = False,
) -> Batch:
    """The shapes of a batch of the longest texts, and where its arrays are on a mesh.

    Args:
        model: its shape.
        text: lengths.
        mesh: from ``make_mesh``.
        batch_size: contexts.
        source: of the candidates.
        listed: candidates of a context where they are not the batch's labels.
        hard: negatives of a context's own besides.
        taught: whether a teacher scored candidates.
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
    """What a process's part of a batch of so many contexts gives the transformer to do."""
    share = len(batch.label) / batch_size
    inputs, where = batch.inputs, np.asarray(batch.where)
    if isinstance(inputs, PairInputs):
        yield _work(inputs.pairs, share, where)
        return
    yield _work(inputs.context, share)
    if inputs.shared is not None:
        # Candidates that are the same in every batch are in every process.
        yield _work(inputs.shared.tokens, share if inputs.shared.of_rows else 1.0)
    if inputs.listed is not None:
        c = inputs.listed.tokens.ids.shape[1]
        yield _work(inputs.listed.tokens, share, where[:, where.shape[1] - c :])


def _work(tokens: Tokens, share: float, where: np.ndarray | None = None) -> Work:
    """The work of tokens; places of lists that hold no candidate are filled up, for nothing."""
    mask = np.asarray(tokens.mask)
    mask = mask if where is None else mask & where[..., None]
    return Work(mask.sum(-1), mask.size, share)


def too_much(batch: BatchConfig, *, devices: int) -> tuple[str, str]:
    """What does not fit in the devices' memory, and what to do; each has a context of a chunk at least."""
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
