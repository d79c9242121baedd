"""A training run from its settings to its report, in its run directory."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.batches import check_training_rows, prepare_texts
from polyjax.data.tasks import training_texts
from polyjax.data.text import TextEncoder
from polyjax.data.tokenizers import Tokenizer
from polyjax.data.truncation import check_losses, losses
from polyjax.evaluation import check_tfidf
from polyjax.interop.parlai.cards import PARLAI
from polyjax.interop.sentence_transformers import check_vocabulary
from polyjax.mesh.placement import make_mesh, mesh_shape
from polyjax.mesh.processes import primary_first
from polyjax.nn.encoders import EncoderSettings
from polyjax.ranker import Ranker
from polyjax.recipes.encoder_folder import encoder_lines, encoder_notes
from polyjax.recipes.guiding import guide_of
from polyjax.recipes.outcome import Trained, report
from polyjax.recipes.plan import show_plan, step_lines
from polyjax.recipes.rows_in_memory import RowFiles, kept_rows
from polyjax.recipes.settings import RunConfig
from polyjax.recipes.splits import Splits, read_splits
from polyjax.recipes.start import (
    encoder_config,
    initial_scorer,
    make_tokenizer,
    pretrained_folder,
    start_codes,
)
from polyjax.recipes.teaching import check_teachers, taught
from polyjax.recipes.tensorboard import tensorboard_log
from polyjax.runs import Checkpoints, owned_run
from polyjax.runtime.forks import refuse_forked
from polyjax.runtime.progress import console
from polyjax.train.config import steps_of
from polyjax.train.loop import TrainResult, train
from polyjax.train.losses import loss_of
from polyjax.train.optim import trainable_filter
from polyjax.train.ranking import Ranking
from polyjax.train.session import Callback

INCIDENTAL = (
    "run_dir",
    "tokens_dir",
    "test_examples",
    "tensorboard",
    "mesh",
    "task.data_dir",
    "task.source",
    "task.articles",
    "task.train",
    "task.valid",
    "task.test",
    "batch.workers",
    "batch.chunk",
    "train.profile_steps",
)
"""Settings that only affect rounding and random dropout, so that a run may resume with other values.

Paths of a task's files may change too: digests show whether their rows are the same (``open_data``).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The inputs of a run that are not settings: objects that a Python caller passes.

    Attributes:
        callbacks: see ``Callback``.
        files: rows that were in memory, to be written into the run directory.
        teachers: teachers in memory.
        show_table: print the table of results at the end; not needed in a notebook, which shows the run.
    """

    callbacks: Sequence[Callback] = ()
    files: RowFiles | None = None
    teachers: Sequence[Ranker] = ()
    show_table: bool = True


def run(config: RunConfig, parts: Parts | None = None) -> None:
    """Train or resume, evaluate model and baselines, and write the report.

    With ``config.dry_run``, only print what the run would do.

    Args:
        config: the settings.
        parts: objects that are not settings.

    Raises:
        InputError: a setting is invalid, a file is missing or invalid, or the directory has another run.
    """
    refuse_forked(computes=False)
    check_teachers(config, () if parts is None else parts.teachers)
    source = pretrained_folder(config)
    mesh = make_mesh(config.mesh)
    if config.dry_run:
        show_plan(config, encoder_config(config, source, config.tokenizer.vocab_size), mesh)
        return
    with owned_run(config.folder, config, incidental=INCIDENTAL, foreign=PARLAI):
        train_and_report(config, source, mesh, parts or Parts())


def train_and_report(config: RunConfig, source: Path | None, mesh: Mesh, parts: Parts) -> None:
    """The run itself, in a locked run directory."""
    began = time.monotonic()
    check_tfidf()
    with kept_rows(config.folder, parts.files):
        splits = read_splits(config, source, teachers=parts.teachers)
    if config.teacher is not None:
        examples, note = taught(config, splits.train.examples, parts.teachers)
        splits = dataclasses.replace(
            splits, train=dataclasses.replace(splits.train, examples=examples), notes=[*splits.notes, note]
        )
        console.print(note)
    needs_teacher = bool(getattr(loss_of(cast(Any, config.loss)), "needs_teacher", False))
    check_training_rows(
        splits.train.examples, config.batch, inputs=config.inputs, needs_teacher=needs_teacher
    )
    for line in encoder_lines(config, source):
        console.print(line, markup=False)
    for note in encoder_notes(config, source):
        console.print(note)
        splits.notes.append(note)

    def turns() -> Iterator[str]:
        return training_texts(config.dataset, splits.train.examples)

    with primary_first("tokenizer"):
        tokenizer = make_tokenizer(config, source, turns)
    shape = checked_shape(config, source, tokenizer)
    outcome = trained(config, parts, source, splits, tokenizer, shape, mesh)
    report(
        Trained(config, shape, source, tokenizer, mesh, outcome, began),
        splits,
        turns,
        show_table=parts.show_table,
    )


def checked_shape(config: RunConfig, source: Path | None, tokenizer: Tokenizer) -> EncoderSettings:
    """The settings of the transformer.

    Raises:
        InputError: they do not fit the tokenizer, the lengths, or the number of layers to train.
    """
    shape = encoder_config(config, source, tokenizer.vocab_size)
    check_vocabulary(tokenizer, shape, name=config.encoder.name)
    config.text.check_positions(shape.n_positions, paired=config.inputs == "pairs")
    trainable_filter(config.train.trainable, shape)  # raises before any text is tokenised
    return shape


def trained(
    config: RunConfig,
    parts: Parts,
    source: Path | None,
    splits: Splits,
    tokenizer: Tokenizer,
    shape: EncoderSettings,
    mesh: Mesh,
) -> TrainResult:
    """Train the model, from the last checkpoint if there is one."""
    text = TextEncoder(tokenizer, config.text, tokens_dir=config.tokens_dir)
    scorer = initial_scorer(config, shape, source)
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(scorer)))
    console.print(
        f"{config.arch}-encoder, {n_parameters / 1e6:.1f} M parameters, {shape.dtype}; "
        f"mesh {mesh_shape(mesh)}; run directory {config.folder}"
    )
    with primary_first("tokens"):
        prepare_texts(splits.train.examples, text)
    say_losses(config, splits, text)
    if not Checkpoints(config.folder).latest_step:  # otherwise the codes come from the checkpoint
        start_codes(scorer, text, splits.train.examples, seed=config.train.seed)
    with tensorboard_log(config.folder, wanted=config.tensorboard) as log:
        objective = Ranking(
            scorer,
            text,
            splits.train.examples,
            splits.valid,
            batch=config.batch,
            validate_examples=config.train.validate_examples,
            mesh=mesh,
            guide=guide_of(config, splits.train.examples),
            loss=cast(Any, config.loss),  # the user's own loss was passed again
        )
        if not Checkpoints(config.folder).latest_step:  # a run with a checkpoint is known to fit
            for line in step_lines(objective, config, shape):
                console.print(line)

        return train(
            objective,
            config.folder,
            optim=config.optim,
            config=config.train,
            optimizer=config.given_optimizer,
            callbacks=(log, *parts.callbacks),
        )


def say_losses(config: RunConfig, splits: Splits, text: TextEncoder) -> None:
    """Print, and note for the report, which parts of training texts are truncated.

    Raises:
        InputError: after truncation, all labels are the same.
    """
    found = losses(splits.train.examples, text)
    steps, _ = steps_of(config.train, config.batch.batch_size, len(splits.train.examples))
    check_losses(found, steps=steps)
    for note in found.notes():
        console.print(note)
        splits.notes.append(note)
