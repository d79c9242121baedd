"""``polyjax doctor``: describe a model folder: its contents, what polyjax uses, what is missing."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.interop.doctor import PROBLEM, doctor
from polyjax.recipes.models import ModelName
from polyjax.runtime.progress import errors


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Describe a model folder in at most ten lines: what it holds, what a ranker uses, what is missing.

    The exit status is 0 if the folder can be loaded, else 2.

    Attributes:
        folder: a folder of sentence-transformers or transformers, a run directory, ``organisation/model`` of
            the hub, or ``minilm``.
    """

    folder: Annotated[ModelName, tyro.conf.Positional]


def parse(arguments: Sequence[str], *, prog: str = "polyjax doctor") -> Doctor:
    """Parse the arguments of ``polyjax doctor``; InputError if they are invalid."""
    return parse_flags(Doctor, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax doctor") -> None:
    """Parse and describe; invalid input, or a folder that cannot be loaded, is exit status 2."""
    with user_errors():
        *lines, last = doctor(parse(arguments, prog=prog).folder)
        print("\n".join(lines))
        if last.startswith(PROBLEM):
            errors.print(last, style="red", markup=False)
            sys.exit(2)
        print(last)
