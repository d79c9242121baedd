"""``polyjax chat``: each reply is the best of many candidates, all encoded in advance."""

import contextlib
import dataclasses
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.flags import as_json_line, as_text, parse_flags, user_errors
from polyjax.data.candidates import candidate_lines
from polyjax.data.identity import text_key
from polyjax.errors import InputError
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker
from polyjax.recipes.models import ModelName, load_ranker
from polyjax.retrieval.index.build import check_dual
from polyjax.retrieval.index.standing import standing
from polyjax.retrieval.index.texts import text_digest
from polyjax.retrieval.search.searcher import FEWEST_WANTED
from polyjax.retrieval.searchable import Index
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import errors

HELP = "/top N shows the N best, /persona TEXT adds a line about the model, /reset forgets all, /quit ends"


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        texts: the best candidates, best first.
        scores: their scores.
        ms: time to find them, in milliseconds.
    """

    texts: list[str]
    scores: list[float]
    ms: float


class ChatSession:
    """A conversation with a model over an index.

    Args:
        index: index of the possible replies.
        repeat: allow replies that were already given in the conversation.
    """

    def __init__(self, index: Index, *, repeat: bool = False):
        self._index, self._repeat = index, repeat
        self.turns: list[str] = []
        self.persona: list[str] = []

    def compile(self) -> int:
        """Compile the programs for replies ahead of time; returns their number."""
        return self._index.compile()

    def reset(self) -> None:
        """Forget the conversation and the persona."""
        self.turns, self.persona = [], []

    def reply(self, text: str, *, top: int = 1) -> Reply:
        """The best candidates for the conversation and this turn; the best one becomes the next turn.

        Args:
            text: the user's turn.
            top: number of candidates to return.

        Raises:
            InputError: the index is empty because every candidate was removed.
        """
        began = time.perf_counter()
        said = [*self.turns, text]
        used = set() if self._repeat else {text_key(turn) for turn in said}
        if self.persona:
            # As in ConvAI2, persona lines are at the beginning of the first turn.
            said = ["\n".join([*(f"your persona: {line}" for line in self.persona), said[0]]), *said[1:]]
        # FEWEST_WANTED candidates cost no more than one; more are needed only if most were already given.
        wanted = max(top, FEWEST_WANTED)
        while True:
            found = [(one.text, one.score) for one in self._index.search(said, wanted)]
            fresh = [pair for pair in found if text_key(pair[0]) not in used]
            if len(fresh) >= top or len(found) < wanted:
                break
            wanted *= 2
        if not found:
            raise InputError("index", problem="it holds no candidate to reply with", fix="add some")
        texts, scores = zip(*(fresh or found)[:top], strict=True)
        self.turns += [text, texts[0]]
        return Reply(list(texts), list(scores), 1e3 * (time.perf_counter() - began))


def load_index(
    ranker: Ranker, candidates: Path, folder: Path | None, say: Callable[[str], None], *, replace: bool = True
) -> Index:
    """The index of a candidate file: the one in the folder if it holds these candidates, else a new one.

    Args:
        ranker: a bi- or poly-encoder.
        candidates: file with one candidate per line.
        folder: folder of the index; if None, the index is only in memory.
        say: called with a line about what is built, and why.
        replace: whether another index may be replaced.

    Raises:
        InputError: the model is a cross-encoder, a file cannot be read or written, or the folder holds
            another index that must not be replaced.
    """
    check_dual(ranker.scorer)
    texts = candidate_lines(candidates)
    if folder is None:
        return ranker.index(texts)
    there = standing(folder, scorer=ranker.scorer, source=text_digest(texts))
    if there.index is not None:
        say(f"{len(there.index):,} candidates from the index {folder}")
        return ranker.open_index(folder)
    if not replace:
        there.check_free(
            folder,
            fix="leave out `candidates` to use the index as it is, or name another `index`, or build this "
            "one again with polyjax index build",
        )
    say(f"{folder}: {there.reason}; encoding {len(texts):,} candidates")
    return ranker.index(texts, folder, replace=True)


def chat(
    session: ChatSession,
    lines: Iterable[str],
    write: Callable[[str], None],
    *,
    top: int = 1,
    as_json: bool = False,
) -> None:
    """Answer lines until they end or one is /quit.

    Args:
        session: the conversation.
        lines: lines that the user types.
        write: called with the output for each line.
        top: number of candidates to show.
        as_json: write JSON objects with texts, scores and milliseconds.
    """
    for line in lines:
        text = line.strip()
        command, _, rest = text.partition(" ")
        if not text or command == "/help":
            note = HELP
        elif not text.startswith("/"):
            reply = session.reply(text, top=top)
            write(_json_line(reply) if as_json else _text_lines(reply))
            continue
        elif command == "/quit":
            return
        elif command == "/reset":
            session.reset()
            note = "the conversation starts again"
        elif command == "/persona" and rest:
            session.persona.append(rest.strip())
            note = f"persona of {len(session.persona)} lines"
        elif command == "/top" and rest.isdecimal() and len(rest) < 8 and int(rest) > 0:
            top = int(rest)
            note = f"showing the {top} best"
        else:
            note = f"unknown command {command}; {HELP}"
        write(json.dumps({"note": note}) if as_json else note)


def _json_line(reply: Reply) -> str:
    best = [{"text": text, "score": score} for text, score in zip(reply.texts, reply.scores, strict=True)]
    return as_json_line({"reply": reply.texts[0], "top": best, "ms": round(reply.ms, 1)})


def _text_lines(reply: Reply) -> str:
    if len(reply.texts) == 1:
        return reply.texts[0]
    rows = [f"{score:9.3f}  {text}" for text, score in zip(reply.texts, reply.scores, strict=True)]
    return "\n".join([*rows, f"{reply.ms:9.1f}  ms"])


@dataclasses.dataclass(frozen=True)
class Chat:
    """Chat with a bi- or poly-encoder over many candidates, on a terminal or in a pipe.

    Attributes:
        run_dir: a run directory, a folder of sentence-transformers or transformers,
            ``organisation/model`` of the hub, or ``minilm``, which is used without training.
        candidates: a file of replies to choose from, one per line.
        index: an index from ``polyjax index build``. With ``--candidates``, the folder for the index of that
            file, which is built if it does not exist; by default it is in RUN_DIR/index, or in memory for
            ``minilm`` and models of the hub. An index of other candidates is replaced there, but is an error
            in a folder given here.
        top: number of candidates to show, with their scores.
        repeat: allow replies that were already given.
        json: write one JSON object per line.
        step: a saved step; the best one by default.
        dtype: dtype of the computation; that of the model by default. bfloat16 is less exact, and faster
            except on a CPU without bfloat16 units.
    """

    run_dir: Annotated[ModelName, tyro.conf.Positional]
    candidates: Path | None = None
    index: Path | None = None
    top: int = 1
    repeat: bool = False
    json: bool = False
    step: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.top < 1:
            raise InputError("top", expected="at least 1", got=self.top)
        if self.candidates is None and self.index is None:
            problem = "give the replies to choose from: `candidates` FILE or `index` FOLDER"
            raise InputError("candidates", problem=problem)


def default_index(run_dir: Path, candidates: Path) -> Path:
    """The folder for the index of a candidate file; it differs for files of one name in different folders."""
    place = zlib.crc32(os.fsencode(candidates.resolve()))
    return run_dir / "index" / f"{candidates.name}-{place:08x}"


def kept_index(model: str, candidates: Path) -> Path | None:
    """The default folder for a candidate file's index; None if the model is not named as a local folder."""
    return default_index(Path(model), candidates) if Path(model).is_dir() else None


