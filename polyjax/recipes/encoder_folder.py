"""What a run takes from its encoder's folder (head, prompts, lengths), and what it ignores."""

import dataclasses
from pathlib import Path
from typing import Any, cast

from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.interop.doctor import describe
from polyjax.interop.hub import model_folder
from polyjax.interop.pretrained import is_model_folder, is_pretraining_run
from polyjax.interop.sentence_transformers import EncoderFolder, load_head, read_folder
from polyjax.nn.encoders import GatesTexts
from polyjax.nn.heads import BiConfig, CrossConfig, GatedSettings
from polyjax.nn.scorers import Scorer
from polyjax.recipes.presets import joint, with_head
from polyjax.recipes.settings import SCRATCH, RunConfig

PROMPTS = ("context_prompt", "candidate_prompt", "embedding_prompt", "prompts", "pool_prompts")
"""The text settings of a run that come from a folder."""


def folder_of(encoder: str) -> EncoderFolder | None:
    """The settings in a folder saved by another library; None for any other encoder.

    Args:
        encoder: a name or folder, as for ``--encoder``.

    Raises:
        InputError: the folder is broken, or asks for a feature that is not implemented.
    """
    if encoder in (*SCRATCH, "minilm"):
        return None
    folder = model_folder(encoder, "encoder")
    return read_folder(folder) if is_model_folder(folder) else None


def head_for(preset: RunConfig, head: str | None, encoder: str | None) -> RunConfig:
    """A preset with the requested head.

    By default, a cross-encoder starts as a bi-encoder (``gated``) if its encoder was trained to embed texts
    with one reduction and supports gates; otherwise its head is ``joint``.

    Args:
        preset: the preset, without the task's lengths.
        head: a name for ``with_head``; None for the default.
        encoder: a name or folder, as for ``--encoder``; None for the preset's.

    Raises:
        InputError: the architecture has no such head, or the folder is broken.
    """
    if head is not None:
        return with_head(preset, head)
    if encoder is None or encoder in (*SCRATCH, "minilm") or not isinstance(preset.head, GatedSettings):
        return preset
    found = folder_of(encoder)
    if found is None:
        return joint(preset) if is_pretraining_run(Path(encoder)) else preset
    embeds = found.classifier is None and len(found.reductions) == 1
    plain = embeds and found.reductions[0] != "weighted_mean" and not (found.modules and found.modules.dense)
    return preset if plain and isinstance(found.settings, GatesTexts) else joint(preset)


def for_encoder(preset: RunConfig, encoder: str, *, own_head: bool = False) -> RunConfig:
    """A preset that computes the same as the encoder's folder, so that training starts from that model.

    A bi-encoder takes the folder's pooling modes, dense layers and kind of score. A cross-encoder takes the
    classifier of a cross-encoder's folder. Both take the prompts, and limit lengths to the folder's maximum.
    Changing the reduction of a trained encoder would cost much of its accuracy.

    Args:
        preset: the settings so far, including those of the task.
        encoder: a name or folder, as for ``--encoder``. Only a folder of another library changes anything.
        own_head: whether the caller passes a complete head, which is then left unchanged.

    Raises:
        InputError: the folder is broken, or asks for a feature that is not implemented, or that the
            architecture does not support.
    """
    found = folder_of(encoder)
    if found is None:
        return preset
    head = preset.head if own_head else _head(cast(Any, preset.head), found)
    return dataclasses.replace(preset, head=head, text=_text(preset, found))


def _head(head: Any, found: EncoderFolder) -> Any:
    if isinstance(head, CrossConfig) and found.classifier is not None:
        return found.cross_head()
    if found.classifier is None and isinstance(head, BiConfig):
        own = found.bi_head()
        scale = head.score_scale if own.normalize else 1.0  # the preset's scale is for cosines
        return dataclasses.replace(own, shared_encoder=head.shared_encoder, score_scale=scale)
    if not hasattr(head, "reduction"):
        return head
    if found.classifier is None and not isinstance(head, CrossConfig):
        dense = found.modules is not None and found.modules.dense
        several = bool(found.reductions[1:])
        if dense or several:
            what = "Dense modules" if dense else "several pooling modes"
            raise InputError(
                "encoder",
                expected=f"a folder with one pooling mode and no Dense module, for a {head.arch}-encoder",
                got=shown(f"{found.folder}, which has {what}"),
                fix="choose `arch` bi",
            )
    return dataclasses.replace(head, reduction=found.reductions[0])


