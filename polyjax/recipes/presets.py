"""The presets: default settings of a run.

A preset is a function arch -> RunConfig. Its docstring has the command, the expected time and the expected
metric.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from polyjax.config import from_json
from polyjax.data.batches import BatchConfig
from polyjax.data.tasks import Task
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.interop.cards import read_card
from polyjax.interop.parlai.cards import PARLAI
from polyjax.interop.parlai.model import ConvertedFrom
from polyjax.interop.pretrained import is_pretraining_run
from polyjax.nn.heads import (
    BiConfig,
    CrossConfig,
    GatedCrossConfig,
    GatedSettings,
    HeadConfig,
    PolyConfig,
)
from polyjax.nn.scorers import check_gates
from polyjax.recipes.settings import (
    INIT,
    Arch,
    EncoderChoice,
    PresetName,
    RunConfig,
    TokenizerChoice,
)
from polyjax.runs import CONFIG, ModelCard, read_json
from polyjax.train.config import TrainConfig
from polyjax.train.optim import OptimConfig

MOST_EPOCHS = 5.0
"""Maximum number of epochs of the demo on few rows: twice as many steps gave worse rankers (README.md)."""


def _head(arch: Arch) -> HeadConfig:
    match arch:
        case "bi":
            return BiConfig(shared_encoder=True, normalize=True, score_scale=20.0)
        case "poly":
            return PolyConfig(shared_encoder=True, normalize=True, score_scale=20.0, candidate_sharpness=10.0)
        case "cross":
            return CrossConfig(reduction="mean")


def _batch(arch: Arch) -> BatchConfig:
    # A cross-encoder's pair costs as much as a context: use fewer negatives per context.
    return BatchConfig(batch_size=8, n_negatives=7) if arch == "cross" else BatchConfig(batch_size=32)


def demo(arch: Arch) -> RunConfig:
    """The default preset: three to seven minutes of training on two cores.

    polyjax train --arch poly    # test recall@1/20 .626 [.599, .653]
    polyjax train --arch bi      # .626 [.601, .653]

    Seed 0, 280 steps; untrained .526. A cross-encoder starts as a bi-encoder (``gated``); its result was not
    measured.
    """
    return gated(_demo(arch)) if arch == "cross" else _demo(arch)


def _demo(arch: Arch) -> RunConfig:
    return RunConfig(
        arch=arch,
        preset="demo",
        text=TextConfig(context_tokens=80, candidate_tokens=48, buckets=(32, 80)),
        head=_head(arch),
        batch=_batch(arch),
        optim=OptimConfig(decay="linear"),
        # By the loss: on 300 rows, recall@1 once chose a checkpoint that was .03 worse on the test rows.
        train=TrainConfig(
            steps=280,
            most_epochs=MOST_EPOCHS,
            validate_every_steps=140,
            validate_examples=300,
            best_by="loss",
        ),
    )


def long(arch: Arch) -> RunConfig:
    """About half an hour on two cores.

    polyjax train --arch poly --preset long     # test recall@1/20 .696 [.670, .724]
    polyjax train --arch bi --preset long       # .688 [.661, .716]
    polyjax train --arch cross --preset long --head joint    # .572 [.547, .597]; still learning

    Seed 0; untrained .526. The runs shared the cores with each other and took 43 to 57 minutes. The default
    cross-encoder, which starts as a bi-encoder (``gated``), reads as many pairs, in 1,000 steps of 8 x 8; its
    result was not measured.
    """
    if arch != "cross":
        return _long(arch)
    start = gated(_long(arch))
    return dataclasses.replace(
        start, train=dataclasses.replace(start.train, steps=1000, validate_every_steps=200)
    )


def _long(arch: Arch) -> RunConfig:
    short = _demo(arch)
    if arch == "cross":
        text = TextConfig(context_tokens=80, candidate_tokens=48, buckets=(48, 64, 80, 104))
        # A new head needs many steps more than it needs many negatives per step.
        batch = BatchConfig(batch_size=8, n_negatives=3)
        train = TrainConfig(steps=2000, validate_every_steps=400, validate_examples=300, best_by="loss")
        return dataclasses.replace(short, preset="long", text=text, batch=batch, train=train)
    return dataclasses.replace(
        short,
        preset="long",
        text=TextConfig(context_tokens=80, candidate_tokens=48, buckets=(32, 48, 64, 80)),
        batch=BatchConfig(batch_size=64),
        train=TrainConfig(steps=1400, validate_every_steps=200, validate_examples=1000, best_by="loss"),
    )


def gated(preset: RunConfig) -> RunConfig:
    """A preset for a cross-encoder that starts as the bi-encoder with the same weights.

    Each context has 8 candidates and up to 6 of its own hard negatives. The learning rate is low: with 1e-4
    and batches of 8 contexts, a cross-encoder became worse than the poly-encoder that it started from.
    """
    text = dataclasses.replace(preset.text, pairs="apart")
    buckets = tuple(sorted({*text.buckets, 48, 64, 80, 104, text.pair_limit()}))
    return dataclasses.replace(
        preset,
        head=GatedCrossConfig(normalize=True, score_scale=20.0),
        text=dataclasses.replace(text, buckets=buckets),
        batch=BatchConfig(batch_size=8, n_negatives=7, hard_negatives=6),
        optim=OptimConfig(decay="linear", learning_rate=1.5e-5),
    )


def joint(preset: RunConfig) -> RunConfig:
    """A cross-encoder's preset with the paper's head and its training settings; other presets unchanged."""
    if not isinstance(preset.head, GatedSettings):
        return preset
    plain = {"demo": _demo, "long": _long}[preset.preset]("cross")
    given = {name: getattr(plain, name) for name in ("head", "text", "batch", "optim", "train")}
    return dataclasses.replace(preset, **given)


CROSS_HEADS: dict[str, Callable[[RunConfig], RunConfig]] = {"gated": lambda preset: preset, "joint": joint}
"""Heads of a cross-encoder by name (argument ``head``); presets have ``gated``."""


def is_plain_cross(head: object) -> bool:
    """Whether settings are of a cross-encoder's head without gates, to be trained like ``joint``."""
    return getattr(head, "arch", None) == "cross" and not isinstance(head, GatedSettings)


