"""Prints what a run would do, without running it (``--dry-run``)."""

import dataclasses

import jax
from jax.sharding import Mesh

from polyjax.data.candidates import read_candidates
from polyjax.data.tasks import MissingFile, Split, listed_in_training, read_to_rank
from polyjax.errors import InputError
from polyjax.evaluation.candidates import check_candidates
from polyjax.mesh.placement import mesh_shape
from polyjax.nn.encoders import EncoderSettings
from polyjax.nn.scorers import ModelConfig
from polyjax.recipes.paper import RECIPES, TRAINING_ROWS
from polyjax.recipes.settings import SCRATCH, RunConfig
from polyjax.runtime.progress import console
from polyjax.train.config import steps_of
from polyjax.train.memory import Memory, PlannedStep, device_memory, step_memory
from polyjax.train.ranking import Ranking

GIB = 2**30
RANKED: tuple[Split, ...] = ("valid", "test")


def training_rows(config: RunConfig) -> tuple[int, str]:
    """The number of training rows, and the source of that number."""
    try:
        return len(config.dataset.read("train").examples), "read"
    except MissingFile as error:
        if not config.recipe:
            raise
        missing = f"{error.argument} is missing"
        return TRAINING_ROWS[RECIPES[config.recipe][0]], f"the official file's count; {missing}"


def rows_to_rank(config: RunConfig) -> str:
    """The numbers of validation and test rows, as a text; the rows are checked.

    Raises:
        InputError: the rows cannot be ranked, or a file is missing (except for a recipe's).
    """
    counts = []
    for split in RANKED:
        try:
            rows = read_to_rank(config.dataset, split, config.rank)
        except MissingFile as error:
            if not config.recipe:
                raise
            return f"{error.argument} is missing"
        check_candidates(rows.examples, rows.shared, source=f"{config.dataset.name} {split}")
        counts.append(f"{len(rows.examples):,} {split}")
    return ", ".join(counts)


def listed_candidates(config: RunConfig) -> int:
    """Number of candidates per context in a training batch, without hard negatives."""
    source = config.batch.source(config.inputs)
    match source:
        case "batch":
            return config.batch.batch_size
        case "sampled":
            return config.batch.n_negatives + 1
        case "inline" if (known := listed_in_training(config.dataset)) is not None:
            return known
        case "fixed" if config.batch.fixed_file is not None:
            return len(read_candidates(config.batch.fixed_file))
        case _:
            listed = max(len(example.candidates) for example in config.dataset.read("train").examples)
            if listed < 2:
                raise InputError(
                    "batch.candidates",
                    expected="batch or sampled, as the training rows list no candidates but their label",
                    got="inline",
                )
            return listed


def hard_negatives(config: RunConfig) -> int:
    """Number of hard negatives per context in a training batch."""
    try:
        most = max(len(example.negatives) for example in config.dataset.read("train").examples)
    except MissingFile:
        if not config.recipe:
            raise
        most = 0
    if config.teacher is not None and config.teacher.mines:
        most += config.teacher.n_negatives
    return min(most, config.batch.hard_negatives)


def starts_from(config: RunConfig) -> str:
    """The initial parameters of training, as a text."""
    if config.init is not None:
        return f"the model of {config.init}"
    if config.encoder.name in SCRATCH:
        note = "; the paper's results need its pre-trained transformer: --init" if config.recipe else ""
        return f"random values{note}"
    return config.encoder.name


