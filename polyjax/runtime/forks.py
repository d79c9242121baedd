"""Refuses to compute in a process that was forked after jax had started: it would hang.

A fork copies the memory of jax's threads and of their locks, but not the threads.
"""

import os
import sys
from typing import NoReturn

from polyjax.errors import InputError

_started_in: int | None = None
"""The id of the process that started to compute; a forked process inherits the value."""


def _jax_started() -> bool:
    """Whether jax has opened a device in this process, for polyjax or for its caller."""
    # jax has no public name for it; without this one only what polyjax computed is known.
    return bool(getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None))


def _note_fork() -> None:
    """In a new child: remember that its parent had started jax."""
    global _started_in
    if _started_in is None and _jax_started():
        _started_in = os.getppid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_note_fork)


class OfThisProcess:
    """A base of objects whose compiled programs and threads belong to the process that made them."""

    def __reduce__(self) -> NoReturn:
        """Raise InputError: such an object cannot be pickled, copied or sent to another process."""
        raise InputError(
            type(self).__name__,
            problem="it cannot be pickled: its programs and threads belong to this process",
            fix="load it in each process; in this one, threads may share it",
            is_argument=False,
        )


def refuse_forked(*, computes: bool = True) -> None:
    """Raise InputError in a process that was forked from one that had started to compute.

    Args:
        computes: whether the caller computes next; False where arguments may still be refused.

    Raises:
        InputError: see above; the message says what to do.
    """
    global _started_in
    process = os.getpid()
    if _started_in is None:
        _started_in = process if computes else None
    elif _started_in != process:
        raise InputError(
            "fork",
            problem="this process was forked from one that had started jax, whose threads a fork "
            "does not copy, so that a computation here would hang",
            fix="load the model in each process, after it has started: gunicorn without --preload, "
            "multiprocessing.get_context('spawn')",
            is_argument=False,
        )
