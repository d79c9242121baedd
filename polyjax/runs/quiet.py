"""Orbax without its own messages, in a process whose settings are restored."""

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from polyjax.errors import first_line
from polyjax.runtime.logs import root_logger_kept

T = TypeVar("T")
LOGGERS = ("absl", "asyncio")
"""Orbax's own logger, and that of the event loops in which it reads and writes."""
SETTLED_S, AT_MOST_S = 0.1, 10.0
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
            failed: Exception | None = error
        problem = first_line(failed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that never began
            failed = None  # and with it the tasks in its frames
            _settle()
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
        with root_logger_kept():
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
    while (heard != _dropped or _unheard()) and time.monotonic() < until:
        heard = _dropped
        gc.collect()  # tasks log when they are destroyed
        time.sleep(SETTLED_S)
    for future in _unheard():
        if future.done() and not future.cancelled():
            future.exception()  # one that was asked for is not logged


def _unheard() -> list[asyncio.Future[Any]]:
    """What still waits for a write, in closed event loops of orbax: it logs once that has ended."""
    futures = [found for found in gc.get_objects() if isinstance(found, asyncio.Future)]
    futures = [future for future in futures if future.get_loop().is_closed()]
    loops = {id(future.get_loop()) for future in futures if _of_orbax(future)}
    return [future for future in futures if id(future.get_loop()) in loops]


def _of_orbax(future: asyncio.Future[Any]) -> bool:
    code = getattr(future.get_coro(), "cr_code", None) if isinstance(future, asyncio.Task) else None
    return code is not None and "orbax" in code.co_filename


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
