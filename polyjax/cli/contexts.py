"""Shared by ranking commands: reading contexts and printing results."""

import dataclasses
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from polyjax.cli.flags import as_json_line, as_text
from polyjax.data.encodings import by_mark
from polyjax.errors import InputError
from polyjax.interop.hub import hub_name
from polyjax.interop.pretrained import names_minilm
from polyjax.retrieval.search.searcher import Found
from polyjax.types import Ranked


def contexts_of(given: Sequence[str]) -> Iterator[list[str]]:
    """The context on the command line, or one per line of standard input, with turns separated by tabs.

    Raises:
        InputError: nothing was given, and standard input is a terminal, closed or empty.
    """
    if given:
        yield [as_text(turn) for turn in given]
        return
    if sys.stdin is None or sys.stdin.isatty():  # None where it is closed
        raise _none()
    found = False
    for line in _lines(sys.stdin):
        turns = as_text(line.rstrip("\r\n")).split("\t")
        if any(turn.strip() for turn in turns):
            found = True
            yield [turn for turn in turns if turn.strip()]
    if not found:
        raise _none()


def check_model_given(arguments: Sequence[str], model: str, prog: str) -> None:
    """Raise InputError if no model was given, so that the last words of ``--context`` were read as one.

    Args:
        arguments: of the command line.
        model: what was read as MODEL.
        prog: name of the command.
    """
    if not (names_minilm(model) or hub_name(model)):
        check_folder_given(arguments, model, "MODEL", prog)


def check_folder_given(arguments: Sequence[str], folder: str, name: str, prog: str) -> None:
    """Raise InputError if a folder does not exist because a word of ``--context`` was read as it.

    Args:
        arguments: of the command line.
        folder: what was read as the argument.
        name: of the argument, as MODEL.
        prog: name of the command.
    """
    tail = list(takewhile(lambda word: word != "--context", reversed(arguments)))
    follows = len(tail) < len(arguments) and folder in tail and not any(w.startswith("-") for w in tail)
    if follows and not Path(folder).exists():
        raise InputError(
            prog,
            problem=f"missing: {name} (the word {folder!r}, after --context, was read as it)",
            fix=f"put it before the flags; see {prog} --help",
            is_argument=False,
        )


def _none() -> InputError:
    return InputError("context", expected="at least one turn, or lines on standard input", got=())


def _lines(stream: Any) -> Iterable[str]:
    """The lines of standard input, in the encoding that a byte order mark names if there is one."""
    if not isinstance(binary := getattr(stream, "buffer", None), io.BufferedReader):
        return stream
    marked = by_mark(binary.peek(4))
    return stream if marked is None else io.TextIOWrapper(binary, encoding=marked, errors="replace")


def show(
    context: Sequence[str], results: Sequence[Ranked] | Sequence[Found], *, as_json: bool, **more: Any
) -> None:
    """Print ranked candidates: one line each with score and text, or one JSON object for the context."""
    if as_json:
        found = [dataclasses.asdict(result) for result in results]
        print(as_json_line({"context": list(context), "results": found, **more}), flush=True)
        return
    for result in results:
        print(f"{result.score:.4f}\t{result.text}", flush=True)
