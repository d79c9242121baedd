"""The rows of a run: read, checked, noted in the run directory."""

import dataclasses
from pathlib import Path

from polyjax.data.corpora.leakage import held_out_of
from polyjax.data.rows import Rows, rows_digest
from polyjax.data.tasks import read_to_rank
from polyjax.evaluation.rankings import check_candidates
from polyjax.interop.pretrained import is_pretraining_run, read_pretraining_card
from polyjax.mesh.processes import primary_first
from polyjax.recipes.settings import RunConfig
from polyjax.runs import open_data
from polyjax.runtime.progress import console


@dataclasses.dataclass(frozen=True)
class Splits:
    """The rows of a run.

    Attributes:
        train: to learn from.
        valid: to choose the checkpoint by.
        test: to test the chosen checkpoint on.
        notes: what a report says about them.
    """

    train: Rows
    valid: Rows
    test: Rows
    notes: list[str]


def read_splits(config: RunConfig, source: Path | None) -> Splits:
    """The rows, which are checked, noted in the run directory and counted on the console.

    Args:
        config: the run's settings.
        source: folder of the first weights.

    Raises:
        InputError: a file is missing or bad, rows cannot be ranked, or the run was trained on other rows.
    """
    with primary_first("data"):
        training = config.dataset.read("train")
        valid, test = (read_to_rank(config.dataset, split, config.rank) for split in ("valid", "test"))
    name = config.dataset.name
    for split, rows in (("valid", valid), ("test", test)):
        check_candidates(rows.examples, rows.shared, source=f"{name} {split}")
    every = {"train": training, "valid": valid, "test": test}
    with primary_first("rows"):
        open_data(config.folder, {split: rows_digest(rows) for split, rows in every.items()})
    counts = " / ".join(f"{len(rows.examples):,}" for rows in every.values())
    console.print(f"{name}: {counts} examples in train / valid / test")
    notes = list(dict.fromkeys(rows.note for rows in every.values() if rows.note))
    notes += leakage_notes(config, source, training, test)
    for note in notes:
        console.print(note)
    return Splits(training, valid, test, notes)


def leakage_notes(config: RunConfig, source: Path | None, training: Rows, test: Rows) -> list[str]:
    """What of the test rows the model may have seen before."""
    notes = []
    if source is not None and is_pretraining_run(source):
        left_out = {found.digest for found in read_pretraining_card(source).left_out}
        if not left_out or held_out_of(config.dataset).digest not in left_out:
            notes.append(f"{source}: this task's test rows were not left out of its corpus (--leave-out)")
    known = {row.label_text for row in training.examples}
    if repeated := sum(row.label_text in known for row in test.examples):
        notes.append(
            f"{repeated:,} of {len(test.examples):,} test labels are training labels too, word for word"
        )
    return notes
