"""What a run leaves for a reader: report.md, results.json, and three pictures."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich import box
from rich.table import Table

from polyjax.evaluation.metrics import RankingResult
from polyjax.runs.checkpoints import write_json
from polyjax.runs.log import MetricsLog
from polyjax.runtime.files import write_text
from polyjax.runtime.hardware import cpu_has_bfloat16

KS = (1, 2, 5, 10)
_FEW = 20
_GREY, _BLUE, _ORANGE = "#8a8f98", "#1f5fa8", "#d9822b"


def figures_row(result: RankingResult, *, with_n: bool = True, ks: Sequence[int] = KS) -> list[str]:
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
    """The names of ``figures_row``; recall@1 states the candidate count of all."""
    others = [f"@{k}" for k in ks[1:] if k < result.n_candidates]
    n = ["n"] if with_n else []
    return ["", *n, f"recall@1/{result.n_candidates}", "95% interval", *others, "MRR"]


def console_table(results: Sequence[RankingResult], title: str, *, ks: Sequence[int] = KS) -> Table:
    """The results as a table of at most 80 columns; the last one, the model, stands out.

    n, the same in every row, is the title's matter here: a column of it would not fit.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for i, name in enumerate(header_row(results[0], with_n=False, ks=ks)):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for result in results:
        table.add_row(
            *figures_row(result, with_n=False, ks=ks), style="bold" if result is results[-1] else None
        )
    return table


