"""Evaluate a run directory's best checkpoint: python experiments/evaluate.py RUN_DIR --split test"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from settings import RunConfig

from polyjax.commandline import parse_flags, user_errors
from polyjax.compilation import enable_compilation_cache
from polyjax.config import from_json
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.tasks.registry import TaskConfig, name_of, read
from polyjax.evaluation import evaluate, some, write_examples
from polyjax.interop.parlai import ConvertedFrom
from polyjax.memory import restart_with_huge_pages
from polyjax.metrics import RankingResult
from polyjax.nn.heads import head_label
from polyjax.progress import console, meter
from polyjax.scoring import TextScorer
from polyjax.train.checkpoint import CONFIG, load_scorer, read_json, write_json
from polyjax.train.report import KS, console_table
from polyjax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run_dir: made by experiments/run.py.
        split: of the run's task.
        step: a saved step; the best one by default.
        examples: evaluate on at most so many rows, always the same ones; 0 for all.
        k: recall@k to print and write, beside recall@1 and the MRR.
        out: folder for the figures (results.json), each row with its scores (examples.jsonl) and TREC's run
            and qrels files.
        data_dir: where the prepared data is, if not where the run had it.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    split: Literal["valid", "test"] = "test"
    step: int | None = None
    examples: int = 0
    k: tuple[int, ...] = KS
    out: Path | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.examples < 0:
            raise InputError(f"--examples must be 0 (all) or more, got {self.examples}")
        if not self.k or min(self.k) < 1:
            raise InputError(f"--k: expected numbers of at least 1, got {self.k}")


def task_of(run_dir: Path) -> TaskConfig:
    """The task that a run was trained on; for a model from elsewhere, the task as run.py has it."""
    origin = read_json(run_dir / CONFIG)
    if isinstance(origin, dict) and origin.get("type") == ConvertedFrom.__name__:
        return ChitchatConfig()
    return from_json(RunConfig, origin, source=str(run_dir / CONFIG)).task


def run(config: EvaluateConfig) -> RankingResult:
    """Restore, rank the split's rows, print the table."""
    enable_compilation_cache()
    task = task_of(config.run_dir)
    if config.data_dir is not None:
        if not isinstance(task, ChitchatConfig):
            raise InputError("--data-dir is where chitchat is kept prepared; this run has another task")
        task = dataclasses.replace(task, data_dir=config.data_dir)
    scorer = TextScorer(*load_scorer(config.run_dir, step=config.step))
    examples = some(read(task, config.split).examples, config.examples)
    arch = head_label(scorer.settings.head)
    with meter(f"scoring {config.split}", len(examples)) as shown:
        evaluation = evaluate(f"{arch}-encoder", scorer, examples, progress=shown.add)
    result, ks = evaluation.ranking, sorted({1, *config.k})
    console.print(console_table([result], f"{name_of(task)} {config.split}, {len(examples)} rows", ks=ks))
    if config.out is not None:
        write_examples(config.out, examples, evaluation)
        write_json(config.out / "results.json", {"loss": evaluation.loss, **result.summary(ks)})
        console.print(f"written: {config.out}")
    console.print(f"programs compiled: {scorer.compilations}; length buckets {scorer.text.config.buckets}")
    return result


def main() -> None:
    """Parse, run; a mistake of the user's is one line and exit status 2."""
    restart_with_huge_pages()
    with user_errors():
        run(parse_flags(EvaluateConfig, prog="python experiments/evaluate.py"))


if __name__ == "__main__":
    main()
