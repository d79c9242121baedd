"""Evaluation of a model on rows: ``polyjax.evaluate`` and ``polyjax evaluate``."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import tyro

from polyjax.config import from_json
from polyjax.data.identity import digests
from polyjax.data.known import count_known, load_known, ranked_note
from polyjax.data.rows import RankConfig, Rows, rows_digest
from polyjax.data.tasks import Task, TaskConfig, beside, prepared_in, read_to_rank
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.truncation import ranked_losses
from polyjax.errors import InputError, shown
from polyjax.evaluation.rankings import check_candidates, some, write_examples
from polyjax.evaluation.rankings import evaluate as ranked
from polyjax.evaluation.report import console_table
from polyjax.inference.arguments import check_choice, check_count, check_list
from polyjax.inference.scorer import TextScorer
from polyjax.interop.cards import load_scorer
from polyjax.interop.parlai.cards import PARLAI
from polyjax.interop.parlai.model import ConvertedFrom
from polyjax.mesh.placement import make_mesh
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.ranker import Ranker
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
        run_dir: made by ``polyjax train`` or ``polyjax.fit``.
        split: of the run's task.
        step: a saved step; the best one by default.
        examples: evaluate on at most this many rows, always the same ones; 0 for all.
        k: recall@k to print and write, beside recall@1 and the MRR; the task's by default.
        task: evaluate on another task's rows than the run's; ``--task NAME`` chooses it.
        rank: what the labels are ranked among; with ``task`` (the default) as the run had it.
        out: folder for the metrics (results.json), each row with its scores (examples.jsonl) and TREC's run
            and qrels files.
        mesh: devices that share the work, as ``data=8``; all by default.
        prepared: where the prepared data of the run's own task is, if not where the run had it.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
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
    """Rank the rows of a file, of a data set or in memory, and say how often the label comes first.

    Args:
        model: a Ranker, a Run, or the path of a run directory or of a folder that ``Ranker.load`` takes.
        data: the path of a file, of which all rows are ranked; rows in memory; the name of a data set; a
            task's settings; or None for the rows of the model's own run.
        split: of a data set, or of the run's own rows.
        ks: of the recalls, beside 1; the task's by default.
        examples: at most this many rows, always the same ones; 0 for all.
        rank: what the labels are ranked among; as the data, or the run, have it by default.
        out: folder for results.json, each row with its scores (examples.jsonl), and TREC's files.
        quiet: print nothing.

    Returns:
        Metrics with intervals; ``print`` shows a table.

    Raises:
        InputError: a file is missing or bad, the rows cannot be ranked, or the model is not one.
    """
    check_arguments(split, ks, examples, rank)
    with hushed(quiet), contextlib.ExitStack() as closing:
        kept: dict[Path, str] = {}

        def folder() -> Path:  # made for rows in memory only: not every system has a place for it
            made = Path(closing.enter_context(tempfile.TemporaryDirectory()))
            kept[made / ROWS["train"]] = "data"
            return made

        task = None if data is None else task_of(data, folder)
        ranker, run_dir = opened(model)
        if run_dir is None and task is None:
            raise InputError("data", expected="rows, a file or a task for this ranker", got=None)
        config = EvaluateConfig(
            run_dir=Path() if run_dir is None else run_dir,
            split=split,
            examples=examples,
            k=tuple(ks),
            task=task,
            rank=rank or RankConfig(),
            out=None if out is None else Path(out),
        )
        try:
            with rows_named(kept):
                chosen = rows_to_evaluate(config, of_run=run_dir is not None)
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
        raise InputError("rank", expected="a RankConfig", got=rank)


def opened(model: Any) -> tuple[Ranker, Path | None]:
    """The ranker, and its run directory where it is known."""
    if isinstance(model, Run):
        return model.ranker(), model.folder
    if isinstance(model, str | os.PathLike):
        model = Ranker.load(model)
    if not isinstance(model, Ranker):
        raise InputError("model", expected="a Ranker, a Run or the path of a run directory", got=model)
    return model, model.folder if model.folder is not None and _has_settings(model.folder) else None


def _has_settings(folder: Path) -> bool:
    """Whether a folder is a run directory that says what it was trained on, or converted from."""
    if not ((folder / MODEL).is_file() and (folder / CONFIG).is_file()):
        return False
    settings = read_json(folder / CONFIG)
    known = (RunConfig.__name__, ConvertedFrom.__name__)
    return isinstance(settings, dict) and settings.get("type") in known


def rows_of_run(run_dir: Path) -> tuple[Task, RankConfig]:
    """A run's task and what it ranks; of a model from elsewhere, the default ones."""
    origin = read_json(run_dir / CONFIG)
    if isinstance(origin, dict) and origin.get("type") == ConvertedFrom.__name__:
        return ChitchatConfig(), RankConfig()
    config = from_json(RunConfig, origin, source=str(run_dir / CONFIG), foreign=PARLAI)
    return config.dataset, config.rank


