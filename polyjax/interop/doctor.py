"""Describes a model folder in at most ten lines: its contents, what polyjax uses, what is missing."""

import os
from pathlib import Path

import jax
from flax import nnx

from polyjax.data.huggingface_tokenizer import TOKENIZER_CONFIG_FILE
from polyjax.errors import InputError
from polyjax.interop.cards import read_card
from polyjax.interop.hub import model_folder
from polyjax.interop.huggingface import minilm_folder
from polyjax.interop.pretrained import is_pretraining_run, is_ranking_run, names_minilm, read_pretraining_card
from polyjax.interop.sentence_transformers import MODULES, PROMPTS, EncoderFolder, load_folder, read_folder
from polyjax.nn.abstract import abstract_model
from polyjax.nn.encoders import EncoderSettings
from polyjax.runs import TOKENIZER, saved_steps

PROBLEM = "problem"
"""The first word of the last line when a folder cannot be loaded."""


def doctor(folder: str | os.PathLike[str]) -> list[str]:
    """Describe a folder in at most ten lines: what it is, what a ranker uses of it, and what is missing.

    The weights of a model folder are loaded too, so that missing or broken tensors are found. The
    checkpoints of a run directory are listed, not loaded.

    Args:
        folder: a folder of sentence-transformers or transformers, a run directory, ``minilm``, or a model of
            the hub, ``organisation/model`` or ``organisation/model@revision``.

    Returns:
        Lines of the form ``name: value``. The last is ``loads: yes``, or begins with ``problem:``.
    """
    lines = [f"folder: {os.fspath(folder)}"]
    try:
        folder = minilm_folder() if names_minilm(folder) else model_folder(folder)
        lines = [f"folder: {folder}"]
        if is_ranking_run(folder):
            lines += _of_run(folder)
        elif is_pretraining_run(folder):
            lines += _of_pretraining(folder)
        else:
            found = read_folder(folder)
            lines += [*describe(found), f"missing: {_missing(found)}"]
            load_folder(folder, turns=2)
    except InputError as error:
        return [*lines, f"{PROBLEM}: {error}"]
    return [*lines, "loads: yes"]


def describe(found: EncoderFolder) -> list[str]:
    """A folder's model in seven lines, from its JSON and tokenizer files; weights are not read.

    Raises:
        InputError: the tokenizer is missing or broken.
    """
    crossed = found.classifier is not None
    modules = "no modules.json" if found.modules is None else f"modules {', '.join(found.modules.names)}"
    tokenizer = found.tokenizer()
    lower = ", texts are lower-cased first" if found.lower_case else ""
    spelled = "text" if tokenizer.markers == "text" else "special tokens"
    return [
        f"kind: {'cross' if crossed else 'bi'}-encoder, {found.entries.entries['model_type']}, {modules}",
        f"encoder: {size_of(found.settings)}",
        f"tokenizer: {tokenizer.vocab_size:,} tokens; [SEP] and the like in a text are {spelled}{lower}",
        f"length: {found.max_length} tokens ({found.max_length_from})",
        f"reduction: {_reduction(found)}",
        f"score: {_score(found)}",
        f"prompts: {_prompts(found)}",
    ]


def size_of(settings: EncoderSettings) -> str:
    """An encoder's size as a text: layers, width, parameters (millions), positions."""
    abstract = abstract_model(lambda rngs: settings.build(rngs=rngs))
    n = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract)))
    size = f"{settings.n_layers} layers x {settings.dim}, {n / 1e6:.1f} M parameters"
    return f"{size}, {settings.n_positions} positions"


def _reduction(found: EncoderFolder) -> str:
    layers = (
        ""
        if found.modules is None
        else "".join(
            f"{', length 1' if module.config.unit_input else ''}, dense to {module.config.dim} "
            f"({module.config.activation})"
            for module in found.modules.dense
        )
    )
    unit = ", length 1" if found.modules is not None and found.modules.normalize else ""
    return f"{' and '.join(found.reductions)}{layers}{unit} ({found.why})"


def _score(found: EncoderFolder) -> str:
    if found.classifier is None:
        return "cosine" if found.bi_head().normalize else "dot product"
    head = found.classifier.head
    before = "a linear layer" if head.dense == "none" else f"a dense layer ({head.dense}) and a linear one"
    return f"{before}, activation {found.activation}"


def _prompts(found: EncoderFolder) -> str:
    default = found.prompts.get(found.default_prompt or "", "")
    if found.classifier is not None:
        return f"{default!r} before the first text" if default else "none"
    context, candidate = found.role_prompts()
    if not (context or candidate or default):
        return "none"
    kept = "" if found.modules is None or found.modules.pool_prompts else "; their tokens are not pooled"
    return f"contexts {context!r}, candidates {candidate!r}, embedded texts {default!r}{kept}"


def _missing(found: EncoderFolder) -> str:
    """The optional files that are absent, each with the default used instead."""
    instead = {
        found.folder / MODULES: "the mean of real tokens is taken" if found.classifier is None else None,
        found.folder / PROMPTS: "no prompts" if found.classifier is None else None,
        found.transformer / TOKENIZER_CONFIG_FILE: "special tokens are BERT's",
    }
    absent = [f"{path.name} ({then})" for path, then in instead.items() if then and not path.is_file()]
    return ", ".join(absent) or "nothing"


def _of_run(folder: Path) -> list[str]:
    card, text = read_card(folder), read_card(folder).text
    return [
        f"kind: run directory of a {card.model.head.arch}-encoder",
        f"encoder: {size_of(card.model.encoder)}",
        f"tokenizer: {', '.join(sorted(path.name for path in (folder / TOKENIZER).glob('*'))) or 'missing'}",
        f"length: contexts {text.context_tokens} tokens, candidates {text.candidate_tokens}",
        f"reduction: {getattr(card.model.head, 'reduction', 'as its head does')}",
        f"prompts: contexts {text.context_prompt!r}, candidates {text.candidate_prompt!r}",
        f"checkpoints: {', '.join(map(str, _saved(folder)))}",
    ]


def _of_pretraining(folder: Path) -> list[str]:
    card = read_pretraining_card(folder)
    return [
        "kind: run directory of pre-training",
        f"encoder: {size_of(card.encoder)}",
        f"length: {card.text.context_tokens} tokens",
        "reduction: mean (an encoder that was not trained to rank)",
        f"checkpoints: {', '.join(map(str, _saved(folder)))}",
    ]


def _saved(folder: Path) -> list[int]:
    """The saved steps of a run.

    Raises:
        InputError: no step is saved.
    """
    steps = saved_steps(folder)
    if not steps:
        raise InputError.in_file(folder, problem="no checkpoint is saved", fix="train further")
    return steps
