"""Train a ranker and evaluate it: python experiments/run.py --arch poly"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.batches import prepare_texts
from polyjax.data.corpora.leakage import held_out_of
from polyjax.data.rows import Rows, rows_digest
from polyjax.data.tasks.registry import (
    describe,
    ks_of,
    name_of,
    read,
    read_to_rank,
    training_texts,
)
from polyjax.data.text import TextEncoder
from polyjax.data.tokenizers import (
    SENTENCEPIECE_FILE,
    Tokenizer,
    load_tokenizer,
    train_sentencepiece,
)
from polyjax.errors import InputError
from polyjax.evaluation.baselines import tfidf_ranking, zero_shot_rankings
from polyjax.evaluation.metrics import Chance, RankingResult
from polyjax.evaluation.rankings import check_candidates, evaluate, some
from polyjax.evaluation.report import best_of, console_table, verdict, write_report
from polyjax.inference.scorer import TextScorer
from polyjax.interop.huggingface import minilm_folder
from polyjax.interop.pretrained import (
    check_vocabulary,
    encoder_shape,
    encoder_tokenizer,
    is_pretraining_run,
    load_pretrained,
    read_pretraining_card,
    weights_folder,
)
from polyjax.mesh.placement import make_mesh, mesh_shape
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.nn.encoders import Encoder, EncoderConfig
from polyjax.nn.scorers import ModelConfig, Scorer, make_scorer
from polyjax.recipes.card import model_card
from polyjax.recipes.plan import show_plan, step_lines
from polyjax.recipes.settings import SCRATCH, RunConfig, scratch_shape
from polyjax.runs import (
    MODEL,
    Checkpoints,
    MetricsLog,
    ModelCard,
    load_scorer,
    open_data,
    owned_run,
    read_card,
    write_json,
)
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import console
from polyjax.train.loop import TrainResult, train
from polyjax.train.optim import trainable_filter
from polyjax.train.ranking import Ranking
from polyjax.types import Example

BEFORE = "before training"
INCIDENTAL = (
    "run_dir",
    "tokens_dir",
    "test_examples",
    "tensorboard",
    "mesh",
    "task.data_dir",
    "batch.workers",
    "batch.chunk",
    "train.profile_steps",
)
"""Settings that change no result beyond rounding and the draws of dropout: a run may go on with others."""


def pretrained_folder(config: RunConfig) -> Path | None:
    """The folder of pretrained weights, or None for an encoder from scratch."""
    return None if config.init is not None else weights_folder(config.encoder.name, scratch=SCRATCH)


def make_tokenizer(config: RunConfig, source: Path | None, turns: Callable[[], Iterator[str]]) -> Tokenizer:
    """The run directory's tokenizer, put there first where it is absent."""
    folder = config.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    if config.tokenizer.kind == "sentencepiece":
        path = folder / SENTENCEPIECE_FILE
        if not path.exists():
            console.print(f"training a SentencePiece vocabulary of {config.tokenizer.vocab_size} pieces")
            train_sentencepiece(
                turns(),
                path,
                vocab_size=config.tokenizer.vocab_size,
                kind=config.tokenizer.model,
                seed=config.train.seed,
            )
    elif config.init is not None:
        load_tokenizer(config.init / "tokenizer").save(folder)
    elif not any(folder.iterdir()):
        encoder_tokenizer(source or minilm_folder()).save(folder)
    return load_tokenizer(folder)


def encoder_config(config: RunConfig, source: Path | None, vocab_size: int) -> EncoderConfig:
    """The transformer's shape, with the run's arithmetic and dropout."""
    if config.init is not None:
        base = read_card(config.init).model.encoder
    elif source is not None:
        base = encoder_shape(source)
    else:
        base = scratch_shape(config.encoder.name, vocab_size)
    return config.encoder.applied_to(base)


def initial_scorer(config: RunConfig, shape: EncoderConfig, source: Path | None) -> Scorer:
    """The scorer before training, its encoders with their pretrained weights."""
    scorer = make_scorer(shape, config.head, rngs=nnx.Rngs(config.train.seed))
    if config.init is not None:
        return Checkpoints(config.init, read_only=True).restore_parameters(scorer)
    if source is not None:
        for encoder in scorer.encoders:
            load_pretrained(encoder, source)
    return scorer


