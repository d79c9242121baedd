"""Evaluation of a model on rows: ``polyjax.evaluate`` and ``polyjax evaluate``."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from polyjax.config import from_json
from polyjax.data.identity import digests
from polyjax.data.known import count_known, load_known, ranked_note
from polyjax.data.rows import RankConfig, Rows, rows_digest
from polyjax.data.tasks import Task, TaskConfig, beside, prepared_in, read_to_rank
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.errors import InputError, shown
from polyjax.evaluation.rankings import check_candidates, some, write_examples
from polyjax.evaluation.rankings import evaluate as ranked
from polyjax.evaluation.report import console_table
from polyjax.inference.scorer import TextScorer
from polyjax.interop.parlai.cards import PARLAI
from polyjax.interop.parlai.model import ConvertedFrom
from polyjax.mesh.placement import make_mesh
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.ranker import Ranker
from polyjax.recipes.models import ModelName, load_ranker, run_folder
from polyjax.recipes.results import Results
from polyjax.recipes.rows_in_memory import ROWS, rows_named, task_of
from polyjax.recipes.run import Run
from polyjax.recipes.settings import RunConfig
from polyjax.runs import CONFIG, DATA, MODEL, read_json, write_json
from polyjax.runtime.progress import console, hushed
from polyjax.types import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run_dir: run directory of ``polyjax train`` or ``polyjax.fit``; or, with ``task``, a folder of
            sentence-transformers or transformers, ``organisation/model`` of the hub, or ``minilm``.
        split: split of the task to evaluate on.
        step: a saved step; the best one by default.
        examples: evaluate on at most this many rows, always the same ones; 0 for all.
        k: recall@k to print and write, besides recall@1 and MRR; those of the task by default.
        task: evaluate on the rows of another task; ``--task NAME`` chooses it.
        rank: candidates among which labels are ranked; ``task`` (the default) means as in the run.
        out: folder for the metrics (results.json), each row with its scores (examples.jsonl), and TREC run
            and qrels files.
        mesh: devices that share the work, as ``data=8``; all by default.
        prepared: folder of the prepared data of the run's own task, if it has moved.
    """

    run_dir: Annotated[ModelName, tyro.conf.Positional]
    split: Literal["valid", "test"] = "test"
    step: int | None = None
    examples: int = 0
    k: tuple[int, ...] = ()
    task: TaskConfig | Task | None = None
    rank: RankConfig = RankConfig()
    out: Path | None = None
    mesh: str = ""
    prepared: Annotated[Path | None, tyro.conf.arg(name="run-prepared-dir")] = None

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.examples < 0:
            raise InputError("examples", expected="0 (all) or more", got=self.examples)
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError("out", expected="a folder to make", got=shown(f"the file {self.out}"))
        if min(self.k, default=1) < 1:
            raise InputError("k", expected="numbers of at least 1", got=self.k)


