"""``polyjax rank``: rank candidates for a context."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.contexts import check_model_given, contexts_of, show
from polyjax.cli.flags import parse_flags, user_errors
from polyjax.data.candidates import candidate_lines, say_copies
from polyjax.data.identity import different
from polyjax.errors import InputError
from polyjax.nn.encoders import Dtype
from polyjax.recipes.models import ModelName, load_ranker
from polyjax.runtime.compilation import enable_compilation_cache


@dataclasses.dataclass(frozen=True)
class Rank:
    """Order candidates for a context, best first: one line each with score and text.

    Attributes:
        model: a run directory, a folder of sentence-transformers or transformers, ``organisation/model`` of
            the hub, or ``minilm``, which is not trained to rank.
        candidates: a file with one candidate per line.
        context: the turns, oldest first. Without them, each line of standard input is a context, with turns
            separated by tabs.
        top: print only the N best; 0 for all.
        json: print one JSON object per context.
        step: a saved step; the best one by default.
        dtype: dtype of the computation; that of the model by default.
    """

    model: Annotated[ModelName, tyro.conf.Positional]
    candidates: Path
    context: tuple[str, ...] = ()
    top: int = 10
    json: bool = False
    step: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.top < 0:
            raise InputError("top", expected="0 (all) or more", got=self.top)


def parse(arguments: Sequence[str], *, prog: str = "polyjax rank") -> Rank:
    """Parse the arguments of ``polyjax rank``; InputError if they are invalid."""
    command = parse_flags(Rank, arguments, prog=prog)
    check_model_given(arguments, command.model, prog)
    return command


def main(arguments: Sequence[str], *, prog: str = "polyjax rank") -> None:
    """Parse and rank; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        enable_compilation_cache()
        lines = candidate_lines(command.candidates)
        candidates = different(lines)
        say_copies(len(lines) - len(candidates))
        ranker = load_ranker(command.model, step=command.step, dtype=command.dtype)
        for context in contexts_of(command.context):
            ranked = ranker.rank(context, candidates, command.top or None)
            show(context, ranked, as_json=command.json)
