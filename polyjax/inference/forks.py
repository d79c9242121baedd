"""Refuses to compute in a process that was forked after jax had started: it would hang.

A fork copies the memory of jax's threads and of their locks, but not the threads.
"""

import os

from polyjax.errors import InputError

_started_in: int | None = None
"""The id of the process that started to compute; a forked process inherits the value."""


def refuse_forked() -> None:
    """Raise InputError in a process that was forked from one that had started to compute.

    Raises:
        InputError: see above; the message says what to do.
    """
    global _started_in
    process = os.getpid()
    if _started_in is None:
        _started_in = process
    elif _started_in != process:
        raise InputError(
            "fork",
            problem="this process was forked from one in which polyjax had started jax, whose threads a fork "
            "does not copy, so that a computation here would hang",
            fix="load the model in each worker after it has started: gunicorn without --preload, "
            "multiprocessing.get_context('spawn')",
            is_argument=False,
        )