def with_head(preset: RunConfig, name: str) -> RunConfig:
    """A preset with the head of a given name, one of ``CROSS_HEADS``.

    Raises:
        InputError: the architecture has no such head, or the preset is a recipe, which has its own head.
    """
    if preset.arch != "cross":
        raise InputError("head", problem=f"a {preset.arch}-encoder has one head", fix="leave `head` out")
    if preset.recipe:
        raise InputError("head", problem=f"`recipe` {preset.recipe} has its own", fix="leave `head` out")
    if name not in CROSS_HEADS:
        raise InputError("head", expected=f"one of {', '.join(CROSS_HEADS)}", got=name)
    return CROSS_HEADS[name](preset)


def for_task(preset: RunConfig, task: Task) -> RunConfig:
    """A preset for another task, with lengths that suit its texts."""
    text = dataclasses.replace(task.lengths or preset.text, pairs=preset.text.pairs)
    if preset.init is not None:  # the lengths are the model's
        text = preset.text
    elif preset.arch == "cross":
        longest = text.pair_limit()
        text = dataclasses.replace(text, buckets=tuple(sorted({*text.buckets, longest})))
    return dataclasses.replace(preset, task=task, text=text)


def from_scratch(preset: RunConfig, encoder: str) -> RunConfig:
    """A preset with an encoder of SCRATCH, whose vocabulary is trained on the training rows."""
    return dataclasses.replace(
        joint(preset),  # without pretrained weights there is no bi-encoder to start from
        encoder=dataclasses.replace(preset.encoder, name=encoder),
        tokenizer=TokenizerChoice(kind="sentencepiece"),
    )


