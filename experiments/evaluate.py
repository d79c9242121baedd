"""Evaluate a run directory's best checkpoint: python experiments/evaluate.py RUN_DIR --split test"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from settings import RunConfig

from polyjax.commandline import parse_flags, user_errors
from polyjax.compilation import enable_compilation_cache
from polyjax.config import from_json
from polyjax.data.tasks import chitchat
from polyjax.evaluation import evaluate
from polyjax.memory import restart_with_huge_pages
from polyjax.metrics import RankingResult
from polyjax.progress import console, meter
from polyjax.scoring import TextScorer
from polyjax.train.checkpoint import CONFIG, load_scorer, read_json
from polyjax.train.report import console_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run_dir: made by experiments/run.py.
        split: of the run's task.
        step: a saved step; the best one by default.
        data_dir: where the prepared data is, if not where the run had it.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    split: Literal["valid", "test"] = "test"
    step: int | None = None
    data_dir: Path | None = None


def run(config: EvaluateConfig) -> RankingResult:
    """Restore, rank the split's rows, print the table."""
    enable_compilation_cache()
    path = config.run_dir / CONFIG
    trained = from_json(RunConfig, read_json(path), source=str(path))
    task = dataclasses.replace(trained.task, data_dir=config.data_dir or trained.task.data_dir)
    scorer = TextScorer(*load_scorer(config.run_dir, step=config.step))
    examples = chitchat.read(task, config.split)
    with meter(f"scoring {config.split}", len(examples)) as shown:
        result = evaluate(f"{trained.arch}-encoder", scorer, examples, progress=shown.add).ranking
    console.print(console_table([result], f"chitchat {config.split}, {len(examples)} rows"))
    console.print(f"programs compiled: {scorer.compilations}; length buckets {trained.text.buckets}")
    return result


def main() -> None:
    """Parse, run; a mistake of the user's is one line and exit status 2."""
    restart_with_huge_pages()
    with user_errors():
        run(parse_flags(EvaluateConfig, prog="python experiments/evaluate.py"))


if __name__ == "__main__":
    main()
