"""A notice that the machine will be taken away: SIGTERM."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from polyjax.mesh.processes import sigterm_is_a_notice


class Notice:
    """Listens for SIGTERM; as a context manager, for the length of a training.

    In one process the signal is only noted, and ``given`` reports it. In several, jax's preemption service
    listens, and agrees with the others on a step at which all of them stop. At the end the signal is its
    owner's again.
    """

    def __init__(self) -> None:
        self._noted = threading.Event()
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> "Notice":
        """Begin to listen."""
        if jax.process_count() > 1:
            self._listening.enter_context(sigterm_is_a_notice())
        elif threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._listening.enter_context(self._noting())
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signal to its owner."""
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
        """Whether to stop after this step; every process must ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted.is_set()
