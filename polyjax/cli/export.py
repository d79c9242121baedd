"""``polyjax export``: a run's parameters in a form that other programs read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.interop.export import export_safetensors
from polyjax.runtime.progress import errors


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run directory's parameters as safetensors, with a page of names and shapes.

    Attributes:
        run_dir: a run directory.
        out: the folder to make; must not exist.
        step: a saved step; the best one by default.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    step: int | None = None


def parse(arguments: Sequence[str], *, prog: str = "polyjax export") -> Export:
    """The settings that the command line asks for."""
    return parse_flags(Export, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax export") -> None:
    """Parse and export; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        export_safetensors(command.run_dir, command.out, step=command.step)
        errors.print(f"{command.out}: model.safetensors, model.json, tokenizer, README.md")
