"""The chitchat corpus (BYU Chit-Chat Challenge, MIT, package ``chitchat-dataset``): found, checked, parsed.

A turn is one entry of ``messages``: its texts joined by a space, white space collapsed. Empty turns are
skipped, a conversation ends before its first turn of more than 100 words, and those with two senders and
at least 4 turns are kept: 2,927 / 157 / 132 in train / valid / test.
"""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from polyjax.data.tasks.protocol import Split
from polyjax.errors import InputError, shown

DATASET_SHA256 = "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"
_INSTALL = "pip install chitchat-dataset"


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One conversation's turns, speakers alternating for the most part."""

    id: str
    turns: tuple[str, ...]


def split_of(conversation_id: str) -> Split:
    """The split of a conversation, by a stable hash of its id: 5% test, 5% valid, the rest train."""
    place = int(hashlib.sha1(conversation_id.encode()).hexdigest()[:8], 16) % 100
    return "test" if place < 5 else "valid" if place < 10 else "train"


def corpus_path() -> Path:
    """The corpus inside its installed package, after checking its sha256."""
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "task",
            problem="chitchat needs the package chitchat-dataset, which is not installed",
            fix=f"run: {_INSTALL}",
        )
    path = Path(spec.submodule_search_locations[0]) / "dataset.json"
    if not path.is_file():
        raise InputError.in_file(
            path, problem="the file is missing", fix=f"run: {_INSTALL} --force-reinstall"
        )
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != DATASET_SHA256:
        raise InputError.in_file(
            path,
            expected=f"sha256 {DATASET_SHA256}",
            got=shown(got),
            fix=f"run: {_INSTALL} --force-reinstall",
        )
    return path


def parse_conversations(path: Path) -> Iterator[Conversation]:
    """The kept conversations of the corpus file, in its order."""
    for conversation_id, entry in json.loads(path.read_text(encoding="utf-8")).items():
        turns, senders = [], set()
        for messages in entry["messages"]:
            turn = " ".join(" ".join(message["text"] for message in messages).split())
            if not turn:
                continue
            if len(turn.split()) > 100:
                break
            turns.append(turn)
            senders.update(message["sender"] for message in messages)
        if len(senders) == 2 and len(turns) >= 4:
            yield Conversation(conversation_id, tuple(turns))
