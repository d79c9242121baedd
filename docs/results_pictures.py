"""Draw the pictures of the results pages from results/: python docs/results_pictures.py (make results).

The newest result of each benchmark is drawn twice: NAME.png for light pages and NAME-dark.png for dark ones.
A picture whose benchmark has no result stays as it is, and so does one that would have a single point.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from record import RESULTS, read  # noqa: E402

OUT = ROOT / "docs" / "figures"
Result = Mapping[str, Any]


def plain(axes: plt.Axes, *, x: bool = True, y: bool = True) -> None:
    """Logarithmic axes with numbers as people write them, a light grid, no frame above or to the right."""
    for axis, wanted in ((axes.xaxis, x), (axes.yaxis, y)):
        if wanted:
            low, high = axis.get_view_interval()
            steps = (1.0,) if high / low > 50 else (1.0, 2.0, 5.0)
            axis.set_major_locator(LogLocator(subs=steps))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def scoring(result: Result) -> plt.Figure | None:
    """Time against candidates, log-log."""
    if len({row["candidates"] for row in result["rows"]}) < 2:
        return None
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, codes in enumerate(sorted({row["codes"] for row in result["rows"]})):
        rows = [row for row in result["rows"] if row["codes"] == codes]
        for key, library, style in (("torch_ms", "textbook, torch", "o--"), ("float32_ms", "polyjax", "o-")):
            times = [row[key] for row in rows]
            label = f"{library}, {codes:.0f} codes"
            axes.loglog([row["candidates"] for row in rows], times, style, color=f"C{i}", label=label)
    axes.set(xlabel="candidates", ylabel="ms", title="The 100 best for one context, exactly, float32")
    plain(axes)
    axes.legend(fontsize=8, frameon=False)
    return figure


def tradeoff(result: Result) -> plt.Figure | None:
    """Recall against milliseconds, with intervals."""
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    rows, markers = result["rows"], {"bi": "o", "poly": "s", "cross": "^"}
    for row in rows:
        errors = [[row["recall"] - row["low"]], [row["high"] - row["recall"]]]
        axes.errorbar(
            row["ms"], row["recall"], errors, fmt=markers[row["run"].split()[0]], capsize=4, label=row["run"]
        )
    label = "ms for 1,000 candidates of one context"
    axes.set(xscale="log", xlabel=label, ylabel=f"{rows[0]['figure']}, test")
    axes.margins(x=0.25, y=0.2)
    plain(axes, y=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def certified(result: Result) -> plt.Figure | None:
    """Distributions of the share that was scored exactly, and of the time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, row in enumerate(result["rows"]):
        share = np.arange(1, row["contexts"] + 1) / row["contexts"]
        label = f"{row['run']} ({row['codes']} codes)"
        left.step(100 * np.sort(row["rescored"]), share, color=f"C{i}", label=label)
        right.step(np.sort(row["certified_times_ms"]), share, color=f"C{i}")
        right.axvline(row["scan_ms"], color=f"C{i}", linestyle="--")
    left.set(xlabel="candidates scored exactly, %", ylabel="share of contexts", xlim=(0, None))
    right.set(xlabel="ms (dashed: the scan's median)", ylabel="share of contexts", xlim=(0, None))
    left.legend(fontsize=8, loc="lower right", frameon=False)  # no curve comes there
    plain(left, x=False, y=False)
    plain(right, x=False, y=False)
    return figure


def millions(result: Result) -> plt.Figure | None:
    """Time and memory against candidates, log-log."""
    rows = result["rows"]
    if len(rows) < 2:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    n = [row["candidates"] for row in rows]
    for name in ("scan", "certified"):
        left.loglog(n, [row[f"{name}_ms"] for row in rows], marker="o", label=name)
    left.set(xlabel="candidates", ylabel="ms for one context")
    right.loglog(n, [row["peak_mb"] for row in rows], marker="o", label="peak memory")
    right.loglog(n, [row["file_mb"] for row in rows], marker="o", linestyle="--", label="vectors on disk")
    right.set(xlabel="candidates", ylabel="MB")
    for axes in (left, right):
        plain(axes)
        axes.legend(frameon=False)
    return figure


def corpus(result: Result) -> plt.Figure | None:
    """Seconds and peak memory of preparing a corpus against pairs."""
    rows = result["rows"]
    if len(rows) < 2:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    pairs = [row["pairs"] for row in rows]
    for stage in ("prepare", "vocabulary", "tokenise", "learn"):
        seconds = "plan_s" if stage == "learn" else f"{stage}_s"
        label = "plan an epoch" if stage == "learn" else stage
        left.plot(pairs, [row[seconds] for row in rows], marker="o", label=label)
        right.plot(pairs, [row[f"{stage}_mb"] for row in rows], marker="o", label=stage)
    right.axhline(float(rows[0]["start_mb"]), color="grey", linestyle=":", label="libraries imported")
    for axes, label in ((left, "seconds"), (right, "most resident memory, MB")):
        axes.set(xscale="log", xlabel="pairs", ylabel=label)
        axes.legend(frameon=False)
    left.set(yscale="log")
    right.set(ylim=(0, None))
    plain(left)
    plain(right, y=False)
    return figure


PICTURES: Mapping[str, Callable[[Result], plt.Figure | None]] = {
    "scoring": scoring,
    "tradeoff": tradeoff,
    "certified": certified,
    "millions": millions,
    "corpus_pairs": corpus,
    "corpus_reddit": corpus,
}
"""By benchmark."""


def main(results: Path = RESULTS, out: Path = OUT) -> list[Path]:
    """Draw what has results, for light and for dark pages; the files."""
    written = []
    for name, draw in PICTURES.items():
        for result in read(name, results)[:1]:
            for suffix, style in (("", "default"), ("-dark", "dark_background")):
                with plt.style.context(style):
                    figure = draw(result)
                    if figure is None:
                        continue
                    written.append(out / f"{name}{suffix}.png")
                    figure.savefig(written[-1], dpi=150, transparent=bool(suffix))
                    plt.close(figure)
    return written


if __name__ == "__main__":
    for path in main():
        print(f"drew {path.relative_to(ROOT)}")