def _used_alike(config: RunConfig, found: EncoderFolder) -> bool:
    """Whether the run and the folder's model both read texts separately, or both read pairs."""
    return (config.inputs == "pairs") == (found.classifier is not None)


def _text(preset: RunConfig, found: EncoderFolder) -> TextConfig:
    text, most = preset.text, found.max_length
    if preset.inputs == "pairs":
        candidate = min(text.candidate_tokens, max(most // 2, 3))
        room = most - candidate + (text.pairs == "joined")  # apart, both texts have a start token
        lengths = {"context_tokens": min(text.context_tokens, room)}
    else:
        candidate = min(text.candidate_tokens, most)
        lengths = {"context_tokens": min(text.context_tokens, most)}
    prompts: dict[str, Any] = {}
    if _used_alike(preset, found):
        own = found.text(turns=text.max_turns)
        prompts = {name: getattr(own, name) for name in PROMPTS}
    return dataclasses.replace(text, candidate_tokens=candidate, **lengths, **prompts)


def start_head(scorer: Scorer, config: RunConfig) -> None:
    """Set the head's parameters from the encoder's folder if that has a head with the same settings."""
    found = None if config.own_encoder is not None else folder_of(config.encoder.name)
    if found is not None and _has_own_head(config, found):
        load_head(scorer, found)


def _has_own_head(config: RunConfig, found: EncoderFolder) -> bool:
    """Whether the folder holds parameters for the run's head."""
    head = config.scoring
    if isinstance(head, CrossConfig) and found.classifier is not None:
        return dataclasses.replace(found.classifier.head, activation=head.activation) == head
    if isinstance(head, BiConfig) and found.classifier is None:
        own = found.bi_head()
        return bool(own.dense) and (own.reduction, own.also, own.dense) == (
            head.reduction,
            head.also,
            head.dense,
        )
    return False


def encoder_lines(config: RunConfig, source: Path | None) -> list[str]:
    """A description of the folder that a run starts from, as ``polyjax doctor`` prints it.

    Args:
        config: settings of the run.
        source: folder of the initial weights; None for none.

    Returns:
        Lines; none if the folder was not saved by another library.
    """
    found = None if source is None or config.own_encoder is not None else folder_of(config.encoder.name)
    return [] if found is None else describe(found)


def encoder_notes(config: RunConfig, source: Path | None) -> list[str]:
    """Lines, each beginning with ``warning:``, about what a run ignores of its encoder's folder.

    Args:
        config: settings of the run.
        source: folder of the initial weights; None for none.
    """
    found = None if source is None or config.own_encoder is not None else folder_of(config.encoder.name)
    if found is None:
        return []
    head, text = cast(Any, config.scoring), found.text(turns=config.text.max_turns)
    used = (getattr(head, "reduction", None), *getattr(head, "also", ()))
    notes = []
    if used[0] is not None and found.classifier is None and used != found.reductions:
        notes.append(
            f"warning: {source} was trained with the reduction {' and '.join(found.reductions)}; this run "
            f"reduces by {' and '.join(map(str, used))}"
        )
    dense = found.modules is not None and bool(found.modules.dense)
    same_prompts = all(getattr(config.text, name) == getattr(text, name) for name in PROMPTS)
    left = {
        "dense layers": dense and not _has_own_head(config, found),
        "prompts": any(found.prompts.values()) and not (same_prompts and _used_alike(config, found)),
        "its classifier": found.classifier is not None and not _has_own_head(config, found),
    }
    if any(left.values()):
        named = " and ".join(name for name, is_left in left.items() if is_left)
        notes.append(f"warning: training does not use {named} of {source}")
    longest = max(config.text.context_tokens, config.text.candidate_tokens)
    if config.inputs == "pairs" and config.text.pairs == "joined":
        longest = config.text.pair_limit()
    if longest > found.max_length:
        notes.append(
            f"warning: {source} reads {found.max_length} tokens ({found.max_length_from}); "
            f"this run reads {longest}"
        )
    return notes
