"""In float32 the server's raw scores are the ranker's, whatever else is in the batch."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import jax.monitoring
import numpy as np
import pytest

from serving import HEADS, QUERY, running, sentences, tiny_ranker

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=HEADS)
def server(request):
    with running(tiny_ranker(request.param)) as found:
        yield found


def requests(n: int, *, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Conversations with their candidates, of all sizes."""
    draw = np.random.default_rng(seed)
    return [
        (
            sentences(int(draw.integers(1, 5)), seed=2 * i),
            sentences(int(draw.integers(1, 40)), seed=2 * i + 1),
        )
        for i in range(n)
    ]


def ask(server, context, texts):
    """Raw scores in the order of the texts, and the places in the order of the reply."""
    reply = server.post("/rerank", {"context": context, "texts": texts, "raw_scores": True})
    assert reply.status == 200, reply.body
    scores = np.empty(len(texts), np.float32)
    for one in reply.json:
        scores[one["index"]] = one["score"]
    return scores, [one["index"] for one in reply.json]


def test_raw_scores_are_the_rankers_among_other_requests(server):
    ranker, asked = server.service.model.ranker, requests(24)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda pair: ask(server, *pair), asked))
    for (context, texts), (scores, order) in zip(asked, answers, strict=True):
        expected = ranker.score(context, texts)
        np.testing.assert_allclose(scores, expected, **CLOSE)
        assert order == np.argsort(-scores, kind="stable").tolist()
    # Requests did share batches, or this says nothing.
    page = server.ask("GET", "/metrics").body.decode()
    alone = re.search(r'polyjax_batch_requests_bucket\{le="1.0"\} (\S+)', page)
    batches = re.search(r"polyjax_batch_requests_count (\S+)", page)
    assert alone and batches and float(alone[1]) < float(batches[1]) - 3


def test_equal_texts_are_ties_that_keep_the_order_of_the_input(server):
    first, second = sentences(2, seed=5, longest=8)
    texts = [first, second, first.upper(), second, first, f" {second} "]
    with ThreadPoolExecutor(6) as threads:
        others = [threads.submit(ask, server, *pair) for pair in requests(12, seed=3)]
        scores, order = ask(server, [QUERY], texts)
        for other in others:
            other.result()
    assert scores[0] == scores[2] == scores[4] and scores[1] == scores[3] == scores[5]
    best = [0, 2, 4] if scores[0] > scores[1] else [1, 3, 5]
    assert order == best + [i for i in range(6) if i not in best]
    ranked = server.service.model.ranker.rank(QUERY, texts)
    np.testing.assert_allclose([one.score for one in ranked], scores[order], **CLOSE)


def test_a_request_never_compiles(server):
    compiled: list[str] = []

    def listen(event: str, seconds: float, **more: object) -> None:
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for n in (1, 2, 9, 17, 33, 65, 129, 300):
            ask(server, ["hello"] * min(n, 4), sentences(n, seed=n))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda pair: ask(server, *pair), requests(16, seed=9)))
        for queries, documents in (("a", ["b"] * 3), (["a", "b", "c"], ["d", "e", "f"])):
            assert server.post("/score", {"queries": queries, "documents": documents}).status == 200
        server.post("/embed", {"inputs": sentences(20)})
        assert compiled == []
        # The listener does hear of programs.
        jax.jit(lambda x: x * 3 + 1)(np.arange(1234))
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_text_that_spells_a_special_token_is_a_text(server):
    ranker = server.service.model.ranker
    texts = ["[SEP] trail", "[CLS]", "[PAD] [MASK] view", "</s><s>", "", " ", "\0trail", "\u200b", "👩‍👩‍👧"]
    scores, _ = ask(server, ["[SEP]"], texts)
    np.testing.assert_allclose(scores, ranker.score("[SEP]", texts), **CLOSE)


def test_several_threads_with_one_request_each_get_what_one_gets(server):
    context, texts = [QUERY], sentences(30, seed=11)
    alone, order = ask(server, context, texts)
    barrier, results = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        results.append(ask(server, context, texts))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for scores, again in results:
        np.testing.assert_allclose(scores, alone, **CLOSE)
        assert again == order
