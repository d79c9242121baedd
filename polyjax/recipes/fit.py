"""``polyjax.fit``: train a ranker from Python."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from polyjax.data.batches import BatchConfig
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import Task
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, called_with
from polyjax.interop.hub import pinned
from polyjax.nn.encoders import EncoderSettings
from polyjax.nn.heads import HeadConfig, HeadSettings
from polyjax.ranker import Ranker
from polyjax.recipes.changes import ARGUMENTS, changed, check_arguments
from polyjax.recipes.encoder_folder import for_encoder, head_for
from polyjax.recipes.given_rows import Rows, in_its_folder, row_files, training_task
from polyjax.recipes.notebook import shown_in_notebook
from polyjax.recipes.presets import (
    PRESETS,
    default_of_run,
    for_task,
    from_scratch,
    is_plain_cross,
    joint,
)
from polyjax.recipes.rows_in_memory import drawn_among
from polyjax.recipes.run import Run
from polyjax.recipes.session import Callback, Parts, run
from polyjax.recipes.settings import (
    DEFAULT_PRESET,
    SCRATCH,
    Arch,
    EncoderChoice,
    GuideConfig,
    PresetName,
    RunConfig,
    TokenizerChoice,
)
from polyjax.recipes.teaching import TAUGHT, as_teacher
from polyjax.runtime.fields import check_types, plain
from polyjax.runtime.progress import hushed
from polyjax.train.config import TrainConfig
from polyjax.train.losses import LossConfig, loss_of
from polyjax.train.optim import OptimConfig


@called_with(ARGUMENTS)
def fit(
    data: Any,
    *,
    arch: Arch | str = "poly",
    encoder: str | os.PathLike[str] | EncoderChoice | EncoderSettings = "minilm",
    preset: PresetName | str = DEFAULT_PRESET,
    steps: int | None = None,
    epochs: float | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    init: str | os.PathLike[str] | None = None,
    valid: Rows | None = None,
    test: Rows | None = None,
    head: str | HeadConfig | HeadSettings | Mapping[str, Any] | None = None,
    loss: str | LossConfig | Callable[..., Any] | None = None,
    teacher: Any = None,
    guide: Any = None,
    optimizer: Callable[..., Any] | None = None,
    text: TextConfig | Mapping[str, Any] | None = None,
    tokenizer: TokenizerChoice | Mapping[str, Any] | None = None,
    batch: BatchConfig | Mapping[str, Any] | None = None,
    optim: OptimConfig | Mapping[str, Any] | None = None,
    train: TrainConfig | Mapping[str, Any] | None = None,
    rank: RankConfig | Mapping[str, Any] | None = None,
    early_stopping: int | None = None,
    time_limit: float | None = None,
    test_examples: int = 0,
    mesh: str = "",
    tokens_dir: str | os.PathLike[str] | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Train a ranker, test it together with baselines, and save everything in a run directory.

    Called again with the same arguments, it resumes an interrupted run, with bit-identical parameters in the
    end; a finished run is only tested again. ``polyjax train`` does the same on the command line.

    Args:
        data: the path of a .jsonl, .csv or .tsv file; rows in memory (dicts with ``context``, ``label`` and
            optional ``candidates`` and ``id``, or Examples, or a DataFrame of pandas or polars); the name
            of a data set (``chitchat``, ``convai2``, ...); or the settings of a task.
        arch: ``bi``, ``poly`` or ``cross``. With ``init`` it is the model's architecture, or ``cross`` to
            start a cross-encoder from the encoder of a bi- or poly-encoder.
        encoder: ``minilm``; ``tiny``, ``small`` or ``paper`` from scratch, with a vocabulary learnt from the
            training rows; or the folder of a pretrained encoder. An EncoderChoice also says how it computes;
            settings of a family of your own build it (``polyjax.nn.encoders.EncoderSettings``).
        preset: preset for all other settings: ``demo`` or ``long``.
        steps: training steps; the preset's limit of epochs then does not apply.
        epochs: training epochs, instead of steps.
        run_dir: the run directory; by default ``runs/TASK-ARCH-ENCODER``, for rows in memory
            ``runs/PRESET-DIGEST-ARCH-ENCODER``.
        seed: seed of initial values, shuffling, dropout and sampled negatives.
        init: start from the model of this run directory, instead of ``encoder``.
        valid: rows to validate on, a file or rows; by default a tenth of ``data``.
        test: rows to test on, likewise.
        head: settings of the scoring head, or of your own (``polyjax.nn.heads.HeadSettings``). For a
            cross-encoder also ``gated``, which starts as a bi-encoder, or ``joint``, the paper's.
        loss: a name (``softmax``, ``bce``, ``lambda``, ``approx-ndcg``; with a teacher's ``scores`` also
            ``margin-mse``, ``kl``, ``mse``, ``listmle``, ``ranknet``); a configuration object of a loss; or
            your own function, ``loss(scores [b, c], batch) -> [b]``.
        teacher: the model whose scores are learnt: a Ranker, a Run, the path of a run directory or
            CrossEncoder, or several of these. A TeacherConfig also sets the number of mined negatives, see
            docs/howto/hard-negatives-and-teachers.md. The default ``loss`` is then KL divergence plus the
            label's cross-entropy.
        guide: a bi-encoder (a Run or a path) that finds false negatives among the labels of a batch: those
            that it scores above the row's own label. A GuideConfig also sets the margin.
        optimizer: your own function ``optimizer(optim, n_steps)`` that returns an optax transformation,
            instead of the optimiser that ``optim`` describes.
        text: turns and lengths.
        tokenizer: the vocabulary.
        batch: how training batches are drawn.
        optim: optimiser and schedule.
        train: length, validation, checkpoints.
        rank: candidates among which the labels of validation and test rows are ranked.
        early_stopping: stop after this many validations without a better metric.
        time_limit: seconds of training after which the run validates, saves and stops.
        test_examples: maximum number of rows to test on, always the same ones; 0 for all.
        mesh: devices, such as ``data=4,fsdp=2``; by default all of them share each batch.
        tokens_dir: folder in which token ids of the training texts are kept for the next run; None for none.
        tensorboard: also write TensorBoard event files.
        callbacks: each is called as ``callback(step, kind, metrics)`` for every log line; ``kind`` is
            ``train`` or ``valid``. One that raises stops the run, before that step is saved.
        quiet: print nothing.

    Nested settings are configuration objects, which replace those of the preset, or dicts, which change
    some of them: ``optim={"learning_rate": 2e-5}``. Your own parts have a name and a version
    (``polyjax.part``), which the run records. To resume the run, or to load its model with ``Run.load`` or
    ``Ranker.load``, pass the same parts.

    Raises:
        InputError: an argument is invalid, a file is missing or invalid, or ``run_dir`` holds another run.

    >>> rows = [{"context": f"question {i}", "label": f"answer {i}"} for i in range(60)]
    >>> settings = {"arch": "bi", "encoder": "tiny", "steps": 2, "batch": {"batch_size": 8}, "quiet": True}
    >>> run = fit(rows, run_dir="runs/earlier", **settings)  # the same call resumes, or opens a finished run
    >>> run.test.model["n"] > 0
    True
    """
    check_arguments(locals())
    files = row_files(data, valid, test)
    learnt, teachers = _learnt(loss, teacher, guide, optimizer)
    config = _settings(
        training_task(data, valid, test),
        arch=arch,
        encoder=encoder,
        preset=preset,
        init=init,
        nested={"head": head, "text": text, "tokenizer": tokenizer, "batch": batch, "optim": optim}
        | {"train": train, "rank": rank},
        length={"steps": steps, "epochs": epochs, "early_stopping": early_stopping, "time_limit": time_limit},
        seed=seed,
        given={
            **learnt,
            "run_dir": None if run_dir is None else Path(run_dir),
            "test_examples": test_examples,
            "mesh": mesh,
            "tokens_dir": None if tokens_dir is None else Path(tokens_dir),
            "tensorboard": tensorboard,
        },
    )
    config = in_its_folder(config, files)
    with hushed(quiet), shown_in_notebook(wanted=not quiet) as display:
        logs = (*callbacks, *([] if display is None else [display.log]))
        run(config, Parts(callbacks=logs, files=files, teachers=teachers, show_table=display is None))
    return Run(config.folder, **config.own_parts)


