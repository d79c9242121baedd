"""Files in the tasks' own layouts, cut out of partial data, to try a task on: python experiments/samples.py

What the official files hold is not here: figures on these parts compare with no published ones.
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.data.tasks import convai2, ubuntu_v2
from polyjax.errors import InputError, shown
from polyjax.runtime.files import write_text
from polyjax.runtime.progress import console


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Where the data is, and where the parts go.

    Attributes:
        data: folder with ``convai2/``, ``ubuntu_irc/``.
        out: folder to make.
    """

    data: Path = Path("../shared/data")
    out: Path = Path("data/samples")


def cut_convai2(source: Path, folder: Path, *, n_train: int = 500) -> None:
    """Train on the first dialogues, labels alone; validate and test on the others."""
    dialogues: list[list[str]] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.startswith("1 "):
            dialogues.append([])
        # Candidates were drawn from all dialogues: the rows to rank get others, of their own part.
        dialogues[-1].append("\t".join(line.split("\t")[:2]))
    for name, part in (("train", dialogues[:n_train]), ("valid", dialogues[n_train:])):
        path = folder / f"{name}_self_original_no_cands.txt"
        write_text(path, "".join(f"{line}\n" for dialogue in part for line in dialogue))
        console.print(f"{path}: {len(list(convai2.parse(path))):,} rows of {len(part)} dialogues")


def cut_ubuntu_v2(source: Path, folder: Path, *, n_valid: int = 300) -> None:
    """All training rows; the validation file's rows to validate and to test."""
    (folder / "train.csv").write_bytes((source / "train.csv").read_bytes())
    with (source / "valid.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    for name, part in (("valid", rows[:n_valid]), ("test", rows[n_valid:])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *part])
        console.print(f"{folder / name}.csv: {len(part):,} rows")


def augmented(dialogue: dict[str, Any]) -> list[dict[str, Any]]:
    """The dialogue, and its earlier turns of the same speaker as labels, as in ParlAI's augmented file."""
    turns, rows = dialogue["messages-so-far"], [dialogue]
    speaker = "participant_2"  # the helper, whose next turn is asked for
    for i, turn in enumerate(turns[1:], start=1):
        if turn["speaker"] == speaker:
            answer = {"candidate-id": f"{dialogue['example-id']}-{i}", "utterance": turn["utterance"]}
            rows.append(
                dialogue
                | {
                    "example-id": f"{dialogue['example-id']}-{i}",
                    "messages-so-far": turns[:i],
                    "options-for-correct-answers": [answer],
                    "options-for-next": [answer],
                }
            )
    return rows


def from_ubuntu_v2(path: Path) -> list[dict[str, Any]]:
    """Training rows of Ubuntu V2 in this layout: the label is the helper's, before it speakers alternate."""
    rows = []
    for example in ubuntu_v2.parse(path):
        n = len(example.context)
        turns = [
            {"speaker": f"participant_{2 - (n - i) % 2}", "utterance": text}
            for i, text in enumerate(example.context)
        ]
        answer = {"candidate-id": f"v2-{example.id}", "utterance": example.label_text}
        rows.append(
            {
                "example-id": f"v2-{example.id}",
                "messages-so-far": turns,
                "options-for-correct-answers": [answer],
                "options-for-next": [answer],
            }
        )
    return rows


def cut_dstc7(source: Path, folder: Path, *, n_valid: int = 150) -> None:
    """Training dialogues with their earlier turns, and V2's rows, of which these are too few to learn from.

    Both layouts hold the same conversations, split by their log file: dev's are in no training file. Of dev's
    rows some are to validate and, with a table of answers, the others to test.
    """
    train, dev = (
        json.loads((source / f"ubuntu_{name}_subtask_1.json").read_text(encoding="utf-8"))
        for name in ("train", "dev")
    )
    train = [row for dialogue in train for row in augmented(dialogue)]
    train += from_ubuntu_v2(source / "train.csv")
    test = [dict(row) for row in dev[n_valid:]]
    answers = [(row["example-id"], row.pop("options-for-correct-answers")[0]) for row in test]
    lines = [f"{name}\t{answer['candidate-id']}\t{answer['utterance']}\n" for name, answer in answers]
    for name, rows in (("train", train), ("dev", dev[:n_valid]), ("test", test)):
        suffix = "_augmented" if name == "train" else ""
        path = folder / f"ubuntu_{name}_subtask_1{suffix}.json"
        write_text(path, json.dumps(rows))
        console.print(f"{path}: {len(rows):,} rows")
    write_text(folder / "ubuntu_responses_subtask_1.tsv", "".join(lines))


def run(config: SamplesConfig) -> None:
    """Write the parts of all tasks."""
    needed = ["convai2/valid_self_original.txt", *(f"ubuntu_irc/{n}.csv" for n in ("train", "valid"))]
    needed += [f"ubuntu_irc/ubuntu_{name}_subtask_1.json" for name in ("train", "dev")]
    for name in needed:
        if not (config.data / name).is_file():
            raise InputError("data", problem=f"the file {name} is missing there", got=str(config.data))
    if config.out.exists() and not config.out.is_dir():
        raise InputError("out", expected="a folder to make", got=shown(f"the file {config.out}"))
    for name in ("convai2", "dstc7", "ubuntu_v2"):
        (config.out / name).mkdir(parents=True, exist_ok=True)
    cut_convai2(config.data / "convai2" / "valid_self_original.txt", config.out / "convai2")
    cut_ubuntu_v2(config.data / "ubuntu_irc", config.out / "ubuntu_v2")
    cut_dstc7(config.data / "ubuntu_irc", config.out / "dstc7")


if __name__ == "__main__":
    with user_errors():
        run(parse_flags(SamplesConfig, prog="python experiments/samples.py"))
