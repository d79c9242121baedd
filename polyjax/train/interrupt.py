"""A notice that the machine will be taken away: SIGTERM."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from polyjax.mesh.processes import listen_for_sigterm, stop_listening_for_sigterm


class Notice:
    """Listens for SIGTERM; as a context manager, for the length of a training.

    In one process the signal is only noted, and ``given`` tells it. In several, jax's preemption service
    listens, and agrees with the others on a step at which all of them stop.
    """

    def __init__(self) -> None:
        self._noted = threading.Event()
        self._before: Any = None
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Notice":
        """Begin to listen."""
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        elif jax.process_count() > 1:
            listen_for_sigterm()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signal to who had it."""
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)
        elif jax.process_count() > 1:
            stop_listening_for_sigterm()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.set()

    def given(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted.is_set()