def run_baselines(
    config: RunConfig,
    shape: EncoderConfig,
    source: Path | None,
    tokenizer: Tokenizer,
    examples: list[Example],
    fit_on: Sequence[str],
    shared: Sequence[str],
) -> list[RankingResult]:
    """Chance, TF-IDF and the untrained encoder (or the model of --init) on the test rows."""
    n = check_candidates(examples, shared, source=name_of(config.task))
    results = [
        Chance(tuple(example.group for example in examples), n),
        tfidf_ranking(examples, fit_on, shared=shared),
    ]
    if config.init is not None:
        before = TextScorer(initial_scorer(config, shape, None), TextEncoder(tokenizer, config.text))
        results.append(evaluate(BEFORE, before, examples, shared=shared, title=BEFORE).ranking)
    if source is not None:
        encoder = Encoder(shape, rngs=nnx.Rngs(0))
        load_pretrained(encoder, source)
        results += zero_shot_rankings(
            encoder, tokenizer, config.text, examples, shared=shared, title="zero-shot baselines"
        )
    return results


@contextlib.contextmanager
def tensorboard_log(folder: Path, *, wanted: bool) -> Iterator[Callable[[int, str, dict[str, Any]], None]]:
    """A log callback that writes a run directory's event files, where they are asked for."""
    if not (wanted and is_primary()):
        yield lambda step, kind, figures: None
        return
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]  # an optional extra
    except ModuleNotFoundError:
        raise InputError("--tensorboard needs tensorboardX; run: pip install -e '.[tensorboard]'") from None
    with contextlib.ExitStack() as closing:
        writers: list[Any] = []

        def log(step: int, kind: str, figures: dict[str, Any]) -> None:
            if not writers:
                # What was written after the checkpoint from which the run goes on is written again.
                writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
                writers.append(closing.enter_context(writer))
            for name, value in figures.items():
                if isinstance(value, int | float):
                    writers[0].add_scalar(f"{kind}/{name}", value, step)

        yield log


def run(config: RunConfig) -> list[RankingResult]:
    """Train (or go on), evaluate beside the baselines, and write the report."""
    enable_compilation_cache()
    source = pretrained_folder(config)
    mesh = make_mesh(config.mesh)
    if config.dry_run:
        show_plan(config, encoder_config(config, source, config.tokenizer.vocab_size), mesh)
        return []
    with owned_run(config.folder, config, incidental=INCIDENTAL):
        return train_and_report(config, source, mesh)