def _settings(
    task: Task,
    *,
    arch: str,
    encoder: Any,
    preset: str,
    init: str | os.PathLike[str] | None,
    nested: Mapping[str, Any],
    length: Mapping[str, Any],
    seed: int,
    given: Mapping[str, Any],
) -> RunConfig:
    """The settings of a run: the preset's, adapted to the task, with the caller's changes."""
    task, rank = drawn_among(task, nested["rank"])
    nested = {**nested, "rank": rank}
    head, own = nested["head"], encoder if isinstance(encoder, EncoderSettings) else None
    named = head if isinstance(head, str) else None
    if named is not None:
        nested = {**nested, "head": None}
    elif isinstance(head, HeadSettings):
        if arch != "poly" and head.arch in get_args(Arch) and arch != head.arch:
            raise InputError("arch", expected=f"{head.arch!r}, as the head's settings say", got=arch)
        arch, named = head.arch, "joint" if is_plain_cross(head) else None
    defaults = _defaults(
        arch if arch in get_args(Arch) or head is None else "poly",
        preset,
        cast(Any, encoder) if own is None else _named(own),
        init,
        nested["tokenizer"],
        named,
    )
    if own is not None:
        kind = TokenizerChoice(kind="sentencepiece") if nested["tokenizer"] is None else defaults.tokenizer
        defaults = dataclasses.replace(joint(defaults), own_encoder=own, tokenizer=kind)
    config = for_task(defaults, task)
    if own is None and init is None:
        config = for_encoder(config, config.encoder.name, own_head=isinstance(head, HeadSettings))
    parts = {name: changed(getattr(config, name), value, name) for name, value in nested.items()}
    lengths = {name: plain(value) for name, value in length.items() if value is not None}
    try:
        parts["train"] = _with_length(parts["train"], lengths, plain(seed))
        check_types(parts["train"], "train")
    except InputError as error:
        name = error.argument.removeprefix("train.")
        raise error.renamed(name) if name in (*lengths, "seed") else error from None
    optim = nested["optim"]
    if isinstance(optim, OptimConfig) or "warmup" in (optim or ()) or "warmup_steps" in (optim or ()):
        config = dataclasses.replace(config, own_optimizer=None)  # drop a converted model's warm-up
    found = dataclasses.replace(config, arch=arch if init is None else config.arch, **parts, **given)
    check_types(found)
    return found


