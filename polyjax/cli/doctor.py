"""``polyjax doctor``: what is in a folder, what is used of it, and what is missing."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.interop.doctor import PROBLEM, doctor
from polyjax.runtime.progress import errors


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say in ten lines what a folder holds, what a ranker uses of it, and what is missing.

    The exit status is 0 where the folder loads, else 2.

    Attributes:
        folder: of sentence-transformers or transformers, or a run directory; or ``organisation/model`` of the
            hub, or ``minilm``.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def parse(arguments: Sequence[str], *, prog: str = "polyjax doctor") -> Doctor:
    """The settings that the command line asks for."""
    return parse_flags(Doctor, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax doctor") -> None:
    """Parse and look; invalid input, or a folder that does not load, is exit status 2."""
    with user_errors():
        *lines, last = doctor(parse(arguments, prog=prog).folder)
        print("\n".join(lines))
        if last.startswith(PROBLEM):
            errors.print(last, style="red", markup=False)
            sys.exit(2)
        print(last)
