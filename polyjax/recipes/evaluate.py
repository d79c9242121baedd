"""Evaluation of a model on rows: ``polyjax.evaluate`` and ``polyjax evaluate``."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from polyjax.data.identity import digests
from polyjax.data.known import ranked_note
from polyjax.data.rows import RankConfig, Rows
from polyjax.data.tasks import Task, TaskConfig, beside, prepared_in, read_to_rank
from polyjax.data.truncation import ranked_losses
from polyjax.errors import InputError, called_with, shown
from polyjax.evaluation.candidates import check_candidates
from polyjax.evaluation.rankings import evaluate as ranked
from polyjax.evaluation.rankings import some, write_examples
from polyjax.evaluation.report import RESULTS, console_table
from polyjax.inference.arguments import check_choice, check_count, check_folder, check_list
from polyjax.inference.scorer import TextScorer
from polyjax.interop.hub import model_folder
from polyjax.interop.pretrained import names_minilm
from polyjax.mesh.placement import make_mesh
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.ranker import Ranker
from polyjax.recipes.changes import ARGUMENTS, changed
from polyjax.recipes.models import ModelName, load_ranker, run_folder
from polyjax.recipes.own_rows import (
    has_settings,
    rows_of_run,
    taskless,
    warn_of_exported_rows,
    warn_of_training_rows,
)
from polyjax.recipes.results import Results
from polyjax.recipes.rows_in_memory import drawn_among, task_of
from polyjax.recipes.run import Run
from polyjax.runs import CONFIG, MODEL, write_json
from polyjax.runtime.fields import check_types
from polyjax.runtime.files import written_to
from polyjax.runtime.progress import console, errors, hushed
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


@called_with(ARGUMENTS)
def evaluate(
    model: Any,
    data: Any = None,
    *,
    split: Literal["valid", "test"] = "test",
    ks: Sequence[int] = (),
    examples: int = 0,
    rank: RankConfig | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Results:
    """Evaluate a model: rank the rows of a file, of a data set or in memory, and compute recalls and MRR.

    Args:
        model: a Ranker, a Run, or what ``polyjax evaluate`` takes (the path of a run directory or of a folder
            that ``Ranker.load`` reads, ``organisation/model``, or ``minilm``).
        data: the path of a file, all of whose rows are ranked; rows in memory; the name of a data set; the
            settings of a task; or None for the rows of the model's own run.
        split: split of the data set, or of the run's own rows.
        ks: the k of the recalls, besides 1; by default those of the task.
        examples: maximum number of rows, always the same ones; 0 for all.
        rank: candidates among which labels are ranked, or a dict of changes, such as ``{"n": 100}``; by
            default those of the data, or as in the run.
        out: folder for results.json, each row with its scores (examples.jsonl), and TREC files.
        quiet: print nothing.

    Returns:
        The metrics with confidence intervals; ``print`` shows a table.

    Raises:
        InputError: a file is missing or invalid, the rows cannot be ranked, or ``model`` is not a model.

    >>> rows = [{"context": f"question {i}", "label": f"answer {i}"} for i in range(20)]
    >>> results = evaluate("my-encoder", rows, rank={"n": 4}, quiet=True)
    >>> results.model["n"], 0 <= results.recall_at_1 <= 1
    (20, True)
    """
    among = None if rank is None else changed(RankConfig(), rank, "rank")
    check_arguments(split, ks, examples, among)
    if out is not None:
        check_folder(out, "out")
    with hushed(quiet), contextlib.nullcontext() if data is None else task_of(data) as task:
        ranker, run_dir = opened(model)
        if task is not None:
            task, among = drawn_among(task, among)
        if run_dir is None and task is None:
            raise InputError("data", expected="rows, a file or a task for this ranker", got=None)
        config = EvaluateConfig(
            run_dir="" if run_dir is None else str(run_dir),
            split=split,
            examples=examples,
            k=tuple(ks),
            task=task,
            rank=among or RankConfig(),
            out=None if out is None else Path(out),
        )
        try:
            chosen = rows_to_evaluate(config, run_dir, ranker.folder)
        except InputError as error:
            raise error.renamed("ks") if error.argument == "k" else error from None
        return scored(config, ranker.scorer, chosen)


def check_arguments(split: object, ks: object, examples: object, rank: object) -> None:
    """Raise InputError for a Python caller's argument of another type or value."""
    check_choice("split", split, ("valid", "test"))
    check_list("ks", ks)
    for k in cast(Sequence[object], ks):
        check_count("ks", k)
    if examples != 0:
        check_count("examples", examples)
    if not isinstance(rank, RankConfig | None):
        raise InputError("rank", expected="a RankConfig, or a dict of changes", got=rank)
    if rank is not None:
        check_types(rank, "rank")


