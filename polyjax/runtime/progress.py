"""Progress for a person to follow: a bar on a terminal, occasional lines elsewhere.

rich draws the bar. This module adds what rich lacks: lines if there is no terminal, and a rate without the
first piece of work, in which programs are compiled.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 20.0
WIDE = 130
"""Columns of a terminal with room for a bar."""
RATE_OVER_S = 60.0
"""Seconds over which a rate is measured: earlier compilation says nothing about the time left."""
MARK_EVERY_S = 0.5
"""Seconds between the counts that are kept for it, however often work moves on."""

Watcher = Callable[[str, int, int, str], None]
"""Called with a title, units done, units in all, and the note beside the count."""
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Report progress inside to a function, instead of showing a bar or lines."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class Screen(Console):
    """A console that shows bars and colours to a terminal only.

    Notebooks set FORCE_COLOR for the commands that they start. rich then assumes a terminal, and each state
    of a bar would become a line.
    """

    @property
    def is_terminal(self) -> bool:
        """Whether the output is a terminal."""
        isatty = getattr(self.file, "isatty", None)
        return super().is_terminal and isatty is not None and not self.file.closed and isatty()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; characters that the output's encoding lacks are written as escapes."""
        try:
            super().print(*objects, **options)
        except UnicodeEncodeError:
            self._buffer.clear()  # otherwise the failed text would be written again
            text = " ".join(str(each) for each in objects)
            super().print(text.encode("ascii", "backslashreplace").decode("ascii"), **options)


# Lines are left whole: a terminal wraps them itself, and a file or pipe should not hold wrapped ones.
# In notebooks they are text too: rich would show each line by itself, and a bar with a package of its own.
console = Screen(highlight=False, soft_wrap=True, force_jupyter=False)
"""Output for a person, on standard output."""
errors = Screen(highlight=False, soft_wrap=True, stderr=True, force_jupyter=False)
"""Likewise on standard error, when standard output is for results."""


@contextmanager
def hushed(quiet: bool = True, out: Console = console) -> Iterator[None]:
    """Print nothing on ``out`` inside, if ``quiet``."""
    before, out.quiet = out.quiet, out.quiet or quiet
    try:
        yield
    finally:
        out.quiet = before


class Meter:
    """Counts work that is done, and shows it with a note beside the count."""

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        bar: Progress | None,
        *,
        start: int = 0,
        out: Console = console,
        waiting_for: str = "",
    ):
        self._out = out
        self._title, self._total, self._unit = title, total, unit
        self._bar = bar
        self._task = bar.add_task(title, total=total, completed=start, note=waiting_for) if bar else None
        self._done = start
        self._shown = time.monotonic()
        self._marks = deque([(self._shown, start)])
        self._first_piece = True
        if waiting_for and (watcher := _watcher.get()) is not None:
            watcher(title, start, total, waiting_for)
        elif waiting_for and bar is None:
            out.print(f"{title}: {start}/{total}  {waiting_for}")

    @property
    def rate(self) -> float:
        """Units a second, over the last minute; the first piece, in which programs are compiled, left out."""
        (began, first), (now, done) = self._marks[0], self._marks[-1]
        return (done - first) / max(now - began, 1e-9)

    def add(self, n: int, note: str = "") -> None:
        """n more units are done; ``note`` is shown beside the count."""
        self.move_to(self._done + n, note)

    def move_to(self, done: int, note: str = "") -> None:
        """``done`` units are done in all."""
        self._done = done
        now = time.monotonic()
        if len(self._marks) > 2 and now - self._marks[-2][0] < MARK_EVERY_S:
            self._marks[-1] = (now, done)
        else:
            self._marks.append((now, done))
        if self._first_piece and len(self._marks) > 2:
            self._marks.popleft()
            self._first_piece = False
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_OVER_S:
            self._marks.popleft()
        note = f"{self.rate:.3g} {self._unit}/s  {note}"
        if (watcher := _watcher.get()) is not None:
            watcher(self._title, self._done, self._total, note.strip())
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        if self._bar is None and (now - self._shown > LINE_EVERY_S or self._done == self._total):
            self._shown = now
            seconds = (self._total - self._done) / max(self.rate, 1e-9)
            # The rate of the first piece, mostly compilation, says nothing about the time left.
            left = "" if self._first_piece and self._done < self._total else f"  {seconds:.0f} s left"
            self._out.print(f"{self._title}: {self._done}/{self._total}  {note}{left}")


@contextmanager
def meter(
    title: str,
    total: int,
    *,
    unit: str = "examples",
    start: int = 0,
    out: Console = console,
    waiting_for: str = "",
) -> Iterator[Meter]:
    """A Meter for one piece of work.

    Args:
        title: what is being done.
        total: units in all.
        unit: what is counted.
        start: units done before, by the run that is resumed.
        out: where it is shown.
        waiting_for: what the first piece waits for, shown until it is done.
    """
    if not out.is_terminal or _watcher.get() is not None:
        yield Meter(title, total, unit, None, start=start, out=out, waiting_for=waiting_for)
        return
    count = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    # Beside a note, a narrow terminal has no room for a bar.
    columns = (*count, BarColumn()) if out.width >= WIDE else count
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=out) as bar:
        yield Meter(title, total, unit, bar, start=start, waiting_for=waiting_for)
