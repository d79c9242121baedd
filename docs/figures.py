"""Draw the pictures of the documentation: python docs/figures.py (make docs does it).

The three architectures of arXiv 1905.01969, figure 1: what is computed for a context, a candidate, and both.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUT = Path(__file__).parent / "figures"
CONTEXT, CANDIDATE, BOTH, SCORE = "#c6dbef", "#c7e9c0", "#dadaeb", "#fdd0a2"
HEIGHT = 0.62


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 2.1) -> None:
    """A box around (x, y)."""
    corner = (x - width / 2, y - HEIGHT / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, HEIGHT, "round,pad=0.03", facecolor=colour, edgecolor="#444")
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=11)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one box's upper edge to another's lower one."""
    begin, finish = (start[0], start[1] + HEIGHT / 2 + 0.05), (end[0], end[1] - HEIGHT / 2 - 0.05)
    axes.add_patch(FancyArrowPatch(begin, finish, arrowstyle="-|>", mutation_scale=12, color="#444"))


def tower(axes: Axes, x: float, boxes: list[str], colour: str, width: float = 2.1) -> tuple[float, float]:
    """Boxes above each other with arrows between them; the place of the last."""
    for level, text in enumerate(boxes):
        box(axes, x, level, text, colour, width)
        if level:
            arrow(axes, (x, level - 1), (x, level))
    return x, len(boxes) - 1


def bi(axes: Axes) -> None:
    """Two towers that meet in a product."""
    left = tower(axes, 1.2, ["context", "transformer", "reduction", "1 vector"], CONTEXT)
    right = tower(axes, 3.8, ["candidate", "transformer", "reduction", "1 vector"], CANDIDATE)
    box(axes, 2.5, 5, "score: dot product", SCORE, 2.8)
    arrow(axes, left, (2.1, 5))
    arrow(axes, right, (2.9, 5))


def poly(axes: Axes) -> None:
    """The context keeps several vectors, over which the candidate attends."""
    left = tower(axes, 1.2, ["context", "transformer", "m codes attend", "m vectors"], CONTEXT)
    right = tower(axes, 3.8, ["candidate", "transformer", "reduction", "1 vector"], CANDIDATE)
    box(axes, 1.6, 4, "candidate attends", BOTH, 2.4)
    box(axes, 2.5, 5, "score: dot product", SCORE, 2.8)
    arrow(axes, left, (1.4, 4))
    arrow(axes, right, (2.3, 4))
    arrow(axes, right, (3.3, 5))
    arrow(axes, (1.6, 4), (2.1, 5))


def cross(axes: Axes) -> None:
    """Both texts go through one transformer."""
    last = tower(axes, 2.5, ["context, candidate", "transformer", "reduction", "1 vector"], BOTH, 2.6)
    box(axes, 2.5, 5, "score: linear layer", SCORE, 2.8)
    arrow(axes, last, (2.5, 5))


def main() -> None:
    """Write one picture for each architecture, and one of all."""
    OUT.mkdir(exist_ok=True)
    drawings = {
        "bi": (bi, "Bi-encoder", "once a context,\nand once a candidate, ever"),
        "poly": (
            poly,
            "Poly-encoder",
            "once a context, once a\ncandidate, ever; a small attention joins them",
        ),
        "cross": (cross, "Cross-encoder", "once\nfor each context and candidate"),
    }
    for name, (draw, title, note) in drawings.items():
        figure, axes = plt.subplots(figsize=(3.6, 4.3), layout="constrained")
        draw(axes)
        axes.set_title(title, fontsize=14)
        axes.text(2.5, -0.75, f"the transformer runs {note}", ha="center", va="top", fontsize=10)
        axes.set(xlim=(-0.1, 5.1), ylim=(-1.6, 5.5))
        axes.axis("off")
        figure.savefig(OUT / f"{name}.svg")
        plt.close(figure)


if __name__ == "__main__":
    main()
