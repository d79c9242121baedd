"""``polyjax train``: train a ranker and evaluate it. ``python experiments/run.py`` is the same."""

import sys
from collections.abc import Sequence

from polyjax.cli.flags import user_errors
from polyjax.cli.training_flags import parse_run
from polyjax.mesh.processes import connect, leaving_at_once, losses_named
from polyjax.recipes.session import run
from polyjax.recipes.settings import RunConfig
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.memory import restart_with_huge_pages


def parse(arguments: Sequence[str], *, prog: str = "polyjax train") -> RunConfig:
    """Parse the arguments of ``polyjax train``; InputError if they are invalid."""
    return parse_run(arguments, prog=prog)


def main(arguments: Sequence[str] | None = None, *, prog: str = "polyjax train") -> None:
    """Parse and train; invalid input is one line and exit status 2."""
    restart_with_huge_pages()
    with leaving_at_once(), user_errors(), losses_named():
        config = parse_run(sys.argv[1:] if arguments is None else arguments, prog=prog)
        enable_compilation_cache()
        connect()
        run(config)
