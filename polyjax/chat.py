"""Talking with a model: each reply is the best of many candidates, all encoded beforehand."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from polyjax.progress import errors, meter
from polyjax.retrieval.index import (
    CandidateIndex,
    build_index,
    fingerprint,
    open_index,
    read_candidates,
    text_fingerprint,
)
from polyjax.scoring import TextScorer
from polyjax.types import InputError

HELP = "/top N shows the N best, /persona TEXT adds a line about the model, /reset forgets all, /quit ends"


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply: the best candidates with their scores, best first, and the milliseconds they took."""

    texts: list[str]
    scores: list[float]
    ms: float


class ChatSession:
    """A conversation with a model over a candidate index.

    Args:
        scorer: bi- or poly-encoder.
        index: its candidates.
        repeat: allow replies that were said before in the conversation.
    """

    def __init__(self, scorer: TextScorer, index: CandidateIndex, *, repeat: bool = False):
        self._scorer, self._index, self._repeat = scorer, index, repeat
        self._candidates = jax.device_put(jnp.asarray(index.vectors))
        self.turns: list[str] = []
        self.persona: list[str] = []

    def reset(self) -> None:
        """Forget the conversation and the persona."""
        self.turns, self.persona = [], []

    def reply(self, text: str, *, top: int = 1) -> Reply:
        """The best candidates for the conversation so far and this turn; the best one joins it.

        Args:
            text: what the user says.
            top: how many candidates to give.
        """
        began = time.perf_counter()
        said = [*self.turns, text]
        if self.persona:
            # As ConvAI2 has it: persona lines come first, within the first turn.
            said = ["\n".join([*(f"your persona: {line}" for line in self.persona), said[0]]), *said[1:]]
        used = set() if self._repeat else {*self.turns, text}
        # A power of two, so that a longer conversation compiles nothing new.
        wanted = min(1 << (top + len(used) - 1).bit_length(), len(self._index.texts))
        scores, places = self._scorer.best(said, self._candidates, max(wanted, 1))
        found = [(self._index.texts[i], float(s)) for i, s in zip(places, scores, strict=True)]
        fresh = [pair for pair in found if pair[0] not in used] or found
        texts, best = zip(*fresh[:top], strict=True)
        self.turns += [text, texts[0]]
        return Reply(list(texts), list(best), 1e3 * (time.perf_counter() - began))


def load_index(
    scorer: TextScorer, candidates: Path, folder: Path, say: Callable[[str], None]
) -> CandidateIndex:
    """The index of a candidate file: the one in the folder if it fits, else a new one.

    Args:
        scorer: bi- or poly-encoder.
        candidates: the file, one a line.
        folder: of the index.
        say: told what is built, and why.

    Raises:
        InputError: the model is a cross-encoder, or a file cannot be read or written.
    """
    if not scorer.is_dual:
        raise InputError("a cross-encoder cannot encode candidates beforehand; use a bi- or poly-encoder")
    texts = read_candidates(candidates)
    expected: dict[str, object] = {"model": fingerprint(scorer), "candidates": text_fingerprint(texts)}
    found = open_index(folder, expected)
    if isinstance(found, CandidateIndex):
        say(f"{len(texts):,} candidates from the index {folder}")
        return found
    say(f"encoding {len(texts):,} candidates into the index {folder}: {found}")
    with meter("encoding", len(texts), unit="candidates", out=errors) as shown:
        return build_index(folder, texts, scorer, expected, progress=shown.add)


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
        lines: what the user types.
        write: takes one line of output for each.
        top: candidates to show.
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
            note = "the conversation begins again"
        elif command == "/persona" and rest:
            session.persona.append(rest.strip())
            note = f"persona of {len(session.persona)} lines"
        elif command == "/top" and rest.isdigit() and int(rest) > 0:
            top = int(rest)
            note = f"the {top} best are shown"
        else:
            note = f"{command} is not understood; {HELP}"
        write(json.dumps({"note": note}) if as_json else note)


def _json_line(reply: Reply) -> str:
    best = [{"text": text, "score": score} for text, score in zip(reply.texts, reply.scores, strict=True)]
    return json.dumps({"reply": reply.texts[0], "top": best, "ms": round(reply.ms, 1)}, ensure_ascii=False)


def _text_lines(reply: Reply) -> str:
    if len(reply.texts) == 1:
        return reply.texts[0]
    rows = [f"{score:9.3f}  {text}" for text, score in zip(reply.texts, reply.scores, strict=True)]
    return "\n".join([*rows, f"{reply.ms:9.1f}  ms"])
