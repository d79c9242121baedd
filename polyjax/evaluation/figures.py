"""Plots of a run, drawn without pyplot, so that the process's matplotlib backend does not change.

matplotlib is imported only when something is drawn.
"""

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyjax.evaluation.metrics import RankingResult
from polyjax.runtime.files import PARTIAL

if TYPE_CHECKING:
    import matplotlib.figure

_CACHE = "MPLCONFIGDIR"
_FEW = 20
GREY, BLUE, ORANGE = "#8a8f98", "#1f5fa8", "#d9822b"


@contextlib.contextmanager
def drawing(folder: Path) -> Iterator[None]:
    """A context in which matplotlib can be imported even if only this folder is writable.

    Args:
        folder: a writable folder, for matplotlib's cache if there is no folder for temporary files.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        aside, before = folder / ".matplotlib", os.environ.get(_CACHE)
        aside.mkdir(parents=True, exist_ok=True)
        os.environ[_CACHE] = str(aside)
        try:
            yield
        finally:
            os.environ.pop(_CACHE)
            os.environ.update({} if before is None else {_CACHE: before})
            shutil.rmtree(aside, ignore_errors=True)
    else:
        yield


def broken_matplotlib(folder: Path) -> str:
    """Why matplotlib cannot be imported, in one line; nothing if it can.

    Args:
        folder: as for ``drawing``.
    """
    try:
        with drawing(folder):
            importlib.import_module("matplotlib.backends.backend_agg")
    except ImportError as error:  # it was built for another numpy, for instance
        return f"matplotlib cannot be imported: {str(error).splitlines()[0] if str(error) else 'ImportError'}"
    return ""


def new_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """An empty figure, with width and height in inches; it can be saved but not shown in a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_learning_curve(
    rows: Sequence[Mapping[str, Any]], baseline: RankingResult | None
) -> "matplotlib.figure.Figure":
    """Plot training and validation loss, and validation recall@1, against steps.

    Args:
        rows: lines of the run's log.
        baseline: its recall@1 is drawn as a line; None for none.
    """
    figure = new_figure(10.0, 3.8)
    left, right = figure.subplots(1, 2)
    training = [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"]
    valid = [r for r in rows if r["kind"] == "valid"]
    if training:
        left.plot(
            *zip(*training, strict=True), color=GREY, linewidth=1.2, label="training (in-batch or sampled)"
        )
    if valid:
        steps = [r["step"] for r in valid]
        name = next(key for key in valid[0] if key.startswith("recall@1/") and "interval" not in key)
        left.plot(steps, [r["loss"] for r in valid], "o-", color=BLUE, label="validation")
        low, high = zip(*(r[f"{name} 95% interval"] for r in valid), strict=True)
        right.plot(steps, [r[name] for r in valid], "o-", color=BLUE, label="validation, 95% interval")
        right.fill_between(steps, low, high, color=BLUE, alpha=0.15)
        right.set_ylabel(name)
    if baseline is not None:
        right.axhline(baseline.recall(1), color=ORANGE, linestyle="--", label=f"{baseline.name} (test)")
    left.set_ylabel("cross-entropy (nats)")
    for axes in (left, right):
        axes.set_xlabel("steps")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
        axes.margins(y=0.1)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def plot_recall(results: Sequence[RankingResult]) -> "matplotlib.figure.Figure":
    """Plot recall@k against k.

    Args:
        results: baselines, then the model.
    """
    from matplotlib.ticker import NullLocator

    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    n = results[0].n_candidates
    # With many candidates, the first hundred on a logarithmic axis.
    few = n <= _FEW
    ks = range(1, n + 1) if few else sorted({round(k) for k in np.geomspace(1, 100, 25)})
    # Some are dashed, so that baselines that coincide can be distinguished.
    others = iter((("#b9bdc4", "-"), ("#8a8f98", "-"), (ORANGE, "-"), ("#6b3d8f", "--"), ("#555a63", ":")))
    for result in results:
        is_model = result is results[-1]
        color, line = (BLUE, "o-") if is_model else next(others)
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


def plot_ranks(result: RankingResult) -> "matplotlib.figure.Figure":
    """Plot the share of examples for each rank of the label (``rank_bins``), with chance for comparison."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    n = result.n_candidates
    bins = rank_bins(n)
    names = [f"{first:,}" if first == last else f"{first:,}–{last:,}" for first, last in bins]
    shares = [float(((result.ranks >= first) & (result.ranks <= last)).mean()) for first, last in bins]
    places = np.arange(len(bins))
    axes.bar(places, shares, color=BLUE)
    chance = [(last - first + 1) / n for first, last in bins]
    axes.step(
        [-0.5, *(places + 0.5)],
        [chance[0], *chance],
        where="pre",
        color=ORANGE,
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
    """Bins of ranks for n candidates, as (first, last): single ranks up to n = 20, growing bins above.

    >>> rank_bins(101)
    [(1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 101)]
    """
    if n <= _FEW:
        return [(rank, rank) for rank in range(1, n + 1)]
    ends = [end for power in range(12) for digit in (1, 2, 5) if 1.5 * (end := digit * 10**power) < n] + [n]
    return [(first + 1, last) for first, last in zip([0, *ends], ends, strict=False)]


def save_figure(figure: "matplotlib.figure.Figure", path: Path) -> None:
    """Write a figure as PNG, completely or not at all."""
    aside = path.with_name(path.name + PARTIAL)
    figure.savefig(aside, dpi=130, format="png")
    os.replace(aside, path)
