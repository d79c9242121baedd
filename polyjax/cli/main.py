"""The ``polyjax`` command: using models. Training is experiments/run.py."""

import contextlib
import dataclasses
import difflib
import importlib
import sys
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyjax.cli.chat import HELP, ChatSession, chat, load_index
from polyjax.cli.flags import parse_flags, user_errors
from polyjax.cli.index import INDEX_COMMANDS, IndexCommand, run_index
from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.interop.export import export_safetensors
from polyjax.interop.parlai.model import convert_parlai
from polyjax.nn.encoders import Dtype
from polyjax.retrieval.index.build import check_dual, fingerprint
from polyjax.retrieval.index.store import open_index
from polyjax.runs import load_scorer
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import errors
from polyjax.version import __version__

PROG = "polyjax"


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a model of another library into a run directory.

    Attributes:
        source: the library.
        model_file: ``model``; its ``.opt``, ``.dict`` and ``.dict.codecs`` lie beside it.
        out_dir: the run directory to make; must not exist.
        padding: ``parlai`` keeps ParlAI's dependence of scores on padding; ``none`` is free of it.
    """

    source: Annotated[Literal["parlai"], tyro.conf.Positional]
    model_file: Annotated[Path, tyro.conf.Positional]
    out_dir: Annotated[Path, tyro.conf.Positional]
    padding: Literal["none", "parlai"] = "none"


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run directory's parameters as safetensors, with a page of names and shapes.

    Attributes:
        run_dir: a run directory.
        out: the folder to make; must not exist.
        step: a saved step; the best one by default.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Chat:
    """Talk with a bi- or poly-encoder over many candidates, on a terminal or in a pipe.

    Attributes:
        run_dir: a run directory.
        candidates: a file of replies to choose from, one a line.
        index: an index made by ``polyjax index build``. With ``--candidates`` it is the folder where theirs
            is kept, by default in RUN_DIR/index under the file's name; built when there is none. One that
            holds something else is built again in the default place, and an error in a place of yours.
        top: candidates to show, with their scores.
        repeat: allow replies that were said before.
        json: write one JSON object a line.
        step: a saved step; the best one by default.
        dtype: of the arithmetic; as the model was made by default. bfloat16 is faster, unless a CPU has no
            units for it, and less exact.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    candidates: Path | None = None
    index: Path | None = None
    top: int = 1
    repeat: bool = False
    json: bool = False
    step: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.top < 1:
            raise InputError(f"top must be at least 1, got {self.top}")
        if self.candidates is None and self.index is None:
            raise InputError("name the replies to choose from: --candidates FILE or --index FOLDER")


SCRIPTS = {
    "train": "Train a ranker and evaluate it.",
    "evaluate": "Evaluate a run directory's best checkpoint.",
    "pretrain": "Pre-train an encoder.",
}
"""Commands with a parser of their own."""
COMMANDS = {"convert": Convert, "export": Export, "chat": Chat}
Command = Convert | Export | Chat | IndexCommand


def default_index(run_dir: Path, candidates: Path) -> Path:
    """Where the index of a candidate file is kept; files of one name in different folders do not collide."""
    place = zlib.crc32(str(candidates.resolve()).encode())
    return run_dir / "index" / f"{candidates.name}-{place:08x}"


def run_chat(config: Chat) -> None:
    """Load, index where it is needed, and talk."""
    enable_compilation_cache()
    scorer = TextScorer(*load_scorer(config.run_dir, step=config.step, dtype=config.dtype))
    # What is said goes to standard output; all else would spoil a pipe.
    if config.candidates is None:
        check_dual(scorer)
        assert config.index is not None
        index = open_index(config.index, model=fingerprint(scorer))
        if not len(index):
            raise InputError(f"{config.index}: every candidate was removed; add some")
    else:
        folder = config.index or default_index(config.run_dir, config.candidates)
        index = load_index(scorer, config.candidates, folder, _say, replace=config.index is None)
    session = ChatSession(scorer, index, repeat=config.repeat)
    began = time.perf_counter()
    programs = session.compile()
    _say(f"{programs} programs compiled, or taken from the cache, in {time.perf_counter() - began:.1f} s")
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ModuleNotFoundError):  # not on Windows
            import readline  # noqa: F401  # lines can be edited and called back
        errors.print(HELP)
    chat(session, _lines(interactive), _write, top=config.top, as_json=config.json)


def _say(text: str) -> None:
    errors.print(text)


def _lines(interactive: bool) -> Iterable[str]:
    while True:
        try:
            # With readline, input() edits lines; it drops their ends, and raises at the last.
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return
        if not interactive and not line:
            return
        # Bytes that are not UTF-8 reach a text as lone surrogates, which no tokenizer takes.
        yield line.encode("utf-8", "replace").decode("utf-8")


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read has gone, as `head` does
        sys.stdout = None
        sys.exit(0)


def overview() -> str:
    """What ``polyjax --help`` prints: a line a command."""
    commands = COMMANDS | {f"index {name}": kind for name, kind in INDEX_COMMANDS.items()}
    texts = SCRIPTS | {name: (kind.__doc__ or "").splitlines()[0] for name, kind in commands.items()}
    lines = [f"  {name:<15}{text}" for name, text in texts.items()]
    more = ["polyjax COMMAND --help says more."]
    return "\n".join([f"polyjax {__version__}", "", *lines, "", *more])


def parse(arguments: Sequence[str]) -> Command:
    """The command that the command line asks for.

    Raises:
        InputError: it is unknown, or its flags are wrong.
    """
    if arguments[:1] == ["index"]:
        return _parse(INDEX_COMMANDS, arguments[1:], f"{PROG} index")
    return _parse(COMMANDS, arguments, PROG)


def _parse(commands: Mapping[str, type], arguments: Sequence[str], prog: str) -> Command:
    name, *rest = arguments or [""]
    if name not in commands:
        known = [*commands, *(["index", *SCRIPTS] if prog == PROG else [])]
        got = f"got {name!r}" if name else "got none"
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{prog} expects a command: {', '.join(known)}; {got}{advice}; see {PROG} --help")
    return parse_flags(commands[name], rest, prog=f"{prog} {name}")


def main() -> None:
    """Entry point; a mistake of the user's is one line and exit status 2."""
    if sys.argv[1:] in (["--help"], ["-h"], ["index", "--help"], ["index", "-h"]):
        print(overview())
        return
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    if sys.argv[1:2] and sys.argv[1] in SCRIPTS:
        # Imported when asked for: the others need neither optimisers nor data sets.
        importlib.import_module(f"polyjax.cli.{sys.argv[1]}").main(sys.argv[2:])
        return
    with user_errors():
        command = parse(sys.argv[1:])
        match command:
            case Convert():
                convert_parlai(command.model_file, command.out_dir, padding=command.padding)
                _say(f"{command.out_dir} is a run directory: polyjax.Ranker.load, polyjax chat")
            case Export():
                export_safetensors(command.run_dir, command.out, step=command.step)
                _say(f"{command.out}: model.safetensors, model.json, tokenizer, README.md")
            case Chat():
                run_chat(command)
            case _:
                enable_compilation_cache()
                run_index(command, print)


if __name__ == "__main__":
    main()