def run_chat(config: Chat) -> None:
    """Load the model, build the index if necessary, and chat."""
    if sys.stdin is None:
        raise InputError("standard input", problem="it is closed", is_argument=False)
    ranker = load_ranker(config.run_dir, step=config.step, dtype=config.dtype)
    # Only the conversation goes to standard output, for use in a pipe.
    if config.candidates is None:
        assert config.index is not None
        index = ranker.open_index(config.index)
        if not len(index):
            raise InputError.in_file(config.index, problem="every candidate was removed", fix="add some")
    else:
        folder = config.index or kept_index(config.run_dir, config.candidates)
        index = load_index(ranker, config.candidates, folder, errors.print, replace=config.index is None)
    session = ChatSession(index, repeat=config.repeat)
    began = time.perf_counter()
    programs = session.compile()
    errors.print(
        f"{programs} programs compiled, or loaded from the cache, in {time.perf_counter() - began:.1f} s"
    )
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ModuleNotFoundError):  # not on Windows
            import readline  # noqa: F401  # gives input() line editing and history
        errors.print(HELP)
    chat(session, _lines(interactive), _write, top=config.top, as_json=config.json)


def _lines(interactive: bool) -> Iterable[str]:
    while True:
        try:
            # input() uses readline for line editing; it strips line ends, and raises EOFError at the end.
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return
        if not interactive and not line:
            return
        yield as_text(line)


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has exited
        sys.stdout = None
        sys.exit(0)


def parse(arguments: Sequence[str], *, prog: str = "polyjax chat") -> Chat:
    """Parse the arguments of ``polyjax chat``; InputError if they are invalid."""
    return parse_flags(Chat, arguments, prog=prog)


def main(arguments: Sequence[str], *, prog: str = "polyjax chat") -> None:
    """Parse and chat; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        enable_compilation_cache()
        run_chat(command)
