"""The server under load: latency against offered load, throughput at saturation, and twice that.

    python benchmarks/load.py minilm                        # three minutes
    python benchmarks/load.py runs/chitchat-poly-minilm --seconds 20
    python benchmarks/load.py minilm --quick                # one minute

Starts `polyjax serve` in a process of its own on 127.0.0.1 and sends it /rerank requests of random words.
Server and client share the machine. Every part is bounded in requests and seconds. Prints tables, writes
results/load/HOST.json.

1. saturation: clients that always wait for an answer, against Ranker.rank called one by one
2. open-loop arrivals at shares of that rate; at one half the best of three
3. twice that rate: all answered or refused within the deadline, then latency as before
"""

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from common import print_table
from http_load import Answer, Client, bodies_of, closed_loop, open_loop, percentiles
from record import RESULTS, Record
from served import Request, Served, requests_of, served

from polyjax.evaluation.report import hardware
from polyjax.recipes.models import load_ranker
from polyjax.runtime.compilation import enable_compilation_cache

GRACE = 0.5
"""Seconds beyond the deadline in which an answer may still be on its way: both ends share the cores."""

MEASURES = ("polyjax/serve", "polyjax/inference", "polyjax/ranker.py")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is sent.

    Attributes:
        model: a run directory, or ``minilm``.
        texts: candidates of a request, of 5 to 52 tokens.
        seconds: of each part.
        clients: at saturation.
        shares: of the rate at saturation, offered by open-loop arrivals.
        timeout: of the server, in seconds.
        quick: parts of 3 seconds, and one share only.
        out: folder of the results.
    """

    model: Annotated[Path, tyro.conf.Positional]
    texts: int = 20
    seconds: float = 10.0
    clients: int = 16
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    timeout: float = 5.0
    quick: bool = False
    out: Path = RESULTS


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """All of it."""
    enable_compilation_cache()
    ranker = load_ranker(config.model)
    ranker.compile(n_candidates=config.texts)
    requests = requests_of(400, config.texts, lengths=(3, 50), seed=1)
    direct = one_by_one(ranker, requests, config.seconds)
    with served(config.model, "--timeout", str(config.timeout)) as server:
        found = asyncio.run(against(server, config, requests))
    found["saturation"]["direct_per_s"] = direct
    found["saturation"]["ratio"] = found["saturation"]["per_s"] / direct
    return {"start_s": server.start_s, **found, "aims": aims(found, config)}


def one_by_one(ranker: Any, requests: list[Request], seconds: float) -> float:
    """Requests a second of a ranker that is called with one after the other."""
    for context, texts in requests[:5]:
        ranker.rank(context, texts)
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        ranker.rank(*requests[n % len(requests)])
        n += 1
    return n / (time.perf_counter() - began)


async def against(server: Served, config: BenchmarkConfig, requests: list[Request]) -> dict[str, Any]:
    """What is measured of a server."""
    client = Client(server.port, timeout=3 * config.timeout)
    bodies, seconds = bodies_of(requests), config.seconds
    samples: dict[str, Any] = {}
    await closed_loop(client, "/rerank", bodies, at_once=config.clients, seconds=2)
    began = time.perf_counter()
    answers = await closed_loop(client, "/rerank", bodies, at_once=config.clients, seconds=seconds)
    rate = sum(a.status == 200 for a in answers) / (time.perf_counter() - began)
    samples["saturation"] = _rounded(answers)
    rows = []
    for share in config.shares:
        tries = 3 if share == 0.5 else 1
        runs = [await offered(client, bodies, share, rate, seconds, seed=i) for i in range(tries)]
        row, answered = min(runs, key=lambda run: run[0]["p99_ms"] / run[0]["p50_ms"])
        rows.append(row | {"tries": tries})
        samples[f"share {share:g}"] = _rounded(answered)
    before = await closed_loop(client, "/rerank", bodies, at_once=1, seconds=seconds / 2)
    memory = server.megabytes()
    twice, answered = await offered(client, bodies, 2.0, rate, seconds, seed=9)
    samples["share 2"] = _rounded(answered)
    memory_after = server.megabytes()
    after = await closed_loop(client, "/rerank", bodies, at_once=1, seconds=seconds / 2)
    samples |= {"alone before": _rounded(before), "alone after": _rounded(after)}
    client.close()
    return {
        "saturation": {"per_s": rate, **percentiles(answers)},
        "offered": [*rows, twice | {"tries": 1}],
        "twice": {
            "memory_mb": memory,
            "memory_after_mb": memory_after,
            "alone_before_ms": percentiles(before)["p50_ms"],
            "alone_after_ms": percentiles(after)["p50_ms"],
        },
        "samples": samples,
    }


async def offered(
    client: Client, bodies: list[bytes], share: float, rate: float, seconds: float, *, seed: int
) -> tuple[dict[str, Any], list[Answer]]:
    """Open-loop arrivals at a share of a rate."""
    answers = await open_loop(client, "/rerank", bodies, rate=share * rate, seconds=seconds, seed=seed)
    found = percentiles(answers)
    row = {"share": share, "per_s": share * rate, "served_per_s": found["served"] / seconds, **found}
    return row, answers


def _rounded(answers: list[Answer]) -> list[tuple[int, float]]:
    """Status and milliseconds of each."""
    return [(a.status, round(1e3 * a.seconds, 1)) for a in answers]


def aims(found: dict[str, Any], config: BenchmarkConfig) -> dict[str, bool]:
    """Which of the server's aims were met."""
    half = next((row for row in found["offered"] if row["share"] == 0.5), None)
    twice, around = found["offered"][-1], found["twice"]
    slowest = max(twice["p100_ms"], twice["refused_slowest_ms"])
    met = {
        "saturation: 1.5 times the requests of Ranker.rank one by one": found["saturation"]["ratio"] >= 1.5,
        "twice saturation: nothing lost, nothing failed": twice["lost"] == 0 and not twice["other"],
        "twice saturation: all within the deadline": slowest <= 1e3 * (config.timeout + GRACE),
        "twice saturation: memory grows by less than a tenth": around["memory_after_mb"]
        < 1.1 * around["memory_mb"],
        "afterwards: latency as before (within a fifth)": around["alone_after_ms"]
        < 1.2 * around["alone_before_ms"],
    }
    if half is not None:
        met["half of saturation: p99 within 5 times the median"] = half["p99_ms"] <= 5 * half["p50_ms"]
    return met


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    if config.quick:
        config = dataclasses.replace(config, seconds=3.0, shares=(0.5,))
    record = Record("load", measures=MEASURES, settings=config, seeds=(0, 1, 2, 9))
    found = run(config)
    saturation, around = found["saturation"], found["twice"]
    case = {"texts": config.texts, "clients": config.clients}
    rates = {"Ranker.rank": [saturation["direct_per_s"]], "server": [saturation["per_s"]]}
    record.add(case, "requests/s", rates, to="Ranker.rank")
    answered = {
        name: [ms for status, ms in answers if status == 200] for name, answers in found["samples"].items()
    }
    record.add(case, "ms", {name: times for name, times in answered.items() if times})
    memory = {"before": [around["memory_mb"]], "after twice saturation": [around["memory_after_mb"]]}
    record.add(case, "MB", memory)
    print_table(
        f"requests a second, {config.texts} texts of 5 to 52 tokens",
        {"one by one": "{direct_per_s:.1f}", "server": "{per_s:.1f}", "ratio": "{ratio:.2f}"},
        [found["saturation"]],
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
        "too late": "{late}",
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
        [found["twice"]],
    )
    for aim, met in found["aims"].items():
        print(f"{'met' if met else 'NOT met'}: {aim}")
    record.write(config.out, {"hardware": hardware(), **found})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
