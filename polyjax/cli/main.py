"""The ``polyjax`` command: each subcommand is a file beside this one, imported on demand."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from polyjax.cli.flags import command_of, user_errors
from polyjax.version import __version__

COMMANDS = {
    "train": "train a ranker and evaluate it",
    "evaluate": "evaluate a run on its test rows, or on others",
    "pretrain": "pre-train an encoder",
    "mine": "mine hard negatives for training rows",
    "distil": "train a ranker on the scores of others",
    "rank": "order candidates for a context",
    "search": "find the best candidates of an index",
    "index": "build an index, add to it, remove from it (build, add, remove, compact, info)",
    "chat": "chat with a model over many candidates",
    "serve": "serve a model over HTTP, with a page",
    "convert": "convert a ParlAI model to a run directory",
    "doctor": "describe a model folder: its contents, what is used, what is missing",
    "export": "write a run's parameters for other programs",
}
"""The commands, with a description of each."""


def overview() -> str:
    """The output of ``polyjax --help``: one line per command."""
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join([f"polyjax {__version__}", "", *lines, "", "polyjax COMMAND --help shows its flags."])


def parse(arguments: Sequence[str]) -> Any:
    """Parse a command line without running the command.

    Raises:
        InputError: the command is unknown, or its flags are invalid.
    """
    name, rest = command_of(arguments, COMMANDS, "polyjax")
    return importlib.import_module(f"polyjax.cli.{name}").parse(rest)


def main() -> None:
    """Entry point; invalid input is one line and exit status 2."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(overview())
        return
    if arguments == ["--version"]:
        print(__version__)
        return
    with user_errors():
        name, rest = command_of(arguments, COMMANDS, "polyjax")
    importlib.import_module(f"polyjax.cli.{name}").main(rest)


if __name__ == "__main__":
    main()
