"""An HTTP client for load tests: arrivals that do not wait for answers, on this machine only, bounded."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_REQUESTS = 20_000
"""Of one run; none begins that would have more."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        status: of HTTP; 0 where the connection broke or nothing came in time.
        seconds: from the moment at which it should have been sent.
    """

    status: int
    seconds: float


class Client:
    """Keeps connections to a server on 127.0.0.1.

    Args:
        port: of the server.
        timeout: seconds after which a request counts as lost.
    """

    def __init__(self, port: int, *, timeout: float):
        self._port, self._timeout = port, timeout
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes, *, due: float | None = None) -> Answer:
        """Send a request; ``due`` is when it should have been sent, by time.perf_counter."""
        due = time.perf_counter() if due is None else due
        try:
            async with asyncio.timeout(self._timeout):
                status = await self._exchange(path, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            status = 0
        return Answer(status, time.perf_counter() - due)

    async def _exchange(self, path: str, body: bytes) -> int:
        while self._free and self._free[-1][0].at_eof():  # the server closes what was idle for long
            self._free.pop()[1].close()
        free = self._free.pop() if self._free else None
        reader, writer = free or await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:] if line)
        await reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"connection") == b"close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        """End all connections."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def open_loop(
    client: Client, path: str, bodies: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> list[Answer]:
    """Requests at random moments (a Poisson process), whether earlier ones are answered or not.

    Args:
        client: sends them.
        path: of the server.
        bodies: taken in turn.
        rate: requests a second.
        seconds: for which they arrive.
        seed: of the moments.
    """
    n = int(rate * seconds)
    assert 0 < n <= MOST_REQUESTS, f"{n} requests are too many or none"
    gaps = np.random.default_rng(seed).exponential(1 / rate, n)
    began, tasks = time.perf_counter() + 0.1, []
    for i, moment in enumerate(np.cumsum(gaps).tolist()):
        due = began + moment
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(client.post(path, bodies[i % len(bodies)], due=due)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(
    client: Client, path: str, bodies: Sequence[bytes], *, at_once: int, seconds: float
) -> list[Answer]:
    """Requests of so many clients, each of which waits for its answer before it sends the next."""
    answers: list[Answer] = []
    end = time.perf_counter() + seconds

    async def one(first: int) -> None:
        for i in range(first, MOST_REQUESTS, at_once):
            if time.perf_counter() > end:
                return
            answers.append(await client.post(path, bodies[i % len(bodies)]))

    await asyncio.gather(*(one(first) for first in range(at_once)))
    return answers


def percentiles(answers: Sequence[Answer]) -> dict[str, Any]:
    """Milliseconds of the requests that were answered 200, and how many were not."""
    served = 1e3 * np.array([a.seconds for a in answers if a.status == 200])
    refused = [a for a in answers if a.status in (429, 503)]
    late = [a for a in answers if a.status == 504]
    found: dict[str, Any] = {
        "requests": len(answers),
        "served": len(served),
        "refused": len(refused),
        "late": len(late),
        "refused_slowest_ms": 1e3 * max((a.seconds for a in [*refused, *late]), default=0.0),
        "lost": sum(a.status == 0 for a in answers),
        "other": sorted({a.status for a in answers} - {0, 200, 429, 503, 504}),
    }
    for share in (50, 90, 99, 100):
        found[f"p{share}_ms"] = float(np.percentile(served, share)) if len(served) else float("nan")
    return found


def bodies_of(requests: Sequence[tuple[str, Sequence[str]]]) -> list[bytes]:
    """Requests of contexts and their candidates as /rerank takes them."""
    return [json.dumps({"query": context, "texts": texts}).encode() for context, texts in requests]