def chosen_rank(before: RankConfig, asked: RankConfig) -> RankConfig:
    """What to rank among: what is asked for, or the run's own with another number or seed."""
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
            problem="does nothing with the task's own candidates",
            fix="choose `rank.candidates` as well",
        )
    return dataclasses.replace(before, **changed)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Rows to evaluate on.

    Attributes:
        task: whose they are.
        rows: with their candidates.
        examples: those of the rows that are ranked.
        ks: of the recalls, 1 first.
    """

    task: Task
    rows: Rows
    examples: list[Example]
    ks: list[int]


def rows_to_evaluate(config: EvaluateConfig, *, of_run: bool = True) -> Chosen:
    """The rows, with warnings where the run was trained on some; all that can be refused is refused here.

    Args:
        config: what to evaluate.
        of_run: whether ``config.run_dir`` holds the model.

    Raises:
        InputError: rows are missing or cannot be ranked, a k is too large, or nothing can be written.
    """
    own = rows_of_run(config.run_dir) if of_run else None
    if config.task is not None:
        task, rank = config.task, RankConfig()
    else:
        assert own is not None
        task, rank = own
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
    if own is not None:
        _warn_of_training_rows(config, own[0], rows, examples, of_the_run=of_the_run)
    return Chosen(task, rows, examples, sorted({1, *(config.k or task.ks)}))


def scored(config: EvaluateConfig, scorer: TextScorer, chosen: Chosen) -> Results:
    """Rank the rows, print the table, and write what was asked for."""
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
    console.print(console_table([result], f"{title}, {len(examples)} rows", ks=ks))
    metrics = {"loss": evaluation.loss, **result.summary(ks)}
    if config.out is not None and is_primary():
        write_json(config.out / "results.json", metrics)
        write_examples(config.out, examples, evaluation, shared=rows.shared)
        console.print(f"written: {config.out}")
    console.print(f"programs compiled: {scorer.compilations}; length buckets {scorer.text.config.buckets}")
    return Results({result.name: metrics}, title=title)


def run(config: EvaluateConfig) -> Results:
    """Restore a run's model, rank the split's rows, print the table."""
    chosen = rows_to_evaluate(config)
    scorer = TextScorer(*load_scorer(config.run_dir, step=config.step), mesh=make_mesh(config.mesh))
    return scored(config, scorer, chosen)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "out", problem=f"{folder} cannot be made ({error})", fix="choose another folder"
        ) from None


def _warn_of_training_rows(
    config: EvaluateConfig, own: Task, rows: Rows, examples: Sequence[Example], *, of_the_run: bool
) -> None:
    """Warn if the rows are not those that the run had, or if it was trained on some of them."""
    noted = config.run_dir / DATA
    if of_the_run and noted.exists() and read_json(noted).get(config.split) != rows_digest(rows):
        console.print(
            f"warning: these are not the {config.split} rows that the run had: its data have changed"
        )
    n = rows_trained_on(config.run_dir, own, digests(examples).rows)
    if n is None:
        console.print("the run kept no digests of its training rows: these may be among them")
    elif n:
        console.print(f"warning: the run was trained on {n:,} of these {len(examples):,} rows")


def rows_trained_on(run_dir: Path, own: Task, rows: np.ndarray) -> int | None:
    """How many rows a run was trained on, however they came; None where that cannot be known.

    Args:
        run_dir: of the run, which keeps digests of its training rows; of one that is older than that they are
            made of the rows, where these are still there.
        own: the run's task.
        rows: digests of rows to test.
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
