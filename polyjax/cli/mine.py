"""``polyjax mine``: mine hard negatives for training rows, by exact search with a run's model."""

from collections.abc import Sequence

import tyro

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.cli.training_flags import TASK_HELP, chosen_task, with_task
from polyjax.recipes.mine import MineConfig, run
from polyjax.runtime.compilation import enable_compilation_cache


def parse(arguments: Sequence[str], *, prog: str = "polyjax mine") -> MineConfig:
    """Parse the arguments of ``polyjax mine``; InputError if they are invalid."""
    task, others = chosen_task(arguments, prog=prog)
    return parse_flags(
        tyro.conf.AvoidSubcommands[with_task(MineConfig, task)],
        others,
        prog=prog,
        description=f"Write the rows of a task with hard negatives and scores. {TASK_HELP}",
    )


def main(arguments: Sequence[str], *, prog: str = "polyjax mine") -> None:
    """Parse and mine; invalid input is one line and exit status 2."""
    with user_errors():
        config = parse(arguments, prog=prog)
        enable_compilation_cache()
        run(config)
