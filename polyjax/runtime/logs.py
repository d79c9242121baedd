"""Keeps the user's logging as it was where a library calls ``logging.basicConfig``."""

import contextlib
import logging
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_within = 0
_stand_in: logging.Handler | None = None


@contextlib.contextmanager
def root_logger_kept() -> Iterator[None]:
    """A context in which absl finds a handler of the root logger, and so does not make one.

    absl calls ``logging.basicConfig`` where the root logger has no handler; the user's own call later then
    does nothing. orbax logs by absl, already while it is imported. The handler that it finds here is the one
    that Python uses itself where none was added, so that messages are shown as before. Several threads may
    use this.

    >>> before = list(logging.root.handlers)
    >>> with root_logger_kept():
    ...     assert logging.root.handlers
    >>> logging.root.handlers == before
    True
    """
    global _within, _stand_in
    with _lock:
        if not _within:
            _stand_in = None if logging.root.handlers else logging.lastResort
            if _stand_in is not None:
                logging.root.addHandler(_stand_in)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within and _stand_in is not None:
                logging.root.removeHandler(_stand_in)
