"""Every shape is compiled before /health says 200; no request of any route compiles."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import jax.monitoring
import pytest

from polyjax import InputError, Ranker
from polyjax.interop.huggingface import minilm_folder
from polyjax.serve import LiveIndex, create_app
from polyjax.serve.openapi import OPERATIONS
from serving import LIMITS, running, sentences, tiny_ranker

SIZES = (1, 2, 9, 33, 130)
CHANGES = dataclasses.replace(LIMITS, allow_changes=True, timeout=600.0)  # not a test of speed


def asked(n: int) -> dict[tuple[str, str], dict | None]:
    """A request of each route, with so many texts."""
    texts, long = sentences(n, seed=n), " ".join(["trail"] * n)
    rerank = {"query": long, "documents": texts}
    return {
        ("POST", "/rerank"): {"query": long, "texts": texts},
        ("POST", "/v1/rerank"): rerank,
        ("POST", "/v2/rerank"): rerank | {"max_tokens_per_doc": 5},
        ("POST", "/score"): {"queries": texts, "documents": texts[::-1]},
        ("POST", "/v1/score"): {"text_1": long, "text_2": texts},
        ("POST", "/search"): {"query": long, "top_n": min(n, 100)},
        ("POST", "/explain"): {"context": texts[:3], "document": long},
        ("POST", "/embed"): {"inputs": texts},
        ("POST", "/v1/embeddings"): {"input": texts},
        ("GET", "/index"): None,
        ("POST", "/index"): {"documents": [f"{n} {text}" for text in texts]},
        ("DELETE", "/index"): {"documents": [f"{n} {texts[0]}"]},
        ("GET", "/info"): None,
        ("GET", "/v1/models"): None,
        ("GET", "/health"): None,
        ("GET", "/metrics"): None,
    }


def test_every_route_is_asked():
    assert {(one.method, one.path) for one in OPERATIONS} == set(asked(1))


@pytest.mark.parametrize("arch", ["bi", "poly"])
def test_no_route_compiles(arch, tmp_path):
    """A change of the index compiles what searches will need, before they see it; they never do."""
    compiled: list[str] = []

    def listen(event: str, seconds: float, **more: object) -> None:
        if "compile" in event:
            compiled.append(event)

    ranker = tiny_ranker(arch, seed=21)  # of which nothing is compiled yet
    found = ranker.index(sentences(40, seed=5), tmp_path / "index")
    index = LiveIndex(ranker, found, max_top_n=LIMITS.max_top_n)
    jax.clear_caches()
    answered: dict[int, set[str]] = {}
    with running(ranker, index=index, config=CHANGES, reranker=tiny_ranker("cross", seed=22)) as server:
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            for n in SIZES:
                for (method, path), body in asked(n).items():
                    answered.setdefault(server.ask(method, path, body).status, set()).add(path)
                    if path == "/index":
                        compiled.clear()
                    assert compiled == [], (path, n)
            with ThreadPoolExecutor(8) as threads:
                bodies = [(path, body) for n in SIZES for (_, path), body in asked(n).items() if body]
                mixed = [(path, body) for path, body in bodies if path != "/index"]
                list(threads.map(lambda pair: server.post(*pair), mixed))
            assert compiled == []
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    refused = {"/explain"} if arch == "bi" else {"/embed", "/v1/embeddings"}
    routes = {path for _, path in asked(1)}
    assert answered[200] == routes - refused
    assert set().union(*(paths for status, paths in answered.items() if status != 200)) == refused


def test_minilm_is_ready_within_a_minute_when_its_programs_are_in_the_cache():
    """Seconds of the processor: those of a clock would be those of whatever else the machine does."""
    try:
        minilm_folder()
    except InputError as error:
        pytest.skip(str(error))
    ranker = Ranker.from_encoder("minilm")
    create_app(ranker).state.service.compile()  # into the session's cache, or from it
    jax.clear_caches()
    app = create_app(Ranker.from_encoder("minilm"))
    began = time.process_time()
    app.state.service.compile()
    assert time.process_time() - began < 60
