"""A pre-training run of an encoder, from the corpus to the report."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.corpora.corpus import Pairs
from polyjax.data.corpora.leakage import HeldOut, held_out_of
from polyjax.data.corpora.prepare import (
    PreparedPiece,
    TaskPiece,
    corpus_contents,
    corpus_identity,
    prepare_pieces,
    sampled_turns,
)
from polyjax.data.corpora.store import PreparedCorpus, check_split, tokens_of
from polyjax.data.tokenizers import SENTENCEPIECE_FILE, Tokenizer, load_tokenizer
from polyjax.errors import InputError, shown
from polyjax.interop.parlai.model import load_dictionary
from polyjax.interop.pretrained import (
    encoder_shape,
    encoder_tokenizer,
    load_pretrainer,
    weights_folder,
)
from polyjax.interop.sentence_transformers import check_vocabulary
from polyjax.mesh.placement import make_mesh, mesh_shape
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.nn.encoders import KnownEncoder
from polyjax.nn.pretraining import Pretrainer
from polyjax.recipes.plan import memory_line
from polyjax.recipes.pretraining_report import write_pretraining_report
from polyjax.recipes.pretraining_settings import PretrainConfig, VocabularyChoice
from polyjax.recipes.settings import SCRATCH, scratch_shape
from polyjax.recipes.start import learn_vocabulary
from polyjax.recipes.tensorboard import tensorboard_log
from polyjax.runs import Checkpoints, LeftOut, owned_run, read_json, write_json
from polyjax.runtime.forks import refuse_forked
from polyjax.runtime.progress import console
from polyjax.train.loop import TrainResult, train
from polyjax.train.memory import device_memory, step_memory
from polyjax.train.pretraining import Pretraining

INCIDENTAL = (
    "run_dir",
    "tensorboard",
    "mesh",
    "corpus.dir",
    "corpus.beam_runner",
    "corpus.beam_options",
    "corpus.piece_parts",
    "batch.workers",
    "batch.chunk",
    "train.profile_steps",
)
"""Settings that only affect rounding and random dropout, so that a run may resume with other values."""


def make_tokenizer(
    config: PretrainConfig,
    source: Path | None,
    pieces: Sequence[PreparedPiece | TaskPiece],
    excluded: HeldOut,
) -> Tokenizer:
    """The tokenizer in the run directory; it is created there first if it is missing.

    Args:
        config: settings of the run.
        source: folder of the initial weights; None for none.
        pieces: pieces of the corpus, to train a vocabulary on.
        excluded: held-out texts that must not be used.
    """
    folder = config.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    if not any(path.name == SENTENCEPIECE_FILE or path.suffix == ".json" for path in folder.iterdir()):
        if source is not None:
            encoder_tokenizer(source).save(folder)
        elif (given := config.vocabulary.source) is not None:
            of_parlai = given.suffix == ".dict"
            (load_dictionary(given.with_suffix("")) if of_parlai else load_tokenizer(given)).save(folder)
        else:
            learn_vocabulary(
                sampled_turns(pieces, config.vocabulary.sample, excluded=excluded),
                folder / SENTENCEPIECE_FILE,
                size=config.vocabulary.size,
                kind=config.vocabulary.model,
                seed=config.train.seed,
                shrink=config.vocabulary.size == VocabularyChoice().size,
                argument="vocabulary.size",
            )
    return load_tokenizer(folder)


def encoder_config(config: PretrainConfig, source: Path | None, vocab_size: int) -> KnownEncoder:
    """The transformer's settings, with the run's dtype and dropout."""
    base = scratch_shape(config.encoder.name, vocab_size) if source is None else encoder_shape(source)
    return cast(KnownEncoder, config.encoder.applied_to(base))


def check_corpus(run_dir: Path, files: str, contents: Sequence[str]) -> None:
    """Check, before anything is prepared, that the corpus files are those that the run started with.

    If they have changed before the first checkpoint, the run starts again with their present content and a
    new vocabulary.

    Args:
        run_dir: the run directory.
        files: identity of the corpus files, see ``corpus_identity``.
        contents: see ``corpus_contents``.

    Raises:
        InputError: the files have changed since the run was trained on them.
    """
    path = run_dir / CORPUS
    if not path.exists() or read_json(path).get("files") == files:
        return
    if any((run_dir / "checkpoints").glob("[0-9]*")):
        raise _corpus_changed(run_dir, _other_files(read_json(path).get("contents"), contents))
    console.print("the corpus has changed; its vocabulary is trained again")
    path.unlink()
    shutil.rmtree(run_dir / "tokenizer", ignore_errors=True)


def note_corpus(run_dir: Path, files: str, state: str, contents: Sequence[str]) -> None:
    """Record the corpus of a run in its directory.

    Args:
        run_dir: the run directory.
        files: identity of the corpus files.
        state: identity of the prepared corpus.
        contents: see ``corpus_contents``.

    Raises:
        InputError: the run was trained on another corpus.
    """
    path = run_dir / CORPUS
    begun = any((run_dir / "checkpoints").glob("[0-9]*"))
    if begun and path.exists() and read_json(path).get("state") != state:
        raise _corpus_changed(run_dir, "what is left out of it, or the tokenizer, is another")
    if is_primary():
        write_json(path, {"files": files, "state": state, "contents": list(contents)})


CORPUS = "corpus.json"


def _other_files(before: Sequence[str] | None, now: Sequence[str]) -> str:
    """Which files of a corpus are new, changed or missing, in words; "" where that was not kept."""
    if not before or not now:
        return ""
    old, new = ({line.rpartition("/")[0]: line for line in lines} for lines in (before, now))
    said = {
        "new": sorted({*new} - {*old}),
        "missing": sorted({*old} - {*new}),
        "changed": sorted(name for name in {*old} & {*new} if old[name] != new[name]),
    }
    return "; ".join(
        f"{what}: {', '.join(name.partition('/')[2] for name in names)}"
        for what, names in said.items()
        if names
    )


def _corpus_changed(run_dir: Path, how: str) -> InputError:
    return InputError.in_file(
        run_dir,
        problem=f"the corpus has changed since this run began{f' ({how})' if how else ''}",
        fix="restore its files, or choose another `run_dir`",
    )


def prepare(config: PretrainConfig, source: Path | None) -> tuple[Tokenizer, PreparedCorpus, list[LeftOut]]:
    """The tokenizer, the tokens of the corpus, and the excluded tasks; prepared first if they are missing."""
    contents = corpus_contents(config.corpus)
    files = corpus_identity(config.corpus, contents)
    check_corpus(config.folder, files, contents)
    excluded, left_out = HeldOut(), []
    for name in config.leave_out:
        found = held_out_of(config.corpus.task(name))
        excluded |= found
        left_out.append(LeftOut(task=name, digest=found.digest))
    pieces = prepare_pieces(config.corpus)
    check_split(config.corpus, pieces, excluded)  # before a vocabulary is learnt
    tokenizer = make_tokenizer(config, source, pieces, excluded)
    folder = config.folder / "tokenizer"
    corpus = tokens_of(config.corpus, tokenizer, folder, pieces=pieces, excluded=excluded)
    note_corpus(config.folder, files, corpus.state, contents)
    return tokenizer, corpus, left_out


def run(config: PretrainConfig) -> TrainResult:
    """Run a pre-training: prepare the corpus, train or resume, and write the report."""
    refuse_forked(computes=False)
    source, mesh = weights_folder(config.encoder.name, scratch=SCRATCH), make_mesh(config.mesh)
    with owned_run(config.folder, config, incidental=INCIDENTAL):
        return pretrain(config, source, mesh)


def pretrain(config: PretrainConfig, source: Path | None, mesh: Mesh) -> TrainResult:
    """The run itself, in a locked run directory."""
    began = time.monotonic()
    with primary_first("corpus"):
        tokenizer, corpus, left_out = prepare(config, source)
    shape = encoder_config(config, source, tokenizer.vocab_size)
    check_vocabulary(tokenizer, shape, name=config.encoder.name)
    config.text.check_positions(shape.n_positions, paired=True)
    n_segments = getattr(shape, "n_segments", 1)  # some families have no segments
    if n_segments < 2:
        raise InputError(
            "encoder", expected="one with two segments, for pairs", got=shown(f"{n_segments} segments")
        )
    train_pairs = Pairs(corpus.train, config.text, tokenizer, most_tokens=config.corpus.tokens)
    held_out = Pairs(corpus.valid, config.text, tokenizer)
    counts = (
        f"{len(train_pairs):,} pairs to train on, {len(held_out):,} to validate on; {corpus.left_out:,} "
        f"conversations left out{' (' + ', '.join(config.leave_out) + ')' if config.leave_out else ''}"
    )
    console.print(counts)
    model = Pretrainer(shape, rngs=nnx.Rngs(config.train.seed))
    if source is not None:
        load_pretrainer(model, source)
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    console.print(
        f"{n_parameters / 1e6:.1f} M parameters, {shape.dtype}; mesh {mesh_shape(mesh)}; "
        f"run directory {config.folder}"
    )
    objective = Pretraining(
        model,
        train_pairs,
        held_out,
        batch=config.batch,
        weights=config.loss,
        validate_batches=config.validate_batches,
        mesh=mesh,
        left_out=left_out,
    )
    if not Checkpoints(config.folder).latest_step:  # a run with a checkpoint is known to fit
        with console.status("compiling a step, for its memory"):
            memory = step_memory(objective, config.optim, config.train)
        console.print(memory_line(f"{config.batch.chunk or config.batch.tokens:,} tokens at once", memory))
        if memory.total > device_memory()[0]:
            console.print(f"it does not fit; {objective.too_much[1]}")
    with tensorboard_log(config.folder, wanted=config.tensorboard) as log:
        outcome = train(objective, config.folder, optim=config.optim, config=config.train, callbacks=(log,))
    if is_primary():
        notes = [
            f"corpus: {', '.join(config.corpus.files)}; {counts}",
            f"training: {outcome.steps} steps of {config.batch.tokens:,} tokens in {outcome.seconds:.0f} s "
            f"(validations included), ended by: {outcome.stopped_by}; seed {config.train.seed}",
            f"programs compiled: {outcome.compilations}; whole command: {time.monotonic() - began:.0f} s",
        ]
        write_pretraining_report(config.folder, notes)
        console.print(f"report: {config.folder / 'report.md'}")
        console.print(f"fine-tune it: polyjax train --arch poly --encoder {config.folder}")
    return outcome
