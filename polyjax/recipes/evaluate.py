"""Evaluate a run directory's best checkpoint: python experiments/evaluate.py RUN_DIR --split test"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyjax.config import from_json
from polyjax.data.rows import RankConfig, rows_digest
from polyjax.data.tasks import TaskConfig, beside, prepared_in, read_to_rank
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.errors import InputError
from polyjax.evaluation.metrics import RankingResult
from polyjax.evaluation.rankings import evaluate, some, write_examples
from polyjax.evaluation.report import console_table
from polyjax.inference.scorer import TextScorer
from polyjax.interop.parlai.model import ConvertedFrom
from polyjax.mesh.placement import make_mesh
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.recipes.settings import RunConfig
from polyjax.runs import CONFIG, DATA, load_scorer, read_json, write_json
from polyjax.runtime.progress import console
from polyjax.types import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run_dir: made by experiments/run.py.
        split: of the run's task.
        step: a saved step; the best one by default.
        examples: evaluate on at most so many rows, always the same ones; 0 for all.
        k: recall@k to print and write, beside recall@1 and the MRR; the task's by default.
        task: evaluate on another task's rows than the run's; ``--task NAME`` chooses it.
        rank: what the labels are ranked among; with ``task`` (the default) as the run had it.
        out: folder for the figures (results.json), each row with its scores (examples.jsonl) and TREC's run
            and qrels files.
        mesh: devices that share the work, as ``data=8``; all by default.
        prepared: where the prepared data of the run's own task is, if not where the run had it.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    split: Literal["valid", "test"] = "test"
    step: int | None = None
    examples: int = 0
    k: tuple[int, ...] = ()
    task: TaskConfig | None = None
    rank: RankConfig = RankConfig()
    out: Path | None = None
    mesh: str = ""
    prepared: Annotated[Path | None, tyro.conf.arg(name="run-prepared-dir")] = None

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.examples < 0:
            raise InputError(f"--examples must be 0 (all) or more, got {self.examples}")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file; expected a folder to make")
        if min(self.k, default=1) < 1:
            raise InputError(f"--k: expected numbers of at least 1, got {self.k}")


def rows_of_run(run_dir: Path) -> tuple[TaskConfig, RankConfig]:
    """A run's task and what it ranks; of a model from elsewhere, run.py's defaults."""
    origin = read_json(run_dir / CONFIG)
    if isinstance(origin, dict) and origin.get("type") == ConvertedFrom.__name__:
        return ChitchatConfig(), RankConfig()
    config = from_json(RunConfig, origin, source=str(run_dir / CONFIG))
    return config.task, config.rank


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
        name = next(iter(changed))
        raise InputError(f"--rank.{name} does nothing with the task's own candidates; add --rank.candidates")
    return dataclasses.replace(before, **changed)


def run(config: EvaluateConfig) -> RankingResult:
    """Restore, rank the split's rows, print the table."""
    task, rank = own = rows_of_run(config.run_dir)
    if config.task is not None:
        task, rank = config.task, RankConfig()
    rank = chosen_rank(rank, config.rank)
    of_the_run = (task, rank) == own
    task = beside(task, own[0])
    if config.prepared is not None:
        task = prepared_in(task, config.prepared)
    scorer = TextScorer(*load_scorer(config.run_dir, step=config.step), mesh=make_mesh(config.mesh))
    with primary_first("data"):
        rows = read_to_rank(task, config.split, rank)
    if rows.note:
        console.print(rows.note)
    noted = config.run_dir / DATA
    if of_the_run and noted.exists() and read_json(noted).get(config.split) != rows_digest(rows):
        console.print(
            f"warning: these are not the {config.split} rows that the run had: its data have changed, and "
            "rows that it was trained on may be among them"
        )
    examples = some(rows.examples, config.examples)
    if known := _trained_on(own[0], examples) if not of_the_run else 0:
        console.print(f"warning: the run was trained on {known:,} of these {len(examples):,} rows")
    arch = scorer.settings.head.arch
    evaluation = evaluate(
        f"{arch}-encoder", scorer, examples, shared=rows.shared, title=f"scoring {config.split}"
    )
    too_many = [k for k in config.k if k >= evaluation.ranking.n_candidates]
    if too_many:
        raise InputError(f"--k {too_many[0]}: a row has {evaluation.ranking.n_candidates} candidates")
    result, ks = evaluation.ranking, sorted({1, *(config.k or task.ks)})
    console.print(console_table([result], f"{task.name} {config.split}, {len(examples)} rows", ks=ks))
    if config.out is not None and is_primary():
        write_examples(config.out, examples, evaluation, shared=rows.shared)
        write_json(config.out / "results.json", {"loss": evaluation.loss, **result.summary(ks)})
        console.print(f"written: {config.out}")
    console.print(f"programs compiled: {scorer.compilations}; length buckets {scorer.text.config.buckets}")
    return result


def _trained_on(own: TaskConfig, examples: Sequence[Example]) -> int:
    """How many examples are training rows of a run; 0 where these are gone."""
    try:
        known = {(row.context, row.label_text) for row in own.read("train").examples}
    except InputError:
        return 0
    return sum((row.context, row.label_text) in known for row in examples)
