"""``polyjax evaluate``: evaluate a run's best checkpoint. ``experiments/evaluate.py`` is the same."""

import sys
from collections.abc import Sequence

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.cli.training_flags import TASK_HELP, chosen_task, with_task
from polyjax.mesh.processes import connect, leaving_at_once, losses_named
from polyjax.recipes.evaluate import EvaluateConfig, run
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.memory import restart_with_huge_pages


def parse(arguments: Sequence[str], *, prog: str = "polyjax evaluate") -> EvaluateConfig:
    """Parse the arguments of ``polyjax evaluate``; InputError if they are invalid."""
    task, others = chosen_task(arguments, prog=prog)
    return parse_flags(
        tyro.conf.AvoidSubcommands[with_task(EvaluateConfig, task)],
        others,
        prog=prog,
        description=f"Evaluate a run directory's model. {TASK_HELP}",
    )


def main(arguments: Sequence[str] | None = None, *, prog: str = "polyjax evaluate") -> None:
    """Parse and evaluate; invalid input is one line and exit status 2."""
    restart_with_huge_pages()
    with leaving_at_once(), user_errors(), losses_named():
        config = parse(sys.argv[1:] if arguments is None else arguments, prog=prog)
        enable_compilation_cache()
        connect()
        run(config)
