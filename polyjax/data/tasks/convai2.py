"""ConvAI2 (PersonaChat): dialogues of two people who were each given a persona, in fbdialog files.

A line is a number, a space and tab-separated columns: text, labels, reward, candidates; labels and candidates
are separated by "|". A number that is not above the last one begins a new dialogue. Lines without a label
(personas) are put before the next line's text. The context of a line is all of the dialogue before it: the
persona and the first utterance are one turn, and the labels that were given are turns as well.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyjax.data.rows import Rows
from polyjax.data.tasks.prepared import prepared_rows
from polyjax.data.tasks.protocol import Split
from polyjax.data.tasks.source import (
    OfficialFile,
    PreparedFolder,
    Source,
    SourceFolder,
    Unverified,
    text_lines,
)
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.types import Example

Persona = Literal["self", "other", "both", "none"]

SOURCE = Source("convai2", "the ConvAI2 data set", "ParlAI's task convai2 (convai2_fix_723.tgz), CC BY 4.0")

OFFICIAL = {
    file.name: file
    for file in (
        OfficialFile("valid_self_original.txt", 9_100_907, "9ffb860096ebdcdc311649c8248c3b1c"),
        OfficialFile("train_self_original.txt", 149_722_362, "38ea3b2dd1693f46a7e69894088c0c10"),
        OfficialFile("valid_self_original_no_cands.txt", 1_042_927, "d27c8cac40fc7c937fab999993ef2a9b"),
        OfficialFile("train_self_original_no_cands.txt", 16_993_652, "9a4125d39515b1251a5603773ebb7917"),
        OfficialFile("valid_both_original.txt", 9_346_213, "b34714277ec50cf2cf408ed3b7235a77"),
        OfficialFile("valid_none_original.txt", 8_878_395, "d4853f4712db1298cc5204c79550a4f7"),
        OfficialFile("valid_self_revised.txt", 9_107_156, "e8a084714aea4ee4b15b55e2ecd7d62f"),
        OfficialFile("valid_none_original_no_cands.txt", 820_415, "516997a6e2c1c80fc48694644e696846"),
    )
}
"""Sizes and md5 as kept by git-annex in datasets-mila/datasets--convai2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvAI2Config:
    """The task's settings.

    Attributes:
        source: folder with the files of the archive.
        persona: whose persona the model reads.
        revised: use the reworded personas; not possible with persona ``none``.
        candidates: use the files with 20 candidates per line; otherwise those with labels only.
        unverified: accept files that are not the official ones.
        data_dir: where the prepared rows are kept (array_record files, written once).
    """

    source: SourceFolder = Path("ConvAI2")
    persona: Persona = "self"
    revised: bool = False
    candidates: bool = True
    unverified: Unverified = False
    data_dir: PreparedFolder = Path("data")

    name = "convai2"
    licence = "CC BY 4.0, as ParlAI states it"
    # Nine of ten contexts fit; the persona is the first turn, and would be cut first.
    lengths = TextConfig(max_turns=20, context_tokens=256, candidate_tokens=32, buckets=(32, 128, 192, 256))
    ks = (1, 5)

    def __post_init__(self) -> None:
        """Raise InputError for settings of which no file exists."""
        if self.revised and self.persona == "none":
            raise InputError(
                "task.revised", problem="there is no revised form without personas", fix="leave it out"
            )

    @property
    def listed(self) -> int | None:
        """Candidates of a training row."""
        return 20 if self.candidates else None

    def read(self, split: Split) -> Rows:
        """The rows of a split; test is valid, as in ParlAI."""
        form = "revised" if self.revised else "original"
        part = "train" if split == "train" else "valid"
        name = f"{part}_{self.persona}_{form}{'' if self.candidates else '_no_cands'}"
        file = OFFICIAL.get(f"{name}.txt", OfficialFile(f"{name}.txt"))
        return prepared_rows(
            SOURCE, name, self.source, [file], parse, data_dir=self.data_dir, unverified=self.unverified
        )


def parse(path: Path) -> Iterator[Example]:
    """The examples of an fbdialog file.

    Raises:
        InputError: a line breaks the format; the message names file and line.
    """
    episode, last, row = -1, 0, 0
    history: list[str] = []
    told: list[str] = []
    for number, raw in enumerate(text_lines(path), start=1):
        line = raw.strip()
        if not line:
            continue
        place, _, rest = line.partition(" ")
        if not place.isdecimal() or not rest:
            raise InputError.in_file(path, number, expected="a number, a space and a text", got=line[:40])
        if int(place) <= last or episode < 0:
            episode, row = episode + 1, 0
            history, told = [], []
        last = int(place)
        columns = [column.strip().replace("\\n", "\n") for column in rest.split("\t")]
        told.append(columns[0])
        labels = [label.strip() for label in columns[1].split("|")] if len(columns) > 1 else []
        if not any(labels):
            continue
        turn, told = "\n".join(told), []
        label = labels[0]
        candidates = [c.strip() for c in columns[3].split("|")] if len(columns) > 3 else [label]
        if label not in candidates:
            raise InputError.in_file(path, number, expected="the label among the candidates", got=label[:40])
        history.append(turn)
        # The label is the last of the candidates that it is equal to: the files have it at the end.
        where = len(candidates) - 1 - candidates[::-1].index(label)
        yield Example(f"{episode}/{row}", tuple(history), tuple(candidates), where, str(episode))
        history.append(label)
        row += 1