def markdown_table(results: Sequence[RankingResult], *, ks: Sequence[int] = KS) -> str:
    """The results as a markdown table."""
    header = header_row(results[0], ks=ks)
    rows = [
        header,
        ["---"] + ["---:"] * (len(header) - 1),
        *(figures_row(result, ks=ks) for result in results),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def hardware() -> str:
    """What the run was made on, in one line."""
    device = jax.devices()[0]
    cpu = f"CPU {'with' if cpu_has_bfloat16() else 'without'} bfloat16 units"
    name = cpu if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores ({platform.machine()}), {versions}"


def plot_learning_curve(rows: Sequence[dict[str, Any]], baseline: RankingResult | None) -> Figure:
    """Training and validation loss, and validation recall@1, against updates."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    training = [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"]
    valid = [r for r in rows if r["kind"] == "valid"]
    if training:
        left.plot(
            *zip(*training, strict=True), color=_GREY, linewidth=1.2, label="training (in-batch or sampled)"
        )
    if valid:
        steps = [r["step"] for r in valid]
        name = next(key for key in valid[0] if key.startswith("recall@1/") and "interval" not in key)
        left.plot(steps, [r["loss"] for r in valid], "o-", color=_BLUE, label="validation")
        low, high = zip(*(r[f"{name} 95% interval"] for r in valid), strict=True)
        right.plot(steps, [r[name] for r in valid], "o-", color=_BLUE, label="validation, 95% interval")
        right.fill_between(steps, low, high, color=_BLUE, alpha=0.15)
        right.set_ylabel(name)
    if baseline is not None:
        right.axhline(baseline.recall(1), color=_ORANGE, linestyle="--", label=f"{baseline.name} (test)")
    left.set_ylabel("cross-entropy (nats)")
    for axes in (left, right):
        axes.set_xlabel("updates")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
        axes.margins(y=0.1)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def plot_recall(results: Sequence[RankingResult]) -> Figure:
    """recall@k against k, the model against the baselines."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    n = results[0].n_candidates
    # Of many candidates, the first hundred on a logarithmic axis.
    few = n <= _FEW
    ks = range(1, n + 1) if few else sorted({round(k) for k in np.geomspace(1, 100, 25)})
    # Dashed: baselines that lie upon one another can still be told apart.
    others = iter((("#b9bdc4", "-"), ("#8a8f98", "-"), (_ORANGE, "-"), ("#6b3d8f", "--"), ("#555a63", ":")))
    for result in results:
        is_model = result is results[-1]
        color, line = (_BLUE, "o-") if is_model else next(others)
        axes.plot(
            ks,
            [result.recall(k) for k in ks],
            line,
            markersize=3.5,
            color=color,
            label=result.name,
        )
    axes.set(xlabel="k", ylabel=f"recall@k/{n}", ylim=(0, 1.02))
    if few:
        axes.set_xticks(ks)
    else:
        axes.set_xscale("log")
        axes.set_xticks(ticks := (1, 2, 5, 10, 20, 50, 100), [str(k) for k in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def plot_ranks(result: RankingResult) -> Figure:
    """How often the label came at each rank."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    n = result.n_candidates
    bins = rank_bins(n)
    names = [f"{first:,}" if first == last else f"{first:,}–{last:,}" for first, last in bins]
    shares = [float(((result.ranks >= first) & (result.ranks <= last)).mean()) for first, last in bins]
    places = np.arange(len(bins))
    axes.bar(places, shares, color=_BLUE)
    chance = [(last - first + 1) / n for first, last in bins]
    axes.step(
        [-0.5, *(places + 0.5)],
        [chance[0], *chance],
        where="pre",
        color=_ORANGE,
        linestyle="--",
        label="chance",
    )
    axes.set(
        xlabel=f"rank of the label among {n:,}", ylabel="share of examples", ylim=(0, max(shares) * 1.12)
    )
    axes.set_xticks(places, names, rotation=0 if n <= _FEW else 30)
    axes.legend(frameon=False)
    return figure


def rank_bins(n: int) -> list[tuple[int, int]]:
    """Ranks that are counted together, first and last: each alone up to 20 candidates, then ever more.

    >>> rank_bins(101)
    [(1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 101)]
    """
    if n <= _FEW:
        return [(rank, rank) for rank in range(1, n + 1)]
    ends = [end for power in range(12) for digit in (1, 2, 5) if 1.5 * (end := digit * 10**power) < n] + [n]
    return [(first + 1, last) for first, last in zip([0, *ends], ends, strict=False)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all, and free it."""
    aside = path.with_name(path.name + ".partial")
    figure.savefig(aside, dpi=130, format="png")
    plt.close(figure)
    os.replace(aside, path)


def write_report(
    run_dir: Path,
    results: Sequence[RankingResult],
    *,
    title: str,
    notes: Sequence[str],
    card: Mapping[str, Sequence[str]],
    ks: Sequence[int] = KS,
) -> None:
    """Write report.md, results.json and figures/ into a run directory.

    Args:
        run_dir: the run directory; its metrics.jsonl gives the learning curve.
        results: baselines first, the model last, all on the same examples.
        title: of the report.
        notes: facts about the run, a line each.
        card: what else is to be known of the model: lines by title of their section.
        ks: of the recalls, 1 first.
    """
    model = results[-1]
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    best = best_of(results[:-1])
    save_figure(plot_learning_curve(MetricsLog.read(run_dir), best), folder / "learning_curve.png")
    save_figure(plot_recall(results), folder / "recall.png")
    save_figure(plot_ranks(model), folder / "ranks.png")
    lines = [f"# {title}", "", markdown_table(results)]
    if best is not None:
        lines += [verdict(model, best), ""]
    lines += [*(f"* {note}" for note in notes), f"* hardware: {hardware()}", ""]
    for name, caption in (
        ("learning_curve", "Learning curve"),
        ("recall", "Recall of the model against the baselines"),
        ("ranks", "Rank of the label"),
    ):
        lines += [f"![{caption}](figures/{name}.png)", ""]
    for section, facts in card.items():
        lines += [f"## {section}", "", *(f"* {fact}" for fact in facts), ""]
    write_text(run_dir / "report.md", "\n".join(lines))
    write_json(run_dir / "results.json", {result.name: result.summary(ks) for result in results})


def best_of(results: Sequence[RankingResult]) -> RankingResult | None:
    """The result of the highest recall@1, and then MRR; None of none."""
    return max(results, key=lambda result: (result.recall(1), result.mrr), default=None)


def verdict(model: RankingResult, baseline: RankingResult) -> str:
    """How good a model is, and whether better than a baseline on the same rows (by a paired interval)."""
    n, rows = model.n_candidates, len(model.groups)
    low, high = model.gain_interval(baseline)
    if low > 0:
        judged = f"better than {baseline.name}"
    elif high < 0:
        judged = f"worse than {baseline.name}"
    else:
        judged = f"as far as they can tell no better and no worse than {baseline.name}"
    return (
        f"{model.name}: the right one of {n:,} comes first in {model.recall(1):.1%} of {rows:,} rows, "
        f"{judged} ({baseline.recall(1):.1%}): {model.recall(1) - baseline.recall(1):+.3f} recall@1/{n}, "
        f"95% interval [{low:+.3f}, {high:+.3f}]"
    )