def evaluate(
    model: Any,
    data: Any = None,
    *,
    split: Literal["valid", "test"] = "test",
    ks: Sequence[int] = (),
    examples: int = 0,
    rank: RankConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Results:
    """Evaluate a model: rank the rows of a file, of a data set or in memory, and compute recalls and MRR.

    Args:
        model: a Ranker, a Run, or the path of a run directory or of a folder that ``Ranker.load`` reads.
        data: the path of a file, all of whose rows are ranked; rows in memory; the name of a data set; the
            settings of a task; or None for the rows of the model's own run.
        split: split of the data set, or of the run's own rows.
        ks: the k of the recalls, besides 1; by default those of the task.
        examples: maximum number of rows, always the same ones; 0 for all.
        rank: candidates among which labels are ranked; by default those of the data, or as in the run.
        out: folder for results.json, each row with its scores (examples.jsonl), and TREC files.
        quiet: print nothing.

    Returns:
        The metrics with confidence intervals; ``print`` shows a table.

    Raises:
        InputError: a file is missing or invalid, the rows cannot be ranked, or ``model`` is not a model.
    """
    with hushed(quiet), contextlib.ExitStack() as closing:
        kept: dict[Path, str] = {}

        def folder() -> Path:  # created only for rows in memory: not every system has a temporary folder
            made = Path(closing.enter_context(tempfile.TemporaryDirectory()))
            kept[made / ROWS["train"]] = "data"
            return made

        task = None if data is None else task_of(data, folder)
        ranker, run_dir = opened(model)
        if run_dir is None and task is None:
            raise InputError("data", expected="rows, a file or a task for this ranker", got=None)
        config = EvaluateConfig(
            run_dir="" if run_dir is None else str(run_dir),
            split=split,
            examples=examples,
            k=tuple(ks),
            task=task,
            rank=rank or RankConfig(),
            out=None if out is None else Path(out),
        )
        with rows_named(kept):
            chosen = rows_to_evaluate(config, run_dir)
        return scored(config, ranker.scorer, chosen)


def opened(model: Any) -> tuple[Ranker, Path | None]:
    """The ranker of a model, and its run directory; None if it has none.

    Raises:
        InputError: ``model`` is not a Ranker, a Run or a path.
    """
    if isinstance(model, Run):
        return model.ranker(), model.folder
    if isinstance(model, str | os.PathLike):
        model = Ranker.load(model)
    if not isinstance(model, Ranker):
        raise InputError("model", expected="a Ranker, a Run or the path of a run directory", got=model)
    return model, model.folder if model.folder is not None and _has_settings(model.folder) else None


def _has_settings(folder: Path) -> bool:
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


def chosen_rank(before: RankConfig, asked: RankConfig) -> RankConfig:
    """The requested ranking settings; or the run's own, with the requested number or seed.

    Raises:
        InputError: a number or seed is given that would have no effect.
    """
    if asked.candidates != "task":
        return asked
    changed = {
        name: getattr(asked, name)
        for name in ("n", "seed")
        if getattr(asked, name) != getattr(RankConfig(), name)
    }
    if changed and before.candidates not in ("sampled", "batch"):
        raise InputError(
            f"rank.{next(iter(changed))}",
            problem="has no effect with the task's own candidates",
            fix="choose `rank.candidates` as well",
        )
    return dataclasses.replace(before, **changed)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Rows to evaluate on.

    Attributes:
        task: the task of the rows.
        rows: all rows of the split, with their candidates.
        examples: the rows to rank.
        ks: the k of the recalls, 1 first.
    """

    task: Task
    rows: Rows
    examples: list[Example]
    ks: list[int]


def task_of_model(model: str) -> Task:
    """The task of the run that a command names.

    Raises:
        InputError: the model is not a run directory, or the run's settings are missing or broken.
    """
    run_dir = run_folder(model)
    if run_dir is None:
        raise _taskless(model)
    return rows_of_run(run_dir)[0]


def _taskless(model: str) -> InputError:
    fix = "choose one: jsonl:FILE, or the name of a data set"
    return InputError("task", problem=f"{model} is not a run directory, and so has no task", fix=fix)


def rows_to_evaluate(config: EvaluateConfig, run_dir: Path | None) -> Chosen:
    """Read and check the rows, and print warnings, for example if the run was trained on some of them.

    Args:
        config: what to evaluate.
        run_dir: the model's run directory; None for a model from elsewhere.

    Raises:
        InputError: rows are missing or cannot be ranked, a k is too large, or ``out`` cannot be written.
    """
    own = None if run_dir is None else rows_of_run(run_dir)
    if config.task is not None:
        task, rank = config.task, RankConfig()
    elif own is not None:
        task, rank = own
    else:
        raise _taskless(config.run_dir)
    rank = chosen_rank(rank, config.rank)
    of_the_run = (task, rank) == own
    if own is not None:
        task = beside(task, own[0])
    if config.prepared is not None:
        task = prepared_in(task, config.prepared)
    with primary_first("data"):
        rows = read_to_rank(task, config.split, rank)
    examples = some(rows.examples, config.examples)
    n = check_candidates(examples, rows.shared, source=f"{task.name} {config.split}")
    if too_many := [k for k in config.k if k >= n]:
        raise InputError("k", expected=f"less than the {n} candidates of a row", got=too_many[0])
    if config.out is not None and is_primary():
        _make_folder(config.out)
    for note in (rows.note, ranked_note(examples, digests(examples), config.split)):
        if note:
            console.print(note)
    if run_dir is not None and own is not None:
        _warn_of_training_rows(run_dir, config.split, own[0], rows, examples, of_the_run=of_the_run)
    return Chosen(task, rows, examples, sorted({1, *(config.k or task.ks)}))


def scored(config: EvaluateConfig, scorer: TextScorer, chosen: Chosen) -> Results:
    """Rank the rows, print the table, and write the requested files."""
    rows, examples, title = chosen.rows, chosen.examples, f"{chosen.task.name} {config.split}"
    evaluation = ranked(
        f"{scorer.settings.head.arch}-encoder",
        scorer,
        examples,
        shared=rows.shared,
        title=f"scoring {config.split}",
    )
    result, ks = evaluation.ranking, chosen.ks
    console.print(console_table([result], f"{title}, {len(examples)} rows", ks=ks))
    metrics = {"loss": evaluation.loss, **result.summary(ks)}
    if config.out is not None and is_primary():
        write_json(config.out / "results.json", metrics)
        write_examples(config.out, examples, evaluation, shared=rows.shared)
        console.print(f"written: {config.out}")
    console.print(f"programs compiled: {scorer.compilations}; length buckets {scorer.text.config.buckets}")
    return Results({result.name: metrics}, title=title)


def run(config: EvaluateConfig) -> Results:
    """Evaluate as the command line asks: load the model, rank the rows, print and write the results."""
    chosen = rows_to_evaluate(config, run_folder(config.run_dir))
    ranker = load_ranker(config.run_dir, step=config.step, mesh=make_mesh(config.mesh))
    return scored(config, ranker.scorer, chosen)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "out", problem=f"{folder} cannot be made ({error})", fix="choose another folder"
        ) from None


def _warn_of_training_rows(
    run_dir: Path, split: str, own: Task, rows: Rows, examples: Sequence[Example], *, of_the_run: bool
) -> None:
    """Warn if the rows differ from those of the run, or if the run was trained on some of them."""
    noted = run_dir / DATA
    if of_the_run and noted.exists() and read_json(noted).get(split) != rows_digest(rows):
        console.print(f"warning: these are not the {split} rows that the run had: its data have changed")
    n = rows_trained_on(run_dir, own, digests(examples).rows)
    if n is None:
        console.print("the run's training rows are not known: it may have been trained on these rows")
    elif n:
        console.print(f"warning: the run was trained on {n:,} of these {len(examples):,} rows")


def rows_trained_on(run_dir: Path, own: Task, rows: np.ndarray) -> int | None:
    """How many of some rows a run was trained on; None if that cannot be known.

    A run directory has digests of its training rows. For a run of an older version, they are computed from
    the rows if these can still be read.

    Args:
        run_dir: the run directory.
        own: the run's task.
        rows: digests of the rows to look up.
    """
    known = load_known(run_dir)
    if known is None:
        if read_json(run_dir / CONFIG).get("type") == ConvertedFrom.__name__:
            return None
        try:
            known = digests(own.read("train").examples).rows
        except InputError:
            return None
    return count_known(rows, known)
