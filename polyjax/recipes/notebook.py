"""Shows a training in a notebook: progress bars and the learning curve, redrawn in place."""

import base64
import contextlib
import html
import io
import sys
import time
from collections.abc import Iterator
from typing import Any

from polyjax.evaluation.figures import plot_learning_curve
from polyjax.runtime.progress import watched_by

REDRAW_S = 0.5


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Display:
    """The display of a run in a notebook cell.

    Args:
        show: called with the HTML after every change; by default it replaces the cell's output.
    """

    def __init__(self, show: Any = None):
        self._show = show or _cell()
        self._work: dict[str, tuple[int, int, str]] = {}
        self._rows: list[dict[str, Any]] = []
        self._curve = ""
        self._shown = 0.0

    def progress(self, title: str, done: int, total: int, note: str) -> None:
        """Update a progress bar; see ``polyjax.runtime.progress.Watcher``."""
        self._work[title] = (done, total, note)
        if done >= total or time.monotonic() - self._shown > REDRAW_S:
            self._redraw()

    def log(self, step: int, kind: str, metrics: dict[str, Any]) -> None:
        """Add a log line, as a callback of ``fit``; the curve is redrawn at each validation."""
        self._rows.append({"step": step, "kind": kind, **metrics})
        if kind == "valid":
            image = io.BytesIO()
            plot_learning_curve(self._rows, None).savefig(image, format="png", dpi=90)
            data = base64.b64encode(image.getvalue()).decode()
            self._curve = f'<img alt="learning curve" src="data:image/png;base64,{data}">'
            self._redraw()

    def _redraw(self) -> None:
        self._shown = time.monotonic()
        lines = [
            f"<div><progress value={done} max={max(total, 1)}></progress> {html.escape(title)} "
            f"{done:,}/{total:,} {html.escape(note)}</div>"
            for title, (done, total, note) in self._work.items()
        ]
        self._show("".join(lines) + self._curve)


def _cell() -> Any:
    """A function that shows HTML in the running cell, replacing what it showed before."""
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]  # in a notebook only

    handle: Any = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))


@contextlib.contextmanager
def shown_in_notebook(*, wanted: bool) -> Iterator[Display | None]:
    """A context that shows all progress in a notebook cell; yields None outside a notebook or if unwanted."""
    if not (wanted and in_notebook()):
        yield None
        return
    shown = Display()
    with watched_by(shown.progress):
        yield shown
