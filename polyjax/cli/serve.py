"""``polyjax serve``: serve a ranker over HTTP, for existing clients, with a page to try it."""

import dataclasses
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.chat import kept_index, load_index
from polyjax.cli.flags import parse_flags, user_errors
from polyjax.errors import InputError
from polyjax.inference.score_map import ScoreMap
from polyjax.interop.cards import read_card
from polyjax.interop.hub import hub_name
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker
from polyjax.recipes.models import ModelName, load_ranker, run_folder
from polyjax.runs import MODEL
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import errors

EXTRA = ("starlette", "uvicorn", "prometheus_client", "h11")
"""Packages of the extra ``serve``."""
try:
    from polyjax.serve import LiveIndex, ServeConfig, bind, create_app, log_to, serve
except ModuleNotFoundError as error:
    if error.name not in EXTRA:
        raise
    errors.print(f"error: {error.name} is not installed; run `pip install 'polyjax[serve]'`", markup=False)
    sys.exit(2)

KEY_VARIABLE = "POLYJAX_API_KEY"
log = logging.getLogger("polyjax.serve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve(ServeConfig):
    """Serve a ranker over HTTP, with a page at / and the API's description at /docs.

    Attributes:
        model: a run directory, a folder of sentence-transformers or transformers, ``organisation/model`` of
            the hub, or ``minilm``, which is not trained to rank.
        index: folder of the index that /search uses, from ``polyjax index build``.
        candidates: a file with one candidate per line, to search instead; its index is kept in RUN_DIR/index,
            or in memory for ``minilm`` and models of the hub.
        rerank: another model, such as a cross-encoder, that re-ranks search results; it is named like
            ``model``.
        hostname: address to listen on; 0.0.0.0 for all addresses of the machine.
        port: port to listen on; 0 for any free one, which the log names.
        api_key: key that requests must carry. Other users of the machine can see it in the list of processes;
            the variable POLYJAX_API_KEY and ``--api-key-file`` hide it.
        api_key_file: a file with one key per line; each of them is accepted.
        step: a saved step; the best one by default.
        dtype: dtype of the computation; that of the model by default.
    """

    model: Annotated[ModelName, tyro.conf.Positional]
    index: Path | None = None
    candidates: Path | None = None
    rerank: ModelName | None = None
    hostname: str = "127.0.0.1"
    port: int = 8080
    api_key: str = ""
    api_key_file: Path | None = None
    step: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        super().__post_init__()
        if self.index is not None and self.candidates is not None:
            raise InputError("candidates", problem="`index` is given as well", fix="give one of them")
        if self.allow_changes and self.candidates is not None:
            raise InputError(
                "allow_changes",
                problem="changes would be lost at the next start, which reads `candidates` again",
                fix="build an index of the file (polyjax index build), and give it as `index`",
            )
        if self.rerank is not None and self.index is None and self.candidates is None:
            raise InputError("rerank", expected="`index` or `candidates`, whose results it orders")


def parse(arguments: Sequence[str], *, prog: str = "polyjax serve") -> Serve:
    """Parse the arguments of ``polyjax serve``; InputError if they are invalid."""
    return parse_flags(Serve, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax serve") -> None:
    """Parse and serve until a signal ends it; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        keys = keys_of(command)
        log_to(sys.stderr)
        enable_compilation_cache()
        sock = bind(command.hostname, command.port)  # fail before the model is loaded
        ranker = load_ranker(command.model, step=command.step, dtype=command.dtype)
        reranker = None if command.rerank is None else load_ranker(command.rerank, dtype=command.dtype)
        app = create_app(
            ranker,
            config=command,
            name=served_name(command.model),
            index=_index(command, ranker),
            reranker=reranker,
            api_keys=keys,
            score_map=_score_map(command.model),
            reranker_map=None if command.rerank is None else _score_map(command.rerank),
        )
    if not keys and not _is_loopback(command.hostname):
        log.warning("anyone who can reach this address may use the server; see --api-key-file")
    host, port = sock.getsockname()[:2]
    if sys.stderr.isatty():
        errors.print(f"http://{host}:{port} has a page; compiling before the first request", markup=False)
    sys.exit(serve(app, sock))


def keys_of(command: Serve) -> list[str]:
    """The API keys of the command line, its file and the environment.

    Raises:
        InputError: the file cannot be read, or has no keys.
    """
    keys = [command.api_key, os.environ.get(KEY_VARIABLE, "")]
    if command.api_key_file is not None:
        path = command.api_key_file
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("api_key_file", expected="a readable file", got=str(path)) from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise InputError.in_file(path, expected="keys, one per line", got=[])
        keys += found
    return [key for key in keys if key]


def served_name(model: str) -> str:
    """What clients read as the model: the name of a folder, or of the hub's model.

    >>> served_name("runs/mine"), served_name("BAAI/bge-small@5c38ec7"), served_name("minilm")
    ('mine', 'BAAI/bge-small', 'minilm')
    """
    found = hub_name(model)
    return Path(model).resolve().name if found is None else found[0]


def _index(command: Serve, ranker: Ranker) -> LiveIndex | None:
    if command.index is not None:
        index = ranker.open_index(command.index)
    elif command.candidates is None:
        return None
    else:
        folder = kept_index(command.model, command.candidates)
        index = load_index(ranker, command.candidates, folder, log.info)
    again = 0 if command.rerank is None else command.rerank_top
    return LiveIndex(ranker, index, max_top_n=max(command.max_top_n, again))


def _score_map(model: str) -> ScoreMap | None:
    """The map from scores to probabilities in a run's model card; None without one."""
    folder = run_folder(model)
    return None if folder is None or not (folder / MODEL).is_file() else read_card(folder).scores


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
