"""`polyjax serve` in a process of its own, and requests of random words for it."""

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = (
    "the a we went hiking trail view mountain nice coffee rain book train garden music river moon did "
    "you was how great yes no what where dog cat house work school movie food cook run swim game phone friend"
).split()
READY_WITHIN = 180.0
"""Seconds until the server must answer."""
Request = tuple[str, list[str]]
"""A context and its candidates."""


class Served:
    """The process, once it takes requests.

    Args:
        model: a run directory, or ``minilm``.
        flags: further ones of the command.

    Attributes:
        port: where it listens.
        start_s: seconds from the process's start until /health answered 200.
    """

    def __init__(self, model: Path, *flags: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["serve", str(model), "--port", str(self.port), *flags]
        began = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-m", "polyjax", *words], stderr=subprocess.DEVNULL)
        while not self._ready():
            if self.process.poll() is not None or time.perf_counter() - began > READY_WITHIN:
                self.process.kill()
                raise RuntimeError("the server did not start; run the same `polyjax serve` to see why")
            time.sleep(0.1)
        self.start_s = time.perf_counter() - began

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except OSError:
                return False

    def megabytes(self) -> float:
        """Resident memory of the process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def served(model: Path, *flags: str) -> Iterator[Served]:
    """A server that is ended afterwards."""
    found = Served(model, *flags)
    try:
        yield found
    finally:
        found.process.terminate()
        found.process.wait(60)


def requests_of(n: int, texts: int, *, lengths: tuple[int, int], seed: int) -> list[Request]:
    """Contexts with their candidates, of so many words each."""
    draw = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(draw.choice(WORDS, draw.integers(lengths[0], lengths[1] + 1)))

    return [(text(), [text() for _ in range(texts)]) for _ in range(n)]
