"""Reads and checks the rows of a run, and records their digests in the run directory."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from polyjax.data.corpora.leakage import held_out_of
from polyjax.data.identity import Digests, digests
from polyjax.data.known import answers_note, count_known, count_trained, load_seen, ranked_note, save_known
from polyjax.data.rows import Rows, rows_digest
from polyjax.data.tasks import read_to_rank
from polyjax.evaluation.candidates import check_candidates
from polyjax.interop.hub import model_folder
from polyjax.interop.pretrained import MINILM, is_pretraining_run, read_pretraining_card
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.ranker import Ranker
from polyjax.recipes.settings import RunConfig
from polyjax.runs import CONFIG, open_data, write_json
from polyjax.runtime.progress import console


@dataclasses.dataclass(frozen=True)
class Splits:
    """The rows of a run.

    Attributes:
        train: training rows.
        valid: rows for choosing the checkpoint.
        test: rows for testing the chosen checkpoint.
        notes: lines about the rows, for the report.
    """

    train: Rows
    valid: Rows
    test: Rows
    notes: list[str]


def read_splits(config: RunConfig, source: Path | None, *, teachers: Sequence[Ranker] = ()) -> Splits:
    """Read and check the rows, record their digests in the run directory, and print their numbers.

    Args:
        config: settings of the run.
        source: folder of the initial weights; None for none.
        teachers: teachers in memory, in addition to those of the settings.

    Raises:
        InputError: a file is missing or invalid, rows cannot be ranked, or the run was trained on other rows.
    """
    with primary_first("data"):
        training = config.dataset.read("train")
        valid, test = (read_to_rank(config.dataset, split, config.rank) for split in ("valid", "test"))
    name = config.dataset.name
    for split, rows in (("valid", valid), ("test", test)):
        check_candidates(rows.examples, rows.shared, source=f"{name} {split}")
    every = {"train": training, "valid": valid, "test": test}
    found = {split: digests(rows.examples) for split, rows in every.items()}
    before = _seen_before(config, source, teachers)
    with primary_first("rows"):
        digested = {split: rows_digest(rows) for split, rows in every.items()}
        open_data(config.folder, digested, trained_on=found["train"].rows)
        if is_primary():
            save_known(config.folder, found["train"], before=_together(before.values()))
            # The rows are the same, but their files may have moved: save the new paths.
            write_json(config.folder / CONFIG, config)
    counts = " / ".join(f"{len(rows.examples):,}" for rows in every.values())
    console.print(f"{name}: {counts} examples in train / valid / test")
    notes = list(dict.fromkeys(rows.note for rows in every.values() if rows.note))
    notes += [note for split in every if (note := _answers(every[split], found[split], split))]
    notes += leakage_notes(config, source, every, found, before)
    for note in notes:
        console.print(note)
    return Splits(training, valid, test, notes)


def _answers(rows: Rows, found: Digests, split: str) -> str:
    if split == "train":
        return answers_note(found, split, rule=": none is a negative of another")
    return ranked_note(rows.examples, found, split)


def leakage_notes(
    config: RunConfig,
    source: Path | None,
    every: Mapping[str, Rows],
    found: Mapping[str, Digests],
    before: Mapping[str, np.ndarray],
) -> list[str]:
    """Notes about validation and test rows that the model may have seen in training or pre-training.

    Args:
        config: settings of the run.
        source: folder of the initial weights; None for none.
        every: the rows of each split.
        found: digests of these rows.
        before: digests of what other models were trained on that the run starts or learns from, by name.
    """
    notes = []
    for split in ("valid", "test"):
        if known := count_trained(every[split].examples, found["train"].rows):
            notes.append(
                f"warning: {known:,} of {len(found[split].rows):,} {split} rows are training rows too"
            )
    for name, seen in before.items():
        for split in ("valid", "test"):
            if known := count_trained(every[split].examples, seen):
                n = len(found[split].rows)
                notes.append(f"warning: {known:,} of {n:,} {split} rows are training rows of {name}")
    if source is not None and is_pretraining_run(source):
        left_out = {found.digest for found in read_pretraining_card(source).left_out}
        if not left_out or held_out_of(config.dataset).digest not in left_out:
            notes.append(f"{source}: this task's test rows were not left out of its corpus (--leave-out)")
    if repeated := count_known(found["test"].labels, found["train"].labels):
        notes.append(f"{repeated:,} of {len(found['test'].labels):,} test labels are training labels too")
    return notes


def _seen_before(config: RunConfig, source: Path | None, teachers: Sequence[Ranker]) -> dict[str, np.ndarray]:
    """Digests of the training rows of the models that a run starts from or learns from, by their names."""
    folders: dict[str, Path] = {}
    if config.init is not None:
        folders[str(config.init)] = config.init
    elif source is not None:
        folders[config.encoder.name] = source
    models = [] if config.teacher is None else [*config.teacher.models, config.teacher.miner]
    named = [str(model) for model in (*models, config.guide.model) if model is not None]
    folders |= {name: model_folder(name) for name in named if name != MINILM}
    folders |= {str(teacher.folder): teacher.folder for teacher in teachers if teacher.folder is not None}
    seen = {name: load_seen(folder) for name, folder in folders.items()}
    return {name: rows for name, rows in seen.items() if rows is not None}


def _together(digests: Iterable[np.ndarray]) -> np.ndarray | None:
    found = list(digests)
    return np.unique(np.concatenate(found)) if found else None
