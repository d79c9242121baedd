"""What the server adds to `Ranker.rank`: requests one by one, in turns with the ranker itself.

    python benchmarks/serve.py minilm                       # a minute
    python benchmarks/serve.py minilm --quick

Starts `polyjax serve` in a process of its own on 127.0.0.1. Each request is ranked by a `Ranker` of this
process and sent to the server; both share the machine's cores, one after the other. The server's own times
come from its headers. Prints a table, writes results/serve/HOST.json. benchmarks/load.py has many
requests at once.
"""

import dataclasses
import http.client
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from common import print_table
from http_load import bodies_of
from record import RESULTS, Record
from served import Request, requests_of, served

from polyjax.evaluation.report import hardware
from polyjax.recipes.models import load_ranker
from polyjax.runtime.compilation import enable_compilation_cache

AIM_MS = 3.0
"""What the server may add at the median, for 20 texts of 30 tokens with MiniLM on 2 cores."""
PAUSE = 0.02
"""Seconds between two requests, in which the other process's threads fall asleep."""
HEADERS = ("x-total-time", "x-queue-time", "x-inference-time", "x-tokenization-time")

MEASURES = ("polyjax/serve", "polyjax/inference", "polyjax/ranker.py")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is sent.

    Attributes:
        model: a run directory, or ``minilm``.
        texts: candidates of a request.
        tokens: of each text, special ones included.
        repeats: requests that are timed.
        warmup: requests before them.
        quick: a fifth of the repeats.
        out: folder of the results.
    """

    model: Annotated[Path, tyro.conf.Positional]
    texts: int = 20
    tokens: int = 30
    repeats: int = 200
    warmup: int = 10
    quick: bool = False
    out: Path = RESULTS


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Milliseconds of each request by the ranker and through the server, and the server's own."""
    enable_compilation_cache()
    ranker = load_ranker(config.model)
    ranker.compile(n_candidates=config.texts)
    n = config.warmup + (config.repeats // 5 if config.quick else config.repeats)
    # A word of the list is one token in most vocabularies; two are special.
    words = config.tokens - 2
    requests = requests_of(n, config.texts, lengths=(words, words), seed=0)
    with served(config.model) as server:
        samples = _in_turns(ranker, server.port, requests)
        start_s = server.start_s
    samples = {name: values[config.warmup :] for name, values in samples.items()}
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return {
        "start_s": start_s,
        "overhead_ms": medians["server"] - medians["ranker"],
        "aim_ms": AIM_MS,
        "medians": medians,
        "samples": {name: [round(value, 3) for value in values] for name, values in samples.items()},
    }


def _in_turns(ranker: Any, port: int, requests: list[Request]) -> dict[str, list[float]]:
    """Milliseconds by name: the ranker, the server as a client sees it, and what its headers say."""
    samples: dict[str, list[float]] = {"ranker": [], "server": [], **{name: [] for name in HEADERS}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for (context, texts), body in zip(requests, bodies_of(requests), strict=True):
        began = time.perf_counter()
        ranked = ranker.rank(context, texts)
        samples["ranker"].append(1e3 * (time.perf_counter() - began))
        time.sleep(PAUSE)
        began = time.perf_counter()
        connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        samples["server"].append(1e3 * (time.perf_counter() - began))
        time.sleep(PAUSE)
        if answer.status != 200 or found[0]["index"] != ranked[0].index:
            raise RuntimeError(f"the server answered {answer.status}, or another candidate than the ranker")
        for name in HEADERS:
            samples[name].append(float(answer.headers[name]))
    connection.close()
    return samples


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    record = Record("serve", measures=MEASURES, settings=config, seeds=(0,))
    found = run(config)
    case = {"texts": config.texts, "tokens": config.tokens}
    record.add(case, "ms", found["samples"], to="ranker")
    record.add(case, "s", {"start": [found["start_s"]]})
    medians = found["medians"]
    row = {name.replace("-", "_"): value for name, value in medians.items()} | found
    columns = {
        "Ranker.rank": "{ranker:.1f}",
        "server": "{server:.1f}",
        "overhead": "{overhead_ms:.2f}",
        "aim": "< {aim_ms:.0f}",
        "in the server": "{x_total_time:.1f}",
        "queue": "{x_queue_time:.2f}",
        "model": "{x_inference_time:.1f}",
        "tokenising": "{x_tokenization_time:.2f}",
    }
    print_table(f"{config.texts} texts of {config.tokens} tokens, ms (medians)", columns, [row])
    print(f"ready {found['start_s']:.0f} s after the start of the process")
    record.write(config.out, {"hardware": hardware(), **found})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