def _named(encoder: EncoderSettings) -> EncoderChoice:
    """The EncoderChoice with the name of a user's own encoder settings; InputError without a name."""
    name = getattr(encoder, "name", None)
    if not isinstance(name, str):
        raise InputError(
            "encoder",
            expected="settings with a name and a version",
            got=encoder,
            fix="put @polyjax.part(name, version=1) above their class",
        )
    return EncoderChoice(name=name)


def _defaults(
    arch: str,
    preset: str,
    encoder: str | os.PathLike[str] | EncoderChoice,
    init: str | os.PathLike[str] | None,
    tokenizer: object,
    head: str | None,
) -> RunConfig:
    """The settings of the preset, with the encoder or the model to start from."""
    for name, value, known in (("arch", arch, get_args(Arch)), ("preset", preset, tuple(PRESETS))):
        if value not in known:
            raise InputError(name, expected=f"one of {', '.join(known)}", got=value)
    make = PRESETS[cast(PresetName, preset)]
    found = make(cast(Arch, arch))
    if init is not None:
        if encoder != "minilm":
            raise InputError("encoder", problem="`init` brings its own encoder", fix="leave `encoder` out")
        return default_of_run(make, Path(init), arch=arch, head=head or "gated")
    if not isinstance(encoder, EncoderChoice):
        encoder = dataclasses.replace(found.encoder, name=pinned(os.fspath(encoder)))
    found = dataclasses.replace(found, encoder=encoder)
    found = head_for(found, head, found.encoder.name)
    of_its_own = tokenizer is None or (isinstance(tokenizer, Mapping) and "kind" not in tokenizer)
    if found.encoder.name in SCRATCH and of_its_own:
        return from_scratch(found, found.encoder.name)
    return found


def _learnt(loss: Any, teacher: Any, guide: Any, optimizer: Any) -> tuple[dict[str, Any], list[Ranker]]:
    """The settings of loss, teacher, guide and optimizer, and the teachers that are in memory."""
    teaching, teachers = as_teacher(teacher)
    given: dict[str, Any] = {"teacher": teaching}
    if loss is not None or teaching is not None:
        given["loss"] = TAUGHT if loss is None else loss_of(loss)
    if optimizer is not None:
        if not callable(optimizer):
            raise InputError("optimizer", expected="a function that makes an optimizer", got=optimizer)
        given["own_optimizer"] = optimizer
    if isinstance(guide, GuideConfig):
        given["guide"] = guide
    elif isinstance(guide, Run | str | os.PathLike):
        given["guide"] = GuideConfig(model=os.fspath(guide.folder if isinstance(guide, Run) else guide))
    elif guide is not None:
        raise InputError("guide", expected="a Run, a path or a GuideConfig", got=guide)
    return given, teachers


def _with_length(config: TrainConfig, given: Mapping[str, Any], seed: int) -> TrainConfig:
    """Training settings with the arguments given separately; explicit steps override a limit of epochs."""
    changes: dict[str, Any] = {"seed": seed, **given}
    if "steps" in given or "epochs" in given:
        changes["most_epochs"] = 0.0
        changes.setdefault("steps", 0)
        changes.setdefault("epochs", 0.0)
    return dataclasses.replace(config, **changes)
