"""Orbax without its own messages, in a process whose settings are restored."""

import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from polyjax.errors import first_line

T = TypeVar("T")
LOGGERS = ("absl", "asyncio")
"""Orbax's own logger, and that of the event loops in which it reads and writes."""
SETTLED_S, AT_MOST_S = 0.1, 5.0
_lock = threading.Lock()
_within = 0
_dropped = 0
_before: Any = None


class ArrayError(Exception):
    """Arrays cannot be read or written. The message is the first line of orbax's or tensorstore's error."""


def attempt(work: Callable[[], T]) -> T:
    """The result of a call to orbax.

    Raises:
        ArrayError: it failed; none of its tasks is left running.
    """
    with quiet():
        try:
            return work()
        except jax.errors.JaxRuntimeError:  # another process is gone
            raise
        except Exception as error:  # orbax and tensorstore raise bare exceptions
            problem = first_line(error)
        _settle()  # the error was released before, and with it the tasks in its frames
    raise ArrayError(problem)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop orbax's log messages, and errors that nobody can catch because its event loop is closed.

    A failure is raised, so that it is reported once. Loggers keep their levels, and ``sys.unraisablehook`` is
    restored at the end. Several threads may use this at a time.
    """
    global _within, _before
    loggers = [logging.getLogger(name) for name in LOGGERS]
    with _lock:
        if not _within:
            for logger in loggers:
                logger.addFilter(_not_orbax)
            _before, sys.unraisablehook = sys.unraisablehook, _hook
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                for logger in loggers:
                    logger.removeFilter(_not_orbax)
                if sys.unraisablehook is _hook:  # otherwise somebody has set another meanwhile
                    sys.unraisablehook = _before


def _settle() -> None:
    """Wait for the tasks that a failed read or write left: only ``quiet`` drops their messages."""
    until = time.monotonic() + AT_MOST_S
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax"):
            threading.Thread.join(thread, max(until - time.monotonic(), 0.0))  # a failed one raises here
    heard = -1
    while heard != _dropped and time.monotonic() < until:
        heard = _dropped
        gc.collect()  # tasks log when they are destroyed
        time.sleep(SETTLED_S)


def _not_orbax(record: logging.LogRecord) -> bool:
    global _dropped
    # absl names itself where its logger was asked for before it was imported.
    ours = record.name == "asyncio" or any(name in record.pathname for name in ("orbax", "absl"))
    _dropped += ours
    return not ours


def _hook(late: Any) -> None:
    global _dropped
    if "Event loop is closed" in str(late.exc_value):
        _dropped += 1
    else:
        (_before or sys.__unraisablehook__)(late)
