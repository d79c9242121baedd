"""What the server adds to `Ranker.rank`: requests one by one, in turns with the ranker itself.

    python benchmarks/serve.py minilm                       # eight minutes
    python benchmarks/serve.py minilm --quick

Starts `polyjax serve` in a process of its own on 127.0.0.1. Each request is ranked by a `Ranker` of this
process and sent to the server, which of the two first changes from request to request. What the server adds
is the median of the differences within such pairs. The time of a large model varies by more than that, so the
part outside the model is reported too: the client's time, less the server's time in the model, less the time
in which this process tokenises another such request, as `Ranker.rank` has to. The same is measured with one
random layer of width 32 and the same tokenizer. The server's own times come from its headers. Prints a table,
writes results/serve/HOST.json. benchmarks/load.py has many requests at once.
"""

import dataclasses
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from common import interval_of_median, print_table
from flax import nnx
from http_load import bodies_of
from record import RESULTS, Record
from served import Request, requests_of, served

from polyjax import BiConfig, EncoderConfig, Ranker
from polyjax.evaluation.report import hardware
from polyjax.nn.scorers import make_scorer
from polyjax.recipes.models import load_ranker
from polyjax.runs import ModelCard, write_model
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
        repeats: requests that are timed, over all launches.
        warmup: requests before them, at each launch.
        launches: of the server; how fast a process computes differs by some percent from launch to launch.
        quick: one launch.
        out: folder of the results.
    """

    model: Annotated[Path, tyro.conf.Positional]
    texts: int = 20
    tokens: int = 30
    repeats: int = 200
    warmup: int = 10
    launches: int = 5
    quick: bool = False
    out: Path = RESULTS


def run(config: BenchmarkConfig, model: Path, ranker: Ranker) -> dict[str, Any]:
    """Milliseconds of each request by the ranker and through the server, and the server's own."""
    ranker.compile(n_candidates=config.texts)
    n = config.warmup + max(config.repeats // config.launches, 1)
    # A word of the list is one token in most vocabularies; two are special.
    words = config.tokens - 2
    samples: dict[str, list[float]] = {}
    start_s = []
    for launch in range(1 if config.quick else config.launches):
        requests = requests_of(2 * n, config.texts, lengths=(words, words), seed=launch)
        with served(model) as server:
            found = _in_turns(ranker, server.port, requests[:n], requests[n:])
            start_s.append(server.start_s)
        for name, values in found.items():
            samples.setdefault(name, []).extend(values[config.warmup :])
    medians = {name: statistics.median(values) for name, values in samples.items()}
    names = ("server", "ranker", "x-inference-time", "tokenising")
    times = list(zip(*(samples[name] for name in names), strict=True))
    samples["added"] = [server - ranker for server, ranker, _, _ in times]
    samples["outside"] = [server - model - tokenising for server, _, model, tokenising in times]
    return {
        "start_s": statistics.median(start_s),
        "starts_s": start_s,
        "overhead_ms": statistics.median(samples["added"]),
        "overhead_interval_ms": interval_of_median(samples["added"]),
        "outside_ms": statistics.median(samples["outside"]),
        "outside_interval_ms": interval_of_median(samples["outside"]),
        "aim_ms": AIM_MS,
        "medians": medians,
        "samples": {name: [round(value, 3) for value in values] for name, values in samples.items()},
    }


def _in_turns(
    ranker: Ranker, port: int, requests: list[Request], others: list[Request]
) -> dict[str, list[float]]:
    """Milliseconds by name: the ranker, the server as a client sees it, what its headers say, tokenising."""
    names = ("ranker", "server", "tokenising", *HEADERS)
    samples: dict[str, list[float]] = {name: [] for name in names}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def by_ranker(context: str, texts: list[str]) -> int:
        return ranker.rank(context, texts)[0].index

    def by_server(body: bytes) -> int:
        connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}")
        for name in HEADERS:
            samples[name].append(float(answer.headers[name]))
        return found[0]["index"]

    def sample(name: str, call: Callable[[], Any]) -> Any:
        time.sleep(PAUSE)
        began = time.perf_counter()
        found = call()
        samples[name].append(1e3 * (time.perf_counter() - began))
        return found

    bodies = bodies_of(requests)
    for i, (request, other, body) in enumerate(zip(requests, others, bodies, strict=True)):
        turns = [("ranker", partial(by_ranker, *request)), ("server", partial(by_server, body))]
        first, second = (sample(name, call) for name, call in (turns if i % 2 else turns[::-1]))
        if first != second:
            raise RuntimeError("the server ranks another candidate first than the ranker")
        sample("tokenising", partial(_tokenise, ranker, other))
    connection.close()
    return samples


def _tokenise(ranker: Ranker, request: Request) -> None:
    """What `Ranker.rank` does before the model."""
    context, texts = request
    text = ranker.scorer.text
    text.prepare([context, *texts])
    text.context([context])
    for one in texts:
        text.candidate(one)


def one_layer(ranker: Ranker, folder: Path) -> Path:
    """A run directory of one random layer with the ranker's tokenizer and text settings."""
    text = ranker.scorer.text
    shape = EncoderConfig(
        vocab_size=text.tokenizer.vocab_size, dim=32, n_layers=1, n_heads=1, mlp_dim=64, n_positions=512
    )
    scorer = make_scorer(shape, BiConfig(), rngs=nnx.Rngs(0))
    write_model(folder, scorer, ModelCard(model=scorer.settings, text=text.config), text.tokenizer, config={})
    return folder


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    enable_compilation_cache()
    record = Record("serve", measures=MEASURES, settings=config, seeds=(0,))
    ranker = load_ranker(config.model)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        small = one_layer(ranker, Path(place) / "one-layer")
        found = run(config, config.model, ranker)
        models = {config.model.name: found, "one layer": run(config, small, Ranker.load(small))}
    for model, one in models.items():
        case = {"model": model, "texts": config.texts, "tokens": config.tokens}
        record.add(case, "ms", one["samples"], to="ranker")
        record.add(case, "s", {"start": one["starts_s"]})
        rows.append({name.replace("-", "_"): value for name, value in one["medians"].items()} | one | case)
    columns = {
        "model": "{model}",
        "Ranker.rank": "{ranker:.1f}",
        "server": "{server:.1f}",
        "more (95%)": "{overhead_ms:.2f} [{overhead_interval_ms[0]:.2f}, {overhead_interval_ms[1]:.2f}]",
        "aim": "< {aim_ms:.0f}",
        "outside the model": "{outside_ms:.2f} [{outside_interval_ms[0]:.2f}, {outside_interval_ms[1]:.2f}]",
        "queue": "{x_queue_time:.2f}",
        "computing": "{x_inference_time:.1f}",
        "tokenising": "{x_tokenization_time:.2f}",
    }
    print_table(f"{config.texts} texts of {config.tokens} tokens, ms (medians)", columns, rows)
    print(f"ready {found['start_s']:.0f} s after the start of the process")
    record.write(config.out, {"hardware": hardware(), **found})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