def default_of_run(
    preset_of: Callable[[Arch], RunConfig], run_dir: Path, *, arch: str | None = None, head: str = "gated"
) -> RunConfig:
    """The default settings of a run that starts from the model of a run directory.

    Args:
        preset_of: returns the settings for an architecture.
        run_dir: run directory of the model.
        arch: ``cross`` for a cross-encoder that starts from the encoder of a bi- or poly-encoder; otherwise
            the model's architecture is used.
        head: head of that cross-encoder, one of ``CROSS_HEADS``.

    Raises:
        InputError: the directory has no ranker, or one of another architecture than the settings, or one
            that a cross-encoder cannot start from.
    """
    if is_pretraining_run(run_dir):
        raise InputError(
            "init",
            problem=f"{run_dir} is a pre-training run, which has no head",
            fix="give it as `encoder`",
        )
    card = read_card(run_dir)
    if arch == "cross" and card.model.head.inputs == "dual":
        return cross_from_run(preset_of("cross"), run_dir, card, head)
    arch = cast(Arch, card.model.head.arch)
    origin = read_json(run_dir / CONFIG)
    found = None
    if isinstance(origin, dict) and origin.get("type") == ConvertedFrom.__name__:
        found = from_json(ConvertedFrom, origin, source=str(run_dir / CONFIG), foreign=PARLAI)
    preset = preset_of(arch)
    if preset.arch != arch:
        raise InputError(
            "init",
            problem=f"{run_dir} is a {arch}-encoder, the recipe {preset.recipe} a {preset.arch}-encoder's",
            fix="choose the recipe of the model's architecture",
        )
    return from_run(preset, run_dir, card, None if preset.recipe else found)


def from_run(preset: RunConfig, run_dir: Path, card: ModelCard, origin: ConvertedFrom | None) -> RunConfig:
    """A preset with the model and text settings of a run directory, and a converted model's optimiser.

    Args:
        preset: settings to start from.
        run_dir: run directory of the model.
        card: its model card.
        origin: where a converted model comes from; None for any other model.
    """
    shape = card.model.encoder
    encoder = EncoderChoice(
        name=INIT,
        **{f.name: getattr(shape, f.name) for f in dataclasses.fields(EncoderChoice) if f.name != "name"},
    )
    if preset.recipe:  # the recipe sets dropout and dtype; the rest belongs to the model
        kept = ("dropout", "attention_dropout", "dtype")
        encoder = dataclasses.replace(encoder, **{name: getattr(preset.encoder, name) for name in kept})
    return dataclasses.replace(
        preset,
        init=run_dir,
        encoder=encoder,
        tokenizer=TokenizerChoice(),
        head=card.model.head,
        text=card.text,
        optim=preset.optim if origin is None else origin.optim,
        own_optimizer=None if origin is None else origin.optimizer,
    )


def cross_from_run(preset: RunConfig, run_dir: Path, card: ModelCard, name: str) -> RunConfig:
    """A preset for a cross-encoder that starts from the encoder of a bi- or poly-encoder.

    With the head ``gated``, its initial scores are close to those of a bi-encoder with that encoder and the
    run's reduction and score scale.

    Raises:
        InputError: the run has two encoders or further layers, the encoder does not support the head, or the
            preset is a recipe.
    """
    if preset.recipe:
        started = f"{run_dir} is a {card.model.head.arch}-encoder"
        problem = f"{started}, the recipe {preset.recipe} a cross-encoder's"
        raise InputError("init", problem=problem, fix="choose the recipe of the model's architecture")
    head: Any = card.model.head
    if not head.shared_encoder:
        problem = f"{run_dir} has two encoders, a cross-encoder has one"
        raise InputError("init", problem=problem, fix="train it with `head.shared_encoder`")
    beyond = [field for field in ("also", "dense", "candidate_mlp") if getattr(head, field, None)]
    if beyond:
        raise InputError(
            "init", problem=f"a cross-encoder has no `head.{beyond[0]}`, which {run_dir} was trained with"
        )
    preset = with_head(preset, name)
    taken: Any = preset.head
    if isinstance(preset.head, GatedSettings):
        check_gates(card.model.encoder)
        if head.reduction == "weighted_mean":
            raise InputError("init", expected="a run with another reduction", got=head.reduction)
        shared = {field: getattr(head, field) for field in ("reduction", "normalize", "score_scale")}
        taken = dataclasses.replace(taken, **shared)
    text = dataclasses.replace(card.text, pairs=preset.text.pairs)
    buckets = {*text.buckets, *preset.text.buckets, text.pair_limit()}
    text = dataclasses.replace(text, buckets=tuple(sorted(buckets)))
    model = dataclasses.replace(card.model, head=taken)
    return from_run(preset, run_dir, dataclasses.replace(card, model=model, text=text), None)


PRESETS: dict[PresetName, Callable[[Arch], RunConfig]] = {"demo": demo, "long": long}
