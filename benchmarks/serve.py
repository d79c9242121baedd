"""The server under load: latency against offered load, throughput at saturation, and twice that.

    python benchmarks/serve.py minilm                       # four minutes
    python benchmarks/serve.py runs/chitchat-poly-minilm --seconds 20

Starts `polyjax serve` in a process of its own on 127.0.0.1 and sends it /rerank requests of random words.
Server and client share the machine. Every run is bounded in requests and seconds. Prints tables, writes
benchmarks/results/serve.json.

1. overhead: requests one by one against Ranker.rank on the same requests, in turns
2. saturation: 32 clients that always wait for an answer, against Ranker.rank called one by one
3. open-loop arrivals at shares of that rate; at one half the best of three
4. twice that rate: all answered or refused, then latency as before
"""

import asyncio
import contextlib
import dataclasses
import http.client
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import print_table
from load import Answer, Client, bodies_of, closed_loop, open_loop, percentiles

from polyjax.cli.models import load_ranker
from polyjax.evaluation.report import hardware
from polyjax.runs import write_json
from polyjax.runtime.compilation import enable_compilation_cache

WORDS = (
    "the a we went hiking trail view mountain nice coffee rain book train garden music river moon did "
    "you was how great yes no what where dog cat house work school movie food cook run swim game phone friend"
).split()


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is sent.

    Attributes:
        model: a run directory, or ``minilm``.
        texts: candidates of a request.
        tokens: of a candidate for the overhead, special ones included.
        seconds: of each run.
        clients: at saturation.
        shares: of the rate at saturation, offered by open-loop arrivals.
        repeats: requests that are timed for the overhead.
        timeout: of the server, in seconds.
        out: where the results go.
    """

    model: Annotated[Path, tyro.conf.Positional]
    texts: int = 20
    tokens: int = 30
    seconds: float = 10.0
    clients: int = 32
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    repeats: int = 60
    timeout: float = 5.0
    out: Path = Path(__file__).parent / "results" / "serve.json"


class Served:
    """`polyjax serve` in a process.

    Args:
        config: model and timeout.
    """

    def __init__(self, config: BenchmarkConfig):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["serve", str(config.model), "--port", str(self.port), "--timeout", str(config.timeout)]
        began = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-m", "polyjax", *words], stderr=subprocess.DEVNULL)
        while not self._ready():
            assert self.process.poll() is None, "the server has ended"
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
def served(config: BenchmarkConfig) -> Iterator[Served]:
    """A server that is ended afterwards."""
    found = Served(config)
    try:
        yield found
    finally:
        found.process.terminate()
        found.process.wait(60)


def requests_of(n: int, texts: int, *, lengths: tuple[int, int], seed: int) -> list[tuple[str, list[str]]]:
    """Contexts with their candidates, so many words each."""
    draw = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(draw.choice(WORDS, draw.integers(lengths[0], lengths[1] + 1)))

    return [(text(), [text() for _ in range(texts)]) for _ in range(n)]


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """All of it."""
    enable_compilation_cache()
    ranker = load_ranker(config.model)
    ranker.compile(n_candidates=config.texts)
    # A word of the list is one token in most vocabularies; two are special.
    same = requests_of(config.repeats, config.texts, lengths=(config.tokens - 2, config.tokens - 2), seed=0)
    mixed = requests_of(400, config.texts, lengths=(3, 50), seed=1)
    direct = one_by_one(ranker, mixed, config.seconds)
    with served(config) as server:
        found = asyncio.run(against(server, config, ranker, same, mixed))
    found["saturation"]["direct_per_s"] = direct
    found["saturation"]["ratio"] = found["saturation"]["per_s"] / direct
    return {"start_s": server.start_s, **found}


def one_by_one(ranker: Any, requests: list[tuple[str, list[str]]], seconds: float) -> float:
    """Requests a second of a ranker that is called with one after the other."""
    for context, texts in requests[:5]:
        ranker.rank(context, texts)
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        ranker.rank(*requests[n % len(requests)])
        n += 1
    return n / (time.perf_counter() - began)


async def against(
    server: Served, config: BenchmarkConfig, ranker: Any, same: Any, mixed: Any
) -> dict[str, Any]:
    """What is measured of a server."""
    client = Client(server.port, timeout=3 * config.timeout)
    overhead = await overhead_of(client, ranker, same)
    bodies, seconds = bodies_of(mixed), config.seconds
    await closed_loop(client, "/rerank", bodies, at_once=config.clients, seconds=2)
    answers = await closed_loop(client, "/rerank", bodies, at_once=config.clients, seconds=seconds)
    rate = sum(a.status == 200 for a in answers) / seconds
    rows = []
    for share in config.shares:
        tries = 3 if share == 0.5 else 1
        runs = [await offered(client, bodies, share, rate, seconds, seed=i) for i in range(tries)]
        rows.append(min(runs, key=lambda row: row["p99_ms"] / row["p50_ms"]) | {"tries": tries})
    before = percentiles(await closed_loop(client, "/rerank", bodies, at_once=1, seconds=seconds / 2))
    memory = server.megabytes()
    twice = await offered(client, bodies, 2.0, rate, seconds, seed=9)
    memory_after = server.megabytes()
    after = percentiles(await closed_loop(client, "/rerank", bodies, at_once=1, seconds=seconds / 2))
    client.close()
    return {
        "overhead": overhead,
        "saturation": {"per_s": rate, **percentiles(answers)},
        "offered": [*rows, twice | {"tries": 1}],
        "twice": {
            "memory_mb": memory,
            "memory_after_mb": memory_after,
            "alone_before_ms": before["p50_ms"],
            "alone_after_ms": after["p50_ms"],
        },
    }


async def overhead_of(client: Client, ranker: Any, requests: Any) -> dict[str, Any]:
    """Milliseconds of the ranker and of the server for the same requests, in turns."""
    direct, through = [], []
    for i, ((context, texts), body) in enumerate(zip(requests, bodies_of(requests), strict=True)):
        began = time.perf_counter()
        ranker.rank(context, texts)
        direct.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(0.02)  # the other's threads fall asleep
        answer: Answer = await client.post("/rerank", body)
        assert answer.status == 200, f"request {i}: {answer.status}"
        through.append(1e3 * answer.seconds)
        await asyncio.sleep(0.02)
    ranker_ms, server_ms = statistics.median(direct[5:]), statistics.median(through[5:])
    return {"ranker_ms": ranker_ms, "server_ms": server_ms, "overhead_ms": server_ms - ranker_ms}


async def offered(
    client: Client, bodies: list[bytes], share: float, rate: float, seconds: float, *, seed: int
) -> dict[str, Any]:
    """Open-loop arrivals at a share of a rate."""
    answers = await open_loop(client, "/rerank", bodies, rate=share * rate, seconds=seconds, seed=seed)
    found = percentiles(answers)
    return {"share": share, "per_s": share * rate, "served_per_s": found["served"] / seconds, **found}


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    found = run(config)
    overhead, saturation, twice = found["overhead"], found["saturation"], found["twice"]
    print_table(
        f"one by one, {config.texts} texts of {config.tokens} tokens, ms (medians)",
        {"Ranker.rank": "{ranker_ms:.1f}", "server": "{server_ms:.1f}", "overhead": "{overhead_ms:.2f}"},
        [overhead],
    )
    print_table(
        f"requests a second, {config.texts} texts of 5 to 52 tokens",
        {"one by one": "{direct_per_s:.1f}", "server": "{per_s:.1f}", "ratio": "{ratio:.2f}"},
        [saturation],
    )
    columns = {
        "of saturation": "{share:.2f}",
        "offered/s": "{per_s:.1f}",
        "served/s": "{served_per_s:.1f}",
        "p50 ms": "{p50_ms:.0f}",
        "p90": "{p90_ms:.0f}",
        "p99": "{p99_ms:.0f}",
        "most": "{p100_ms:.0f}",
        "refused": "{refused}",
        "lost": "{lost}",
    }
    print_table("open-loop arrivals", columns, found["offered"])
    print_table(
        "around twice the rate of saturation",
        {
            "alone before, ms": "{alone_before_ms:.1f}",
            "after": "{alone_after_ms:.1f}",
            "memory before, MB": "{memory_mb:.0f}",
            "after ": "{memory_after_mb:.0f}",
        },
        [twice],
    )
    print(f"ready {found['start_s']:.0f} s after the start of the process")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    settings = dataclasses.asdict(config) | {"model": str(config.model), "out": str(config.out)}
    write_json(config.out, {"hardware": hardware(), "settings": settings, **found})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