def train_and_report(config: RunConfig, source: Path | None, mesh: Mesh) -> list[RankingResult]:
    """The run itself, in a run directory that is this run's own."""
    began = time.monotonic()
    with primary_first("data"):
        training = read(config.task, "train")
        valid, test = (read_to_rank(config.task, split, config.rank) for split in ("valid", "test"))
    for name, rows in (("valid", valid), ("test", test)):
        check_candidates(rows.examples, rows.shared, source=f"{name_of(config.task)} {name}")
    splits = {"train": training, "valid": valid, "test": test}
    digests = {name: rows_digest(rows) for name, rows in splits.items()}
    with primary_first("rows"):
        open_data(config.folder, digests)
    counts = " / ".join(f"{len(rows.examples):,}" for rows in splits.values())
    console.print(f"{name_of(config.task)}: {counts} examples in train / valid / test")
    notes = list(dict.fromkeys(rows.note for rows in splits.values() if rows.note))
    if source is not None and is_pretraining_run(source):
        left_out = {found.digest for found in read_pretraining_card(source).left_out}
        if not left_out or held_out_of(config.task).digest not in left_out:
            notes.append(f"{source}: this task's test rows were not left out of its corpus (--leave-out)")
    known = {row.label_text for row in training.examples}
    if repeated := sum(row.label_text in known for row in test.examples):
        notes.append(
            f"{repeated:,} of {len(test.examples):,} test labels are training labels too, word for word"
        )
    for note in notes:
        console.print(note)

    def turns() -> Iterator[str]:
        return training_texts(config.task, training.examples)

    with primary_first("tokenizer"):
        tokenizer = make_tokenizer(config, source, turns)
    shape = encoder_config(config, source, tokenizer.vocab_size)
    check_vocabulary(tokenizer, shape, name=config.encoder.name)
    config.text.check_positions(shape.n_positions, paired=config.arch == "cross")
    trainable_filter(config.train.trainable, shape.n_layers)  # raises before any text is tokenised
    if is_primary():
        write_json(
            config.folder / MODEL,
            ModelCard(model=ModelConfig(encoder=shape, head=config.head), text=config.text),
        )
    text = TextEncoder(tokenizer, config.text, tokens_dir=config.tokens_dir)
    scorer = initial_scorer(config, shape, source)
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(scorer)))
    console.print(
        f"{config.arch}-encoder, {n_parameters / 1e6:.1f} M parameters, {shape.dtype}; "
        f"mesh {mesh_shape(mesh)}; run directory {config.folder}"
    )
    with primary_first("tokens"):
        prepare_texts(training.examples, text)
    with tensorboard_log(config.folder, wanted=config.tensorboard) as log:
        objective = Ranking(
            scorer,
            text,
            training.examples,
            valid,
            batch=config.batch,
            validate_examples=config.train.validate_examples,
            mesh=mesh,
        )
        if not Checkpoints(config.folder).latest_step:  # a run that goes on has shown that it fits
            for line in step_lines(objective, config, shape):
                console.print(line)
        outcome = train(objective, config.folder, optim=config.optim, config=config.train, on_log=log)
    n_rows = len(training.examples), len(valid.examples)
    return report(config, shape, source, tokenizer, test, n_rows, outcome, turns, began, notes, mesh)


def report(
    config: RunConfig,
    shape: EncoderConfig,
    source: Path | None,
    tokenizer: Tokenizer,
    rows: Rows,
    n_rows: tuple[int, int],
    outcome: TrainResult,
    turns: Callable[[], Iterator[str]],
    began: float,
    data_notes: Sequence[str],
    mesh: Mesh,
) -> list[RankingResult]:
    """Evaluate the best checkpoint on the test rows and write everything down.

    Several processes all do it, as the model is evaluated on the mesh; one of them writes.
    """
    test = some(rows.examples, config.test_examples)
    ks = ks_of(config.task)
    scorer = TextScorer(*load_scorer(config.folder), mesh=mesh)
    model = evaluate(f"{config.arch}-encoder", scorer, test, shared=rows.shared, title="testing")
    baselines = run_baselines(config, shape, source, tokenizer, test, list(turns()), rows.shared)
    results = [*baselines, model.ranking]
    MetricsLog(config.folder, resume_step=outcome.steps, write=is_primary()).write(
        outcome.steps, "test", {"loss": model.loss, **model.ranking.summary(ks)}
    )
    notes = [
        f"task: {describe(config.task, 'test', len(test))}",
        *data_notes,
        f"training: {outcome.steps} updates of {config.batch.batch_size} contexts in {outcome.seconds:.0f} s "
        f"(validations included), ended by: {outcome.stopped_by}; seed {config.train.seed}",
        f"programs compiled: {outcome.compilations} for training and validation, "
        f"{scorer.compilations} for testing; length buckets {config.text.buckets}",
        f"whole command: {time.monotonic() - began:.0f} s",
    ]
    if is_primary():
        write_report(
            config.folder,
            results,
            title=f"{name_of(config.task)}, {config.arch}-encoder",
            notes=notes,
            card=model_card(config, shape, source, rows=(*n_rows, len(test))),
            log=MetricsLog.read(config.folder),
            ks=ks,
        )
    console.print(console_table(results, f"{name_of(config.task)} test, {len(test)} rows", ks=ks))
    # What --init asks is whether training helped; otherwise, what the best baseline is.
    before = [result for result in baselines if result.name == BEFORE]
    if compared := best_of(before or baselines):
        console.print(verdict(model.ranking, compared))
    for note in notes[1:]:
        console.print(note)
    console.print(f"report: {config.folder / 'report.md'}")
    if config.head.inputs == "dual":
        console.print(f"next: polyjax chat {config.folder} --candidates FILE, a candidate a line")
    return results