def show_plan(config: RunConfig, shape: EncoderSettings, mesh: Mesh) -> None:
    """Print what the run would do: model, data, steps, optimiser, memory, run directory."""
    n_rows, known = training_rows(config)
    steps, validate_every = steps_of(config.train, config.batch.batch_size, n_rows)
    source = config.batch.source(config.inputs)
    planned = planned_step(config, shape, mesh)
    optim, train = config.optim, config.train
    warmup = f"{optim.warmup_steps} steps" if optim.warmup_steps else f"{optim.warmup:.0%} of the steps"
    if config.given_optimizer is not None:
        warmup = f"of {config.given_optimizer}"
    decay = (
        f"x {optim.plateau_factor} when the validation loss does not fall"
        if optim.decay == "plateau"
        else optim.decay
    )
    limit = f", at most {train.time_limit:,.0f} s" if train.time_limit else ""
    lines = [
        f"{config.recipe or config.preset}: {config.arch}-encoder on {config.dataset.name}",
        f"model: {shape.n_layers} layers x {shape.dim}, {planned.n_parameters / 1e6:.1f} M parameters, "
        f"{shape.dtype}; starts from {starts_from(config)}",
        f"head: {config.scoring}",
        f"texts: {config.text.max_turns} turns, context {config.text.context_tokens} and candidate "
        f"{config.text.candidate_tokens} tokens",
        f"training rows: {n_rows:,} ({known}); rows to rank: {rows_to_rank(config)}",
        f"steps: {steps:,} of {config.batch.batch_size} contexts, candidates: {source}; validation "
        f"every {validate_every:,} on at most {train.validate_examples:,} rows; best by "
        f"{train.best_by}{limit}",
        f"optimiser: {optim.optimizer}, rate {optim.learning_rate:g}, clip {optim.clip:g}, warm-up {warmup}, "
        f"decay {decay}; dropout {config.encoder.dropout:g}, attention {config.encoder.attention_dropout:g}",
        *teacher_lines(config),
        f"mesh: {mesh_shape(mesh)}",
        *memory_lines(planned, config),
        f"run directory: {config.folder}",
    ]
    for line in lines:
        console.print(line, highlight=False)


def teacher_lines(config: RunConfig) -> list[str]:
    """A line about the teacher and the mined negatives; none without a teacher."""
    if config.teacher is None:
        return []
    teachers = " and ".join(map(str, config.teacher.models)) or "the scores of the rows"
    mined = config.teacher.n_negatives if config.teacher.mines else 0
    return [f"teacher: {teachers}; {mined} negatives found for a row; loss {config.loss}"]


def planned_step(config: RunConfig, shape: EncoderSettings, mesh: Mesh) -> PlannedStep:
    """The training step for these settings."""
    return PlannedStep(
        ModelConfig(encoder=shape, head=config.scoring),
        config.text,
        config.optim,
        config.train,
        source=config.batch.source(config.inputs),
        listed=listed_candidates(config),
        hard=hard_negatives(config),
        mesh=mesh,
        optimizer=config.given_optimizer,
    )


def memory_lines(planned: PlannedStep, config: RunConfig) -> list[str]:
    """Lines about the memory of a step on each device, and what to do if it does not fit."""
    at_once = config.batch.chunk or config.batch.batch_size
    batch_size = config.batch.batch_size
    with console.status("compiling a step, for its memory"):
        needed = planned.memory(batch_size, config.batch.chunk)
    limit, _ = device_memory()
    lines = [memory_line(f"{at_once} contexts at once", needed)]
    if needed.total > limit:
        lines.append(f"it does not fit; {_fix(planned, needed, limit, batch_size)}")
    return lines


def step_lines(objective: Ranking, config: RunConfig, shape: EncoderSettings) -> list[str]:
    """Lines about the memory of the step to be trained, and what to do if it does not fit."""
    with console.status("compiling a step, for its memory"):
        needed = step_memory(objective, config.optim, config.train, optimizer=config.given_optimizer)
    lines = [memory_line(f"{config.batch.chunk or config.batch.batch_size} contexts at once", needed)]
    limit, _ = device_memory()
    if needed.total > limit:
        planned = planned_step(config, shape, objective.mesh)
        lines.append(f"it does not fit; {_fix(planned, needed, limit, config.batch.batch_size)}")
    return lines


def memory_line(what: str, needed: Memory) -> str:
    """A line about the memory of a step on each device."""
    limit, whose = device_memory()
    parts = ", ".join(f"{name} {size / GIB:.2g}" for name, size in dataclasses.asdict(needed).items())
    return (
        f"memory of a step, {what}: {needed.total / GIB:.2g} GiB ({parts}), by {jax.default_backend()}'s "
        f"compiler for the longest texts; {whose} has {limit / GIB:.1f} GiB"
    )


def _fix(planned: PlannedStep, needed: Memory, limit: int, batch_size: int) -> str:
    if needed.held > limit:
        return (
            f"parameters, gradients and optimiser need {needed.held / GIB:.1f} GiB: --mesh fsdp=N "
            "splits them over N devices, --train.trainable K trains the top K layers only"
        )
    chunk = planned.chunk_that_fits(limit, batch_size)
    if chunk is None:
        return (
            "not even with one context at a time on each device: recompute activations (--encoder.remat), "
            "lower --text.context-tokens, or use a smaller encoder"
        )
    fits = planned.estimate(chunk, batch_size).total / GIB
    return f"with --batch.chunk {chunk} it fits ({fits:.1f} GiB), with the same negatives and gradients"
