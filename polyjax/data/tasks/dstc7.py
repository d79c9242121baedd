"""DSTC7 Track 1 (NOESIS), subtask 1, Ubuntu: pick the next message of a helper among 100.

A file is one JSON array of dialogues. The right answer is known by its candidate-id, not by its text; the
test file's answers are in a table of their own. A message is written "participant 1: text".
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from polyjax.data.encodings import not_valid
from polyjax.data.rows import Rows
from polyjax.data.tasks.prepared import prepared_rows
from polyjax.data.tasks.protocol import Split
from polyjax.data.tasks.source import (
    OfficialFile,
    PreparedFolder,
    Source,
    SourceFolder,
    Unverified,
)
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, first_line, shown
from polyjax.types import Example

SOURCE = Source(
    "dstc7", "DSTC7 Track 1 (NOESIS), subtask 1, Ubuntu", "IBM/dstc7-noesis and ParlAI's task dstc7"
)
ANSWERS = "ubuntu_responses_subtask_1.tsv"
Training = Literal["plain", "augmented", "sampled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DSTC7Config:
    """The task's settings.

    Attributes:
        source: folder with the files.
        training: ``plain`` rows; ``augmented``, where every turn of a dialogue is a row; ``sampled``, with 16
            candidates each, for a cross-encoder.
        unverified: accept files that are not known to be the official ones (their md5 was never published).
        data_dir: where the prepared rows are kept (array_record files, written once).
    """

    source: SourceFolder = Path("dstc7")
    training: Training = "plain"
    unverified: Unverified = False
    data_dir: PreparedFolder = Path("data")

    name = "dstc7"
    licence = "see where it was published"
    lengths = TextConfig(max_turns=20, context_tokens=160, candidate_tokens=48, buckets=(48, 96, 160))
    ks = (1, 10, 50)

    @property
    def listed(self) -> int:
        """Candidates of a training row."""
        return SAMPLED_CANDIDATES if self.training == "sampled" else 100

    def read(self, split: Split) -> Rows:
        """The rows of a split."""
        suffix = "" if self.training == "plain" else f"_{self.training}"
        name = {
            "train": f"ubuntu_train_subtask_1{suffix}",
            "valid": "ubuntu_dev_subtask_1",
            "test": "ubuntu_test_subtask_1",
        }[split]
        files = [OfficialFile(f"{name}.json"), *([OfficialFile(ANSWERS)] if split == "test" else [])]

        def rows(path: Path, answers: Path | None = None) -> Iterator[Example]:
            """The rows of a file, with the table of a test file's answers."""
            sampled = SAMPLED_CANDIDATES if name.endswith("_sampled") else None
            return parse(path, answers=None if answers is None else read_answers(answers), sampled=sampled)

        return prepared_rows(
            SOURCE, name, self.source, files, rows, data_dir=self.data_dir, unverified=self.unverified
        )


SAMPLED_CANDIDATES = 16


def read_answers(path: Path) -> dict[str, tuple[str, str]]:
    """Example id -> candidate id and text of the test rows' answers."""
    answers = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise not_valid(path, "utf-8", error) from None
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        columns = line.split("\t")
        if len(columns) != 3:
            raise InputError.in_file(
                path,
                number,
                expected="example-id, candidate-id and utterance",
                got=shown(f"{len(columns)} columns"),
            )
        answers[columns[0]] = (columns[1], columns[2])
    return answers


def parse(
    path: Path, *, answers: dict[str, tuple[str, str]] | None = None, sampled: int | None = None
) -> Iterator[Example]:
    """The examples of a JSON file.

    Args:
        path: the file.
        answers: of ``read_answers``, for a file without its own.
        sampled: keep this many candidates: the answer, and others drawn by the row's number.

    Raises:
        InputError: the file or a dialogue breaks the format; the message gives the dialogue's number.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError.in_file(path, expected="a JSON array", got=shown(first_line(error))) from None
    if not isinstance(rows, list):
        got = shown(type(rows).__name__)
        raise InputError.in_file(path, expected="a JSON array of dialogues", got=got)
    names: dict[str, int] = {}
    for i, row in enumerate(rows):
        try:
            example = _example(row, i, answers, sampled)
            if (first := names.setdefault(example.id, i)) != i:
                problem = f"the example-id {example.id} is also that of dialogue {first}"
                raise InputError.in_row(problem=problem)
            yield example
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            got = shown(f"{error!r} in dialogue {i}")
            raise InputError.in_file(path, expected="DSTC7's keys", got=got) from None
        except InputError as error:
            raise error.at(f"{path}, dialogue {i}") from None


def _example(
    row: dict[str, Any], i: int, answers: dict[str, tuple[str, str]] | None, sampled: int | None
) -> Example:
    said = [(m["speaker"].replace("_", " "), _text(m["utterance"])) for m in row["messages-so-far"]]
    if not said:
        raise InputError.in_row(problem="there are no messages-so-far")
    turns = tuple(f"{speaker}: {utterance}" for speaker, utterance in said)
    name = str(row["example-id"])
    if "options-for-correct-answers" in row:
        answer = row["options-for-correct-answers"][0]
        right, label = answer["candidate-id"], _text(answer["utterance"])
    elif answers is not None and name in answers:
        right, label = answers[name]
    else:
        raise InputError.in_row(problem=f"the example-id {name} has no answer in {ANSWERS}")
    ids = [option["candidate-id"] for option in row.get("options-for-next", [])]
    candidates = [_text(option["utterance"]) for option in row.get("options-for-next", [])]
    if right not in ids:
        # As ParlAI: the answer joins a list that lacks it; if only its id differs, its text is there.
        if label in candidates:
            ids[candidates.index(label)] = right
        else:
            ids, candidates = [*ids, right], [*candidates, label]
    where = ids.index(right)
    if sampled is not None:
        others = [j for j in range(len(ids)) if j != where]
        random.Random(i).shuffle(others)
        kept = [where, *others[: sampled - 1]]
        candidates, where = [candidates[j] for j in kept], 0
    # Rows of one dialogue are not independent: they begin with the same message.
    return Example(name, turns, tuple(candidates), where, turns[0])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"utterance {value!r}")
    return value
