"""``polyjax export``: write a run's model for other programs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.interop.export import export_safetensors
from polyjax.recipes.models import ModelName, load_ranker
from polyjax.runtime.progress import errors

SENTENCE_TRANSFORMERS = "sentence-transformers"


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run directory's parameters as safetensors, with a README of names and shapes.

    ``polyjax export sentence-transformers RUN_DIR OUT`` writes a folder that sentence-transformers loads.

    Attributes:
        run_dir: a run directory.
        out: the folder to create; must not exist.
        step: a saved step; the best one by default.
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class ExportSentenceTransformers:
    """Write a bi-encoder as a SentenceTransformer, or a cross-encoder as a CrossEncoder, with a model card.

    Attributes:
        run_dir: a run directory of a bi-encoder with one transformer (``--head.shared-encoder``), or of a
            cross-encoder with its family's classifier (BERT's: ``--head.reduction first --head.dense tanh``);
            or such a model of the hub, ``organisation/model``, or ``minilm``.
        out: the folder to create; must not exist.
        step: a saved step; the best one by default.
        name: the model's name in README.md, as ``organisation/model``; the folder's name by default.
    """

    run_dir: Annotated[ModelName, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    step: int | None = None
    name: str | None = None


def parse(arguments: Sequence[str], *, prog: str = "polyjax export") -> Export | ExportSentenceTransformers:
    """Parse the arguments of ``polyjax export``; InputError if they are invalid."""
    if arguments and arguments[0] == SENTENCE_TRANSFORMERS:
        return parse_flags(ExportSentenceTransformers, arguments[1:], prog=f"{prog} {SENTENCE_TRANSFORMERS}")
    return parse_flags(Export, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax export") -> None:
    """Parse and export; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        if isinstance(command, ExportSentenceTransformers):
            ranker = load_ranker(command.run_dir, step=command.step, dtype="float32")
            ranker.save_pretrained(command.out, name=command.name)
            kind = "SentenceTransformer" if ranker.scorer.is_dual else "CrossEncoder"
            errors.print(f"{command.out}: a {kind}; polyjax.Ranker.load reads it too")
        else:
            export_safetensors(command.run_dir, command.out, step=command.step)
            errors.print(f"{command.out}: model.safetensors, model.json, tokenizer, README.md")
