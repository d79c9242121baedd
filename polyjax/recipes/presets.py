"""The presets, which fill a run's settings.

A preset is a function arch -> RunConfig; its docstring says the command, the time and the metric to expect.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

from polyjax.config import from_json
from polyjax.data.batches import BatchConfig
from polyjax.data.tasks import Task
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.interop.cards import read_card
from polyjax.interop.parlai.cards import PARLAI
from polyjax.interop.parlai.model import ConvertedFrom
from polyjax.interop.pretrained import is_pretraining_run
from polyjax.nn.heads import BiConfig, CrossConfig, HeadConfig, PolyConfig
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
"""Epochs after which the demo ends on few rows: twice as many steps made worse rankers (README.md)."""


def _head(arch: Arch) -> HeadConfig:
    match arch:
        case "bi":
            return BiConfig(shared_encoder=True, normalize=True, score_scale=20.0)
        case "poly":
            return PolyConfig(shared_encoder=True, normalize=True, score_scale=20.0, candidate_sharpness=10.0)
        case "cross":
            return CrossConfig(reduction="mean")


def _batch(arch: Arch) -> BatchConfig:
    # A pair costs as much as a context: for cross-encoders fewer negatives, and so more contexts.
    return BatchConfig(batch_size=8, n_negatives=7) if arch == "cross" else BatchConfig(batch_size=32)


def demo(arch: Arch) -> RunConfig:
    """The main job: three to seven minutes of training on two cores.

    polyjax train --arch poly    # test recall@1/20 .626 [.599, .653]
    polyjax train --arch bi      # .626 [.601, .653]

    Seed 0, 280 steps; untrained .526. For a cross-encoder the budget is too short: use ``long``.
    """
    return RunConfig(
        arch=arch,
        preset="demo",
        text=TextConfig(context_tokens=80, candidate_tokens=48, buckets=(32, 80)),
        head=_head(arch),
        batch=_batch(arch),
        optim=OptimConfig(decay="linear"),
        # The loss: on 300 rows recall@1 once chose the checkpoint that was .03 worse on the test rows.
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
    polyjax train --arch cross --preset long    # .572 [.547, .597]; still learning

    Seed 0; untrained .526. The runs shared the cores with each other and took 43 to 57 minutes.
    """
    short = demo(arch)
    if arch == "cross":
        text = TextConfig(context_tokens=80, candidate_tokens=48, buckets=(48, 64, 80, 104))
        # A fresh head needs many steps more than it needs many negatives in each.
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


def for_task(preset: RunConfig, task: Task) -> RunConfig:
    """A preset with another task, and with lengths that suit its texts."""
    text = task.lengths or preset.text
    if preset.init is not None:  # the lengths are the model's
        text = preset.text
    elif preset.arch == "cross":
        longest = text.pair_limit()
        text = dataclasses.replace(text, buckets=tuple(sorted({*text.buckets, longest})))
    return dataclasses.replace(preset, task=task, text=text)


def from_scratch(preset: RunConfig, encoder: str) -> RunConfig:
    """A preset with an encoder of SCRATCH, whose vocabulary is learnt from the training rows."""
    return dataclasses.replace(
        preset,
        encoder=dataclasses.replace(preset.encoder, name=encoder),
        tokenizer=TokenizerChoice(kind="sentencepiece"),
    )


def default_of_run(preset_of: Callable[[Arch], RunConfig], run_dir: Path) -> RunConfig:
    """The default settings of a run that starts from the model of a run directory.

    Args:
        preset_of: the settings of an architecture.
        run_dir: of the model.

    Raises:
        InputError: it holds no ranker, or one of another architecture than the settings'.
    """
    if is_pretraining_run(run_dir):
        raise InputError(
            "init",
            problem=f"{run_dir} is a pre-training run, which has no head",
            fix="give it as `encoder`",
        )
    card = read_card(run_dir)
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
    """A preset with a run directory's model and text settings, and the optimiser of a converted model."""
    shape = card.model.encoder
    encoder = EncoderChoice(
        name=INIT,
        **{f.name: getattr(shape, f.name) for f in dataclasses.fields(EncoderChoice) if f.name != "name"},
    )
    if preset.recipe:  # how the model is trained is the recipe's matter; what it computes is its own
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


PRESETS: dict[PresetName, Callable[[Arch], RunConfig]] = {"demo": demo, "long": long}
