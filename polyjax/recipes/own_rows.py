"""The rows that a model's run had: its task, and whether it was trained on given rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyjax.config import from_json
from polyjax.data.identity import digests
from polyjax.data.known import count_trained, load_known, load_seen
from polyjax.data.rows import RankConfig, Rows, rows_digest
from polyjax.data.tasks import Task
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.errors import InputError
from polyjax.interop.parlai.cards import PARLAI
from polyjax.interop.parlai.model import ConvertedFrom
from polyjax.recipes.models import run_folder
from polyjax.recipes.settings import RunConfig
from polyjax.runs import CONFIG, DATA, MODEL, read_json
from polyjax.runtime.progress import console
from polyjax.types import Example


def has_settings(folder: Path) -> bool:
    """Whether a folder is a run directory whose config.json says how the model was trained or converted."""
    if not ((folder / MODEL).is_file() and (folder / CONFIG).is_file()):
        return False
    settings = read_json(folder / CONFIG)
    known = (RunConfig.__name__, ConvertedFrom.__name__)
    return isinstance(settings, dict) and settings.get("type") in known


def rows_of_run(run_dir: Path) -> tuple[Task, RankConfig]:
    """The task and ranking settings of a run; for a converted model, the default ones."""
    origin = read_json(run_dir / CONFIG)
    if isinstance(origin, dict) and origin.get("type") == ConvertedFrom.__name__:
        return ChitchatConfig(), RankConfig()
    config = from_json(RunConfig, origin, source=str(run_dir / CONFIG), foreign=PARLAI)
    return config.dataset, config.rank


def task_of_model(model: str) -> Task:
    """The task of the run that a command names.

    Raises:
        InputError: the model is not a run directory, or the run's settings are missing or broken.
    """
    run_dir = run_folder(model)
    if run_dir is None:
        raise taskless(model)
    return rows_of_run(run_dir)[0]


def taskless(model: str) -> InputError:
    """The error where a command names no task, and neither does the model."""
    fix = "choose one: jsonl:FILE, or the name of a data set"
    return InputError("task", problem=f"{model} is not a run directory, and so has no task", fix=fix)


def warn_of_training_rows(
    run_dir: Path, split: str, own: Task, rows: Rows, examples: Sequence[Example], *, of_the_run: bool
) -> None:
    """Warn if the rows differ from those of the run, or if the run was trained on some of them."""
    noted = run_dir / DATA
    if of_the_run and noted.exists() and read_json(noted).get(split) != rows_digest(rows):
        console.print(f"warning: these are not the {split} rows that the run had: its data have changed")
    n = rows_trained_on(run_dir, own, examples)
    if n is None:
        console.print("the run's training rows are not known: it may have been trained on these rows")
    _warn_of(n, examples, "run")


def warn_of_exported_rows(folder: Path, examples: Sequence[Example]) -> None:
    """Warn if a model that was exported from a run was trained on some of the rows.

    Args:
        folder: the exported folder, with the run's digests; without them, nothing is known or printed.
        examples: the rows.
    """
    known = load_seen(folder)
    _warn_of(None if known is None else count_trained(examples, known), examples, "model")


def _warn_of(n: int | None, examples: Sequence[Example], trained: str) -> None:
    if n:
        console.print(f"warning: the {trained} was trained on {n:,} of these {len(examples):,} rows")


def rows_trained_on(run_dir: Path, own: Task, rows: Sequence[Example]) -> int | None:
    """How many of some rows a run was trained on; None if that cannot be known.

    A run directory has digests of its training rows, and of those of the run that it started from. For a
    run of an older version, they are computed from the rows if these can still be read.

    Args:
        run_dir: the run directory.
        own: the run's task.
        rows: to look up, with the label or any further right answer.
    """
    known = load_seen(run_dir)
    if load_known(run_dir) is None:
        if read_json(run_dir / CONFIG).get("type") == ConvertedFrom.__name__:
            return None
        try:
            again = digests(own.read("train").examples).rows
        except InputError:
            return None
        known = again if known is None else np.concatenate([known, again])
    assert known is not None
    return count_trained(rows, known)
