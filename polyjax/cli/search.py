"""``polyjax search``: find the best candidates of an index."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.contexts import check_folder_given, check_model_given, contexts_of, show
from polyjax.cli.flags import parse_flags, user_errors
from polyjax.errors import InputError
from polyjax.nn.encoders import Dtype
from polyjax.recipes.models import ModelName, load_ranker
from polyjax.retrieval.search.searcher import Method
from polyjax.runtime.compilation import enable_compilation_cache


@dataclasses.dataclass(frozen=True)
class Search:
    """Find the best candidates of an index, best first: one line each with score and text.

    Attributes:
        model: what the index was built with: a run directory, a folder of sentence-transformers or
            transformers, ``organisation/model`` of the hub, or ``minilm``.
        index: folder of the index (``polyjax index build``).
        context: the turns, oldest first. Without them, each line of standard input is a context, with turns
            separated by tabs.
        top: print the N best.
        method: ``scan`` and ``certified`` are exact; ``auto`` chooses the faster of the two; ``quick`` is
            approximate, with scores in bfloat16 first.
        rerank: a model, such as a cross-encoder, that re-ranks the best candidates; named like ``model``.
        rerank_top: number of candidates to re-rank.
        json: print one JSON object per context.
        step: a saved step; the best one by default.
        dtype: dtype of the computation; that of the model by default.
    """

    model: Annotated[ModelName, tyro.conf.Positional]
    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    context: tuple[str, ...] = ()
    top: int = 10
    method: Method = "auto"
    rerank: ModelName | None = None
    rerank_top: int = 50
    json: bool = False
    step: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.top < 1:
            raise InputError("top", expected="at least 1", got=self.top)
        if self.rerank is not None and self.rerank_top < self.top:
            raise InputError("rerank_top", expected=f"at least `top` ({self.top})", got=self.rerank_top)


def parse(arguments: Sequence[str], *, prog: str = "polyjax search") -> Search:
    """Parse the arguments of ``polyjax search``; InputError if they are invalid."""
    command = parse_flags(Search, arguments, prog=prog)
    check_model_given(arguments, command.model, prog)
    check_folder_given(arguments, str(command.index), "INDEX", prog)
    return command


def main(arguments: Sequence[str], *, prog: str = "polyjax search") -> None:
    """Parse and search; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        enable_compilation_cache()
        ranker = load_ranker(command.model, step=command.step, dtype=command.dtype)
        rerank = None if command.rerank is None else load_ranker(command.rerank)
        ranker.open_index(command.index)
        for context in contexts_of(command.context):
            found = ranker.search(
                context, command.top, method=command.method, rerank=rerank, rerank_top=command.rerank_top
            )
            show(context, found, as_json=command.json, certified=found.certified)
