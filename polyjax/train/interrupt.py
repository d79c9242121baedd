"""Handling of SIGTERM, which announces that the machine will be taken away."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from polyjax.mesh.processes import sigterm_is_a_notice


class Notice:
    """A context manager that listens for SIGTERM during training.

    With one process, the signal is recorded and ``given`` reports it. With several, jax's preemption service
    listens, and the processes agree on a step after which all of them stop. On exit, the previous handler is
    restored.
    """

    def __init__(self) -> None:
        self._noted = threading.Event()
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> "Notice":
        """Start listening."""
        if jax.process_count() > 1:
            self._listening.enter_context(sigterm_is_a_notice())
        elif threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._listening.enter_context(self._noting())
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handler."""
        self._listening.close()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.set()

    def given(self, step: int) -> bool:
        """Whether to stop after this step; every process must call it after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted.is_set()
