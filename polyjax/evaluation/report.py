"""Writes the report of a run: report.md, results.json and three plots."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.table import Table

from polyjax.evaluation.figures import (
    broken_matplotlib,
    drawing,
    plot_learning_curve,
    plot_ranks,
    plot_recall,
    save_figure,
)
from polyjax.evaluation.metrics import RankingResult
from polyjax.runtime.files import write_text
from polyjax.runtime.hardware import cpu_has_bfloat16
from polyjax.runtime.progress import console

RESULTS, REPORT = "results.json", "report.md"
"""Names of the files in a run directory."""
KS = (1, 2, 5, 10)
CAPTIONS = {
    "learning_curve": "Learning curve",
    "recall": "Recall of the model against the baselines",
    "ranks": "Rank of the label",
}
"""Of the plots."""


def metrics_row(result: RankingResult, *, with_n: bool = True, ks: Sequence[int] = KS) -> list[str]:
    """A table row: name, rows, recall@1 with its 95% interval, the other recalls, MRR."""
    low, high = result.recall_interval(1)
    interval = f"[{low:.3f}, {high:.3f}]" if low < high else "exact"
    others = [f"{result.recall(k):.3f}" for k in ks[1:] if k < result.n_candidates]
    n = [f"{len(result.groups):,}"] if with_n else []
    return [
        result.name,
        *n,
        f"{result.recall(1):.3f}",
        interval,
        *others,
        f"{result.mrr:.3f}",
    ]


def header_row(result: RankingResult, *, with_n: bool = True, ks: Sequence[int] = KS) -> list[str]:
    """The column names for ``metrics_row``; recall@1 has the number of candidates of all recalls."""
    others = [f"@{k}" for k in ks[1:] if k < result.n_candidates]
    n = ["n"] if with_n else []
    return ["", *n, f"recall@1/{result.n_candidates}", "95% interval", *others, "MRR"]


def console_table(results: Sequence[RankingResult], title: str, *, ks: Sequence[int] = KS) -> Table:
    """The results as a table that fits 80 columns; the last row, the model, is highlighted.

    There is no column for n, which would not fit. It is the same in every row, so put it into the title.

    Args:
        results: baselines, then the model.
        title: title of the table.
        ks: the k of the recalls, 1 first.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for i, name in enumerate(header_row(results[0], with_n=False, ks=ks)):
        # Where there is too little room, a name takes two lines and no number is cut.
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for result in results:
        table.add_row(
            *metrics_row(result, with_n=False, ks=ks), style="bold" if result is results[-1] else None
        )
    return table


def markdown_table(results: Sequence[RankingResult], *, ks: Sequence[int] = KS) -> str:
    """The results as a Markdown table.

    Args:
        results: baselines, then the model.
        ks: the k of the recalls, 1 first.
    """
    header = header_row(results[0], ks=ks)
    rows = [
        header,
        ["---"] + ["---:"] * (len(header) - 1),
        *(metrics_row(result, ks=ks) for result in results),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def hardware() -> str:
    """The hardware and versions of the run, in one line."""
    device = jax.devices()[0]
    cpu = f"CPU {'with' if cpu_has_bfloat16() else 'without'} bfloat16 units"
    name = cpu if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores ({platform.machine()}), {versions}"


def write_report(
    run_dir: Path,
    results: Sequence[RankingResult],
    *,
    title: str,
    notes: Sequence[str],
    card: Mapping[str, Sequence[str]],
    log: Sequence[Mapping[str, Any]],
    ks: Sequence[int] = KS,
) -> None:
    """Write results.json, report.md and figures/ into a run directory, in this order.

    Where matplotlib is broken, a warning takes the place of the plots.

    Args:
        run_dir: the run directory.
        results: baselines, then the model, all on the same examples.
        title: title of the report.
        notes: facts about the run, one per line.
        card: further sections about the model: lines by section title.
        log: lines of the run's metrics.jsonl, for the learning curve.
        ks: the k of the recalls, 1 first.
    """
    metrics = {result.name: result.summary(ks) for result in results}
    write_text(run_dir / RESULTS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    model, best = results[-1], best_of(results[:-1])
    lines = [f"# {title}", "", markdown_table(results)]
    if best is not None:
        lines += [verdict(model, best), ""]
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    broken = broken_matplotlib(folder)
    notes = [*notes, *([f"warning: no plots, {broken}"] if broken else [])]
    lines += [*(f"* {note}" for note in notes), f"* hardware: {hardware()}", ""]
    for name, caption in CAPTIONS.items() if not broken else ():
        lines += [f"![{caption}](figures/{name}.png)", ""]
    for section, facts in card.items():
        lines += [f"## {section}", "", *(f"* {fact}" for fact in facts), ""]
    write_text(run_dir / REPORT, "\n".join(lines))
    if broken:
        console.print(f"warning: no plots, {broken}", style="yellow", markup=False)
        return
    with drawing(folder):
        save_figure(plot_learning_curve(log, best), folder / "learning_curve.png")
        save_figure(plot_recall(results), folder / "recall.png")
        save_figure(plot_ranks(model), folder / "ranks.png")


def best_of(results: Sequence[RankingResult]) -> RankingResult | None:
    """The result with the highest recall@1, then MRR; None without results."""
    return max(results, key=lambda result: (result.recall(1), result.mrr), default=None)


def verdict(model: RankingResult, baseline: RankingResult) -> str:
    """One sentence: a model's recall@1, and whether it is better than a baseline on the same rows.

    "Better" and "worse" mean that the 95% interval of the difference (paired bootstrap) excludes 0.
    """
    n, rows = model.n_candidates, len(model.groups)
    low, high = model.gain_interval(baseline)
    if low > 0:
        judged = f"better than {baseline.name}"
    elif high < 0:
        judged = f"worse than {baseline.name}"
    else:
        judged = f"not distinguishable from {baseline.name}"
    return (
        f"{model.name}: the right one of {n:,} comes first in {model.recall(1):.1%} of {rows:,} rows, "
        f"{judged} ({baseline.recall(1):.1%}): {model.recall(1) - baseline.recall(1):+.3f} recall@1/{n}, "
        f"95% interval [{low:+.3f}, {high:+.3f}]"
    )
