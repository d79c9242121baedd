"""chitchat: human small talk; the corpus is described in chitchat_corpus.

Every turn but the first is the label of an example whose context is up to 20 turns before it, except turns
without any word (":)", "?"): 104,046 / 5,150 / 4,236 examples in train / valid / test, of which 95,664 /
4,716 / 3,884 have a label of at least 3 words.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyjax.data.candidates import add_candidates, words
from polyjax.data.rows import Rows
from polyjax.data.tasks.chitchat_corpus import Conversation, corpus_path
from polyjax.data.tasks.protocol import KS, Split
from polyjax.data.tasks.source import PreparedFolder
from polyjax.errors import InputError
from polyjax.types import Example

MAX_CONTEXT_TURNS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChitchatConfig:
    """The task's settings.

    Attributes:
        data_dir: where the prepared corpus is kept (array_record files, written once).
        min_label_words: examples with a shorter label are left out; 0 keeps all.
        n_candidates: candidates of a row to rank: the label and others of its split.
        candidate_seed: of the draw of candidates and of the label's position.
    """

    data_dir: PreparedFolder = Path("data")
    min_label_words: int = 3
    n_candidates: int = 20
    candidate_seed: int = 0

    name = "chitchat"
    licence = "MIT (BYU Chit-Chat Challenge, package chitchat-dataset)"
    lengths = None
    ks = KS

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.n_candidates < 2:
            raise InputError("task.n_candidates", expected="at least 2", got=self.n_candidates)

    def read(self, split: Split) -> Rows:
        """The examples of a split: for training with the label alone, else with candidates."""
        rows = self.read_listed(split)
        if split == "train":
            return rows
        drawn = add_candidates(rows.examples, n_candidates=self.n_candidates, seed=self.candidate_seed)
        return Rows(drawn)

    def read_listed(self, split: Split) -> Rows:
        """The examples of a split with the label alone."""
        conversations = read_conversations(split, self.data_dir)
        examples = make_examples(conversations, min_label_words=self.min_label_words)
        if not examples:
            raise InputError(
                "task.min_label_words",
                problem=f"no example of split {split!r} has a label of that many words",
                got=self.min_label_words,
                fix="lower it",
            )
        return Rows(examples)

    def training_texts(self, examples: Sequence[Example]) -> Iterator[str]:
        """Every turn of the conversations, those without words included."""
        for conversation in read_conversations("train", self.data_dir):
            yield from conversation.turns

    def conversations(self) -> Iterator[tuple[str, tuple[str, ...], int]]:
        """The conversations; every turn but the first is a label."""
        for conversation in read_conversations("train", self.data_dir):
            yield conversation.id, conversation.turns, 1

    def describe(self, split: Split, n: int) -> str:
        """A line about n rows of a split."""
        return (
            f"{n:,} chitchat {split} rows; label of at least {self.min_label_words} words, "
            f"{self.n_candidates} candidates, seed {self.candidate_seed}"
        )


def read_conversations(split: Split, data_dir: Path) -> list[Conversation]:
    """The conversations of a split from the prepared corpus, prepared first if absent."""
    from polyjax.data.tasks import builders  # tensorflow-datasets: slow to import, needed here only

    rows = builders.prepared("chitchat", data_dir, corpus_path)[split]
    return [Conversation(row["id"].decode(), tuple(turn.decode() for turn in row["turns"])) for row in rows]


def make_examples(conversations: Sequence[Conversation], *, min_label_words: int) -> list[Example]:
    """One example for each turn after the first that has at least max(1, min_label_words) words."""
    examples = []
    for conversation in conversations:
        for i, label in enumerate(conversation.turns[1:], start=1):
            if len(words(label)) < max(1, min_label_words):
                continue
            context = conversation.turns[max(0, i - MAX_CONTEXT_TURNS) : i]
            examples.append(Example(f"{conversation.id}/{i}", context, (label,), 0, conversation.id))
    return examples
