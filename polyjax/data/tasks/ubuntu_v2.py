"""Ubuntu Dialogue Corpus V2: pick the next turn of a support chat among ten.

CSV files. In every field ``__eou__`` ends an utterance and ``__eot__`` a turn; the former becomes a full
stop, the latter a line break, as in ParlAI. A training row is a context, an utterance and whether it is the
right one; rows with a wrong utterance are ignored.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from polyjax.data.rows import Rows
from polyjax.data.tables import read_table
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
from polyjax.errors import InputError, shown
from polyjax.runtime.progress import console
from polyjax.types import Example

SOURCE = Source("ubuntu_v2", "the Ubuntu Dialogue Corpus V2", "rkadlec/ubuntu-ranking-dataset-creator")
LONGEST_FIELD = 200_000_000
TRAIN_COLUMNS = ["Context", "Utterance", "Label"]
TEST_COLUMNS = ["Context", "Ground Truth Utterance"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UbuntuV2Config:
    """The task's settings.

    Attributes:
        source: folder with train.csv, valid.csv and test.csv.
        unverified: accept files that are not known to be the official ones (they are generated, and their md5
            was never published).
        data_dir: where the prepared rows are kept (array_record files, written once).
    """

    source: SourceFolder = Path("ubuntu")
    unverified: Unverified = False
    data_dir: PreparedFolder = Path("data")

    name = "ubuntu_v2"
    licence = "see where it was published"
    lengths = TextConfig(max_turns=20, context_tokens=160, candidate_tokens=48, buckets=(48, 96, 160))
    ks = (1, 2, 5)

    def read(self, split: Split) -> Rows:
        """The rows of a split."""
        file = OfficialFile(f"{split}.csv")
        return prepared_rows(
            SOURCE, split, self.source, [file], parse, data_dir=self.data_dir, unverified=self.unverified
        )


def plain(field: str) -> str:
    """A field's text, as ParlAI reads it.

    >>> plain("hi __eou__ any idea ? __eou__ __eot__ yes __eou__ __eot__ ")
    'hi . any idea ? . \\n yes .'
    """
    return field.replace("__eou__", ".").replace("__eot__", "\n").strip()


def parse(path: Path) -> Iterator[Example]:
    """The examples of a CSV file; the right utterance is the first candidate.

    Raises:
        InputError: the header or a row breaks the format; file and line are named.
    """
    rows = read_table(text_lines(path), delimiter=",", longest=LONGEST_FIELD)
    _, header = next(rows, (1, []))
    training = header == TRAIN_COLUMNS
    if isinstance(header, InputError) or not (training or header[:2] == TEST_COLUMNS):
        raise InputError.in_file(
            path,
            1,
            expected=f"the columns {', '.join(TRAIN_COLUMNS)}, or {', '.join(TEST_COLUMNS)} and distractors",
            got=shown(str(header) if isinstance(header, InputError) else ", ".join(header)),
        )
    number = wrong = 0
    for line, row in rows:
        if isinstance(row, InputError):
            raise InputError.in_file(path, line, problem=str(row))
        if len(row) != len(header):
            raise InputError.in_file(
                path, line, expected=f"{len(header)} columns", got=shown(f"{len(row)} columns")
            )
        number += 1
        if training and not _is_right(row[2], path, line):
            wrong += 1
            continue
        turns = tuple(turn for part in plain(row[0]).split("\n") if (turn := part.strip()))
        if not turns:
            raise InputError.in_file(path, line, problem="the context is empty")
        candidates = (plain(row[1]),) if training else tuple(map(plain, row[1:]))
        # Rows of one dialogue are not independent: they begin with the same turn.
        yield Example(str(number), turns, candidates, 0, turns[0])
    if wrong:
        console.print(f"{path}: {wrong:,} rows of wrong utterances are left out")


def _is_right(label: str, path: Path, line: int) -> bool:
    try:
        return float(label) >= 0.5
    except ValueError:
        raise InputError.in_file(path, line, expected="a Label of 1.0 or 0.0", got=label[:20]) from None
