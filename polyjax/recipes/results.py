"""The metrics of a run, shown as a table on a terminal or in a notebook."""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_RECALL = re.compile(r"recall@(\d+)/(\d+)$")


class Results(Mapping[str, dict[str, Any]]):
    """A mapping from names of baselines (first) and of the model (last) to their metrics.

    Args:
        rows: metrics of each, as in results.json: ``recall@1/20`` and other recalls, ``mrr``,
            ``recall@1/20 95% interval``, ``n`` (number of rows).
        title: title of the table.

    >>> results = Results({"poly": {"recall@1/4": 0.5, "recall@1/4 95% interval": [0.25, 0.75], "mrr": 0.625,
    ...     "n": 8}}, title="mine test")
    >>> results.model["mrr"], results.recall_at_1, results.interval
    (0.625, 0.5, (0.25, 0.75))
    """

    def __init__(self, rows: Mapping[str, dict[str, Any]], *, title: str = ""):
        self._rows = dict(rows)
        self.title = title

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The metrics of a baseline or of the model, by its name in the table."""
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def model(self) -> dict[str, Any]:
        """The metrics of the model, the last entry."""
        return next(reversed(self._rows.values()))

    @property
    def recall_at_1(self) -> float:
        """The model's recall@1."""
        return self.model[_recalls(self.model)[0]]

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the model's recall@1."""
        low, high = self.model[f"{_recalls(self.model)[0]} 95% interval"]
        return low, high

    def table(self) -> list[list[str]]:
        """The cells of the table as texts, by row; the header is the first row."""
        names = _recalls(self.model)
        first, *others = names
        header = ["", "n", first, "95% interval", *(name.split("/")[0][6:] for name in others), "MRR"]
        return [header, *(self._cells(name, row, names) for name, row in self._rows.items())]

    def _cells(self, name: str, row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        low, high = row.get(f"{names[0]} 95% interval", (0.0, 0.0))
        interval = f"[{low:.3f}, {high:.3f}]" if low < high else "exact"
        first, *others = (f"{row[recall]:.3f}" if recall in row else "" for recall in names)
        return [name, f"{row.get('n', 0):,}", first, interval, *others, f"{row['mrr']:.3f}"]

    def __str__(self) -> str:
        header, *rows = self.table()
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for cells in rows:
            table.add_row(*cells)
        out = io.StringIO()
        Console(file=out, width=100, color_system=None, force_jupyter=False).print(table)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, *rows = self.table()

        def cells(row: Sequence[str], kind: str, *, bold: bool = False) -> str:
            style = "font-weight:bold;" if bold else ""
            return "".join(
                f'<{kind} style="{style}text-align:{"right" if i else "left"}">{html.escape(cell)}</{kind}>'
                for i, cell in enumerate(row)
            )

        lines = [f"<tr>{cells(row, 'td', bold=row is rows[-1])}</tr>" for row in rows]
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{cells(header, 'th')}</tr></thead>{''.join(lines)}</table>"


def _recalls(row: Mapping[str, Any]) -> list[str]:
    """The names of the recalls in a row, recall@1 first."""
    return sorted((name for name in row if _RECALL.match(name)), key=lambda name: int(name[7:].split("/")[0]))
