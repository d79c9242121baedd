"""Writes the report of a pre-training run: report.md, results.json, one plot."""

from collections.abc import Sequence
from pathlib import Path

from polyjax.evaluation.figures import drawing, new_figure, save_figure
from polyjax.evaluation.report import REPORT, RESULTS, hardware
from polyjax.runs import MetricsLog, write_json
from polyjax.runtime.files import write_text

_NAMES = {
    "masked_loss": "masked tokens, cross-entropy (nats)",
    "masked_accuracy": "masked tokens predicted",
    "next_loss": "next utterance, cross-entropy (nats)",
    "next_accuracy": "pairs classified",
}


def write_pretraining_report(run_dir: Path, notes: Sequence[str]) -> None:
    """Write report.md, results.json and figures/learning.png from a run's log.

    Args:
        run_dir: the run directory; its log must have at least one validation.
        notes: facts about corpus, training and time, one per line.
    """
    rows = MetricsLog.read(run_dir)
    valid = [row for row in rows if row["kind"] == "valid"]
    trained = [row for row in rows if row["kind"] == "train"]
    best = min(valid, key=lambda row: row["loss"])
    speed = trained[len(trained) // 2]
    lines = [
        f"# Pre-training, {max(row['step'] for row in (*trained, *valid))} steps",
        "",
        f"| on held-out pairs, after step {best['step']}, the best | |",
        "| --- | ---: |",
        *(f"| {title} | {best[name]:.3f} |" for name, title in _NAMES.items()),
        "",
        *(f"* {note}" for note in notes),
        f"* speed halfway: {speed['tokens_per_second']:,.0f} tokens/s, {speed['padding']:.1%} padding",
        f"* {hardware()}",
        "",
        "![Losses, accuracies, speed](figures/learning.png)",
    ]
    write_text(run_dir / REPORT, "\n".join(lines) + "\n")
    metrics = {name: best[name] for name in ("step", "loss", *_NAMES)}
    metrics["tokens_per_second"] = speed["tokens_per_second"]
    write_json(run_dir / RESULTS, metrics)
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    with drawing(folder):
        _plot(trained, valid, folder / "learning.png")


def _plot(trained: list[dict], valid: list[dict], path: Path) -> None:
    figure = new_figure(12.0, 3.4)
    axes = figure.subplots(1, 3)
    for axis, kind, label in ((axes[0], "loss", "cross-entropy (nats)"), (axes[1], "accuracy", "right")):
        for name, title, colour in (
            ("masked", "masked tokens", "#1f5fa8"),
            ("next", "next utterance", "#d9822b"),
        ):
            key = f"{name}_{kind}"
            axis.plot([r["step"] for r in trained], [r[key] for r in trained], color=colour, alpha=0.35)
            axis.plot(
                [r["step"] for r in valid],
                [r[key] for r in valid],
                "o-",
                color=colour,
                label=f"{title}, held out",
            )
        axis.set_xlabel("steps")
        axis.locator_params(axis="x", integer=True)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    axes[1].set_ylim(0, 1)
    axes[2].plot([r["step"] for r in trained], [r["tokens_per_second"] for r in trained], color="#1f5fa8")
    axes[2].set(xlabel="steps", ylabel="tokens a second", ylim=(0, None))
    axes[2].locator_params(axis="x", integer=True)
    axes[2].spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