def opened(model: Any, name: str = "model") -> tuple[Ranker, Path | None]:
    """The ranker of a model, and its run directory; None if it has none.

    Args:
        model: of the caller.
        name: the caller's argument.

    Raises:
        InputError: it is not a Ranker, a Run or a path.
    """
    if isinstance(model, Run):
        return model.ranker(), model.folder
    if isinstance(model, str | os.PathLike):
        model = load_ranker(model)
    if not isinstance(model, Ranker):
        raise InputError(name, expected="a Ranker, a Run or the path of a run directory", got=model)
    return model, model.folder if model.folder is not None and has_settings(model.folder) else None


def chosen_rank(before: RankConfig, asked: RankConfig) -> RankConfig:
    """The requested ranking settings; or the run's own, with the requested number or seed.

    Raises:
        InputError: a number or seed is given that would have no effect.
    """
    if asked.candidates != "task":
        return asked
    numbers = {
        name: getattr(asked, name)
        for name in ("n", "seed")
        if getattr(asked, name) != getattr(RankConfig(), name)
    }
    if numbers and before.candidates not in ("sampled", "batch"):
        raise InputError(
            f"rank.{next(iter(numbers))}",
            problem="has no effect with the task's own candidates",
            fix="choose `rank.candidates` as well",
        )
    return dataclasses.replace(before, **numbers)


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


def rows_to_evaluate(config: EvaluateConfig, run_dir: Path | None, folder: Path | None) -> Chosen:
    """Read and check the rows, and print warnings, for example if the run was trained on some of them.

    Args:
        config: what to evaluate.
        run_dir: the model's run directory; None for a model from elsewhere.
        folder: that the model was loaded from, if any.

    Raises:
        InputError: rows are missing or cannot be ranked, a k is too large, or ``out`` cannot be written.
    """
    own = None if run_dir is None else rows_of_run(run_dir)
    if config.task is not None:
        task, rank = config.task, RankConfig()
    elif own is not None:
        task, rank = own
    else:
        raise taskless(config.run_dir)
    rank = chosen_rank(rank, config.rank)
    of_the_run = (task, rank) == own
    task = beside(task, None if own is None else own[0])
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
        warn_of_training_rows(run_dir, config.split, own[0], rows, examples, of_the_run=of_the_run)
    elif folder is not None:
        warn_of_exported_rows(folder, examples)
    return Chosen(task, rows, examples, sorted({1, *(config.k or task.ks)}))


def scored(config: EvaluateConfig, scorer: TextScorer, chosen: Chosen) -> Results:
    """Rank the rows, print the table, and write the requested files."""
    rows, examples, title = chosen.rows, chosen.examples, f"{chosen.task.name} {config.split}"
    lost = ranked_losses(examples, scorer.text, split=config.split, shared=rows.shared)
    for note in lost.notes():
        console.print(note)
    evaluation = ranked(
        f"{scorer.settings.head.arch}-encoder",
        scorer,
        examples,
        shared=rows.shared,
        title=f"scoring {config.split}",
    )
    result, ks = evaluation.ranking, chosen.ks
    table = console_table([result], f"{title}, {len(examples)} rows", ks=ks)
    console.print(table)
    metrics = {"loss": evaluation.loss, **result.summary(ks)}
    if config.out is not None and is_primary():
        try:
            full = "make room, or choose another `out`; the results are shown above"
            with written_to(config.out, full=full):
                write_json(config.out / RESULTS, metrics)
                write_examples(config.out, examples, evaluation, shared=rows.shared)
        except InputError:
            if console.quiet:  # nothing that was computed is lost
                errors.print(table)
            raise
        console.print(f"written: {config.out}")
    console.print(f"programs compiled: {scorer.compilations}; length buckets {scorer.text.config.buckets}")
    return Results({result.name: metrics}, title=title)


def run(config: EvaluateConfig) -> Results:
    """Evaluate as the command line asks: load the model, rank the rows, print and write the results."""
    run_dir = run_folder(config.run_dir)
    folder = None if names_minilm(config.run_dir) else model_folder(config.run_dir)
    chosen = rows_to_evaluate(config, run_dir, folder)
    ranker = load_ranker(config.run_dir, step=config.step, mesh=make_mesh(config.mesh))
    return scored(config, ranker.scorer, chosen)


def _make_folder(folder: Path) -> None:
    """Make the folder for results, or raise InputError before anything is scored."""
    if (folder / CONFIG).exists() or (folder / MODEL).exists():
        problem = f"{folder} is a run directory, whose own results.json would be replaced"
        raise InputError("out", problem=problem, fix="choose another folder")
    if (folder / RESULTS).is_dir():
        raise InputError("out", problem=f"{folder / RESULTS} is a folder", fix="choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # before anything is scored
            pass
    except OSError as error:
        raise InputError(
            "out", problem=f"{folder} cannot be made or written to ({error})", fix="choose another folder"
        ) from None
