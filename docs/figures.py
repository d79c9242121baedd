"""Draw the pictures of the concepts: python docs/figures.py (make docs does it).

The three architectures of arXiv 1905.01969, figure 1. Each is written twice, for
light and dark pages, on a transparent ground: NAME.svg and NAME-dark.svg.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

OUT = Path(__file__).parent / "figures"
HEIGHT, STEP = 34, 58
"""Of a box; from one box's middle to the next one's."""


@dataclass(frozen=True)
class Colours:
    """Of a theme. Each ground is a fill and the colour of its edge."""

    text: str
    quiet: str
    grounds: dict[str, tuple[str, str]]


LIGHT = Colours(
    "#1b1f24",
    "#57606a",
    {
        "context": ("#dbe7fb", "#5b7fd6"),
        "candidate": ("#dcf1de", "#4f9a57"),
        "both": ("#ece5f8", "#8b6cc2"),
        "score": ("#fde9d2", "#d9822b"),
    },
)
DARK = Colours(
    "#e6e9ee",
    "#a9b1bd",
    {
        "context": ("#1f3154", "#7f9ff0"),
        "candidate": ("#1d3b24", "#71bf7b"),
        "both": ("#352a4d", "#ac90e0"),
        "score": ("#4a3114", "#f0a35e"),
    },
)


@dataclass
class Drawing:
    """An SVG that grows."""

    colours: Colours
    width: int = 340
    height: int = 400
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, text: str, ground: str, width: float = 136) -> tuple[float, float]:
        """A box around (x, y), with its text; returns the place."""
        fill, edge = self.colours.grounds[ground]
        self.parts.append(
            f'<rect x="{x - width / 2}" y="{y - HEIGHT / 2}" width="{width}" height="{HEIGHT}" rx="7"'
            f' fill="{fill}" stroke="{edge}" stroke-width="1.5"/>'
        )
        self.text(x, y + 5, text)
        return x, y

    def text(self, x: float, y: float, text: str, *, quiet: bool = False, size: int = 15) -> None:
        """Text centred at x, on the line y."""
        colour = self.colours.quiet if quiet else self.colours.text
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" fill="{colour}">'
            f"{escape(text)}</text>"
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """From one box's upper edge to another's lower one."""
        (x1, y1), (x2, y2) = (start[0], start[1] - HEIGHT / 2), (end[0], end[1] + HEIGHT / 2 + 6)
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{self.colours.quiet}" stroke-width="1.5"'
            ' marker-end="url(#head)"/>'
        )

    def tower(self, x: float, texts: list[str], ground: str, width: float = 136) -> tuple[float, float]:
        """Boxes above each other with arrows between them; the place of the uppermost."""
        place = (x, 0.0)
        for level, text in enumerate(texts):
            y = self.height - 60 - STEP * level
            if level:
                self.arrow(place, (x, y))
            place = self.box(x, y, text, ground, width)
        return place

    def svg(self) -> str:
        """The file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
            f' width="{self.width}" height="{self.height}"'
            ' font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">\n'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7"'
            f' orient="auto"><path d="M0 0 8 4 0 8z" fill="{self.colours.quiet}"/></marker></defs>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def bi(on: Drawing) -> None:
    """Two towers that meet in a product."""
    left = on.tower(88, ["context", "transformer", "reduction", "1 vector"], "context")
    right = on.tower(252, ["candidate", "transformer", "reduction", "1 vector"], "candidate")
    on.box(170, 50, "score: dot product", "score", 170)
    on.arrow(left, (140, 50))
    on.arrow(right, (200, 50))
    on.text(170, 378, "once per context, once per candidate", quiet=True, size=14)


def poly(on: Drawing) -> None:
    """The context keeps several vectors, over which the candidate attends."""
    left = on.tower(88, ["context", "transformer", "m codes attend", "m vectors"], "context")
    right = on.tower(252, ["candidate", "transformer", "reduction", "1 vector"], "candidate")
    attends = on.box(112, 108, "candidate attends", "both", 150)
    on.box(170, 50, "score: dot product", "score", 170)
    on.arrow(left, (96, 108))
    on.arrow(right, (160, 108))
    on.arrow(right, (222, 50))
    on.arrow(attends, (140, 50))
    on.text(170, 378, "once per context, once per candidate", quiet=True, size=14)


def cross(on: Drawing) -> None:
    """Both texts go through one transformer."""
    last = on.tower(170, ["context, candidate", "transformer", "reduction", "1 vector"], "both", 160)
    on.box(170, 50, "score: linear layer", "score", 170)
    on.arrow(last, (170, 50))
    on.text(170, 378, "once per pair of context and candidate", quiet=True, size=14)


def main() -> None:
    """Write each picture for both themes."""
    OUT.mkdir(exist_ok=True)
    drawings: dict[str, Callable[[Drawing], None]] = {
        "bi": bi,
        "poly": poly,
        "cross": cross,
    }
    for name, draw in drawings.items():
        for suffix, colours in (("", LIGHT), ("-dark", DARK)):
            drawing = Drawing(colours)
            draw(drawing)
            (OUT / f"{name}{suffix}.svg").write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
