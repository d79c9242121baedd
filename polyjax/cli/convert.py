"""``polyjax convert``: convert a model of another library to a run directory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.interop.parlai.model import convert_parlai
from polyjax.runtime.progress import errors


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a model of another library into a run directory.

    Attributes:
        source: the library.
        model_file: ``model``; its ``.opt``, ``.dict`` and ``.dict.codecs`` are beside it.
        out_dir: the run directory to create; must not exist.
        padding: ``parlai`` keeps ParlAI's dependence of scores on padding; ``none`` removes it.
    """

    source: Annotated[Literal["parlai"], tyro.conf.Positional]
    model_file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_FILE")]
    out_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    padding: Literal["none", "parlai"] = "none"


def parse(arguments: Sequence[str], *, prog: str = "polyjax convert") -> Convert:
    """Parse the arguments of ``polyjax convert``; InputError if they are invalid."""
    return parse_flags(Convert, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax convert") -> None:
    """Parse and convert; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        convert_parlai(command.model_file, command.out_dir, padding=command.padding)
        errors.print(f"{command.out_dir} is a run directory: polyjax.Ranker.load, polyjax chat")
