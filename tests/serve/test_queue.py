"""The queue: what shares a batch, what is next, who is refused, and what happens to those who go away."""

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.serve import LiveIndex
from polyjax.serve.model import AS_TRAINED, Model, Rows
from polyjax.serve.problems import Problem
from polyjax.serve.waiting import QUANTUM, Waiting, jobs_of
from polyjax.serve.work import Call, Scoring
from polyjax.serve.worker import FEW_BATCHES, LONG, Observed, Worker
from serving import LIMITS, QUERY, TEXTS, logged, running, sentences, tiny_ranker


class Lengths(Model):
    """A model of which only lengths matter: padded to powers of two, 64 tokens a batch."""

    def __init__(self):
        self.is_dual, self.dim, self.tokens_per_batch = True, 2, 64

    def padded(self, kind, length):
        return max(8, 1 << (length - 1).bit_length())

    def full(self, length):
        return max(64 // length, 1)

    def sizes(self, length):
        full = self.full(length)
        return sorted({1, max(full // 2, 1), full})


MODEL = Lengths()


def job(lengths, *, arrived: float = 0.0, context: int = 8):
    """A request of one context and candidates of so many tokens."""
    rows = [np.full(n, i, np.int32) for i, n in enumerate(lengths)]
    found = Rows([np.full(context, 99, np.int32)], rows, 0, [])
    pairs = [(0, i) for i in range(len(rows))]
    return Scoring(MODEL, found, pairs, arrived=arrived, deadline=1e9)


def drained(waiting: Waiting) -> list[list]:
    batches = []
    while units := waiting.take():
        batches.append(units)
    return batches


def test_batches_hold_one_length_of_all_requests_within_the_budget():
    waiting, jobs = Waiting(), [job([30, 5, 5], arrived=float(i)) for i in range(3)]
    for one in jobs:
        waiting.add(one)
    batches = drained(waiting)
    lengths = [[unit.length for unit in units] for units in batches]
    assert sorted(sum(lengths, [])) == [8] * 9 + [32] * 3
    assert all(len(units) * max(row) <= 64 for units, row in zip(batches, lengths, strict=True))
    assert max(len(jobs_of(units)) for units in batches) == 3


def test_who_waits_longest_is_next():
    waiting, late, early = Waiting(), job([30] * 2, arrived=5.0), job([60], arrived=1.0)
    waiting.add(late)
    waiting.add(early)
    first = waiting.take()
    assert first[0].job is early


def test_rows_that_would_be_padding_are_filled_with_shorter_sequences():
    waiting = Waiting()
    waiting.add(job([30, 5, 5, 5], context=30))
    assert sorted(len(units) for units in drained(waiting)) == [1, 1, 3], "one row is a shape of its own"
    waiting.add(job([7] * 3 + [15] * 3))
    sizes = [(max(unit.length for unit in units), len(units)) for units in drained(waiting)]
    assert (16, 4) in sizes, "three of 16 tokens and one of 8 fill four rows"


def test_a_sequence_longer_than_the_budget_goes_alone():
    waiting = Waiting()
    waiting.add(job([100, 120]))
    assert sorted(len(units) for units in drained(waiting)) == [1, 1, 1]


def test_a_large_request_does_not_hold_up_a_small_one_and_is_not_starved():
    waiting = Waiting()
    waiting.seconds_per_token = 0.01
    large = job([8] * 400)
    waiting.add(large)
    served = waiting.take()
    assert all(unit.job is large for unit in served)
    small = job([8] * 4, arrived=0.1)
    waiting.add(small)
    before = 0
    while any(unit.job is small for heap in waiting._heaps.values() for _, _, unit in heap):
        before += sum(unit.job is large for unit in waiting.take())
    assert before <= (QUANTUM + 1) * MODEL.full(8)
    # Small ones that keep on coming do not keep it from being served.
    clock, served = 0.1, 0
    for _ in range(100):
        clock += 8 * 8 * 0.01
        waiting.add(job([8] * 8, arrived=clock))
        served += sum(unit.job is large for unit in waiting.take())
    assert served > 100


def test_what_nobody_waits_for_is_neither_computed_nor_kept():
    waiting, gone, there = Waiting(), job([8] * 50), job([8] * 2)
    waiting.add(gone)
    waiting.add(there)
    gone.drop()
    waiting.sweep()
    assert len(waiting) == 3
    assert {unit.job for units in drained(waiting) for unit in units} == {there}


def test_equal_sequences_of_a_request_are_computed_once():
    rows = Rows([np.arange(3)], [np.arange(4), np.arange(4), np.arange(5)], 0, [])
    one = Scoring(MODEL, rows, [(0, 0), (0, 1), (0, 2)], arrived=0.0, deadline=1.0)
    assert [unit.kind for unit in one.units].count("candidate") == 2


@pytest.fixture(scope="module")
def ranker():
    return tiny_ranker("poly")


class Gate:
    """Holds the model's thread back until it is opened."""

    def __init__(self, server):
        self._server, self._open = server, threading.Event()
        service = server.service
        call = Call(service.model, self._open.wait, arrived=0.0, deadline=time.monotonic() + 60)
        with service.worker._changed:
            service.worker._waiting.add(call)
            service.worker._changed.notify()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._open.set()


def waited(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def rerank(server, texts=TEXTS, **headers):
    return server.post("/rerank", {"query": QUERY, "texts": texts}, **headers)


def test_searches_share_their_batches(ranker):
    texts = list(dict.fromkeys(sentences(200, seed=3, longest=9)))
    queries = sentences(8, seed=4, longest=6)
    with running(ranker, index=LiveIndex(ranker, ranker.index(texts))) as server:
        worker, sizes = server.service.worker, []
        worker._observed = Observed(batch=lambda sequences, tokens, requests: sizes.append(requests))
        with ThreadPoolExecutor(8) as threads:
            with Gate(server):
                asked = [
                    threads.submit(server.post, "/search", {"query": query, "raw_scores": True, "top_n": 5})
                    for query in queries
                ]
                assert waited(lambda: len(worker._waiting) == len(queries))
            replies = [one.result().json["results"] for one in asked]
        assert sum(sizes) == len(queries) and max(sizes) > 1
    for query, results in zip(queries, replies, strict=True):
        expected = ranker.rank(query, texts, 5)
        assert [one["document"]["text"] for one in results] == [one.text for one in expected]
        scores = [one["relevance_score"] for one in results]
        np.testing.assert_allclose(scores, [one.score for one in expected], rtol=1e-5, atol=1e-5)


def test_a_full_queue_answers_429_at_once(ranker):
    config = dataclasses.replace(LIMITS, max_concurrent_requests=3)
    with running(ranker, config=config) as server, ThreadPoolExecutor(3) as threads:
        with Gate(server):
            admitted = [threads.submit(rerank, server) for _ in range(3)]
            assert waited(lambda: server.service.worker.requests == 3)
            began = time.monotonic()
            refused = rerank(server)
            assert time.monotonic() - began < 2
            assert refused.status == 429 and refused.json["error_type"] == "Overloaded"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert server.ask("GET", "/health").status == 200, "busy is not ill"
        assert [one.result().status for one in admitted] == [200] * 3
        assert rerank(server).status == 200
        assert b'te_request_failure{err="Overloaded"} 1.0' in server.ask("GET", "/metrics").body


def test_requests_are_admitted_whole_by_the_number_of_their_texts(ranker):
    config = dataclasses.replace(LIMITS, max_waiting_texts=100)
    with running(ranker, config=config) as server, ThreadPoolExecutor(3) as threads:
        assert rerank(server, sentences(300)).status == 200, "a request never refuses itself (TEI)"
        with Gate(server):
            first = threads.submit(rerank, server, sentences(90))
            assert waited(lambda: server.service.worker.texts == 90)
            assert rerank(server, sentences(20)).status == 429
            second = threads.submit(rerank, server, sentences(10))
            assert waited(lambda: server.service.worker.texts == 100)
        assert (first.result().status, second.result().status) == (200, 200)
        assert server.service.worker.texts == 0


def test_who_would_wait_longer_than_the_timeout_is_refused_at_once():
    worker = Worker(dataclasses.replace(LIMITS, timeout=5.0))
    for _ in range(FEW_BATCHES):
        worker._measured(2, 16, 2.0)  # a second for each text
    arrived = time.monotonic()
    for texts in (2, 1, 1):  # they end after 2, 3 and 4 seconds; admission plans with 4.5
        worker.admit(texts, arrived=arrived)
    with pytest.raises(Problem) as refused:
        worker.admit(2, arrived=arrived)
    assert refused.value.status == 429 and "longer than the timeout" in refused.value.message
    assert refused.value.headers == {"Retry-After": "2"}, "it would end 1.5 s late"
    assert (worker.requests, worker.texts) == (3, 4)
    worker.stop()


def test_a_request_too_large_for_the_timeout_is_admitted_if_nothing_is_before_it():
    """It will not be answered in time, but to try again later would never help."""
    worker = Worker(dataclasses.replace(LIMITS, timeout=5.0))
    for _ in range(FEW_BATCHES):
        worker._measured(2, 16, 2.0)
    ticket = worker.admit(90, arrived=time.monotonic())
    with pytest.raises(Problem):
        worker.admit(90, arrived=time.monotonic())
    worker.leave(ticket)
    worker.admit(90, arrived=time.monotonic())
    worker.stop()


def test_a_large_request_does_not_lock_small_ones_out():
    """Only its first batches are computed before a request that arrives later."""
    worker = Worker(dataclasses.replace(LIMITS, timeout=12.0))
    worker._waiting.tokens_per_batch = 32
    for _ in range(FEW_BATCHES):
        worker._measured(2, 16, 2.0)  # a second for each text of 16 tokens: 8 s for four batches of 32
    arrived = time.monotonic()
    for texts in (900, 1, 1):  # before which 0, 8 and 9 wait; admission plans with 10.8
        worker.admit(texts, arrived=arrived)
    with pytest.raises(Problem, match="longer than the timeout"):
        worker.admit(1, arrived=arrived)
    worker.stop()


def test_a_deadline_is_kept_to(ranker):
    config = dataclasses.replace(LIMITS, timeout=0.5)
    with running(ranker, config=config) as server:
        with Gate(server):
            began = time.monotonic()
            late = rerank(server)
            assert 0.4 < time.monotonic() - began < 5
            assert late.status == 504 and "no answer within 0.5 s" in late.json["error"]
            assert server.service.worker.requests == 0
            assert len(server.service.worker._waiting) == 0, "what is late is not computed"
        assert waited(server.healthy)


def test_the_deadline_counts_from_the_head_of_a_request(ranker):
    """Not from the end of its body, which a slow client can delay (as long as ``body_timeout``)."""
    content = json.dumps({"query": QUERY, "texts": TEXTS}).encode()
    head = f"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    with running(ranker, config=dataclasses.replace(LIMITS, timeout=3.0)) as server, Gate(server):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            began = time.monotonic()
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content[:5])
            time.sleep(2.0)
            client.sendall(content[5:])
            assert client.recv(1000).startswith(b"HTTP/1.1 504")
            assert 2.9 < time.monotonic() - began < 4.5


@pytest.mark.parametrize("leaves", [False, True])
def test_texts_that_take_long_to_tokenise_hold_up_no_answer(ranker, monkeypatch, leaves):
    """Four million characters take seconds; the deadline and a client that leaves count meanwhile, too."""
    config = dataclasses.replace(LIMITS, timeout=30.0 if leaves else 0.5)
    begun, ended = threading.Event(), threading.Event()
    with running(ranker, config=config) as server:
        tokenise = server.service.model.tokenise

        def slow(*given):
            begun.set()
            ended.wait(30)
            return tokenise(*given)

        monkeypatch.setattr(server.service.model, "tokenise", slow)
        try:
            if leaves:
                content = json.dumps({"query": QUERY, "texts": TEXTS}).encode()
                head = f"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
                with socket.create_connection(("127.0.0.1", server.port)) as client:
                    client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
                    assert begun.wait(10) and server.service.worker.requests == 1
            else:
                late = rerank(server)
                assert late.status == 504 and "no answer within 0.5 s" in late.json["error"]
            assert waited(lambda: server.service.worker.requests == 0)
        finally:
            monkeypatch.undo()
            ended.set()
        assert waited(server.healthy)


def test_two_long_texts_hold_up_no_short_one(ranker, monkeypatch):
    """Megabytes take seconds to tokenise; they have a thread of their own."""
    config = dataclasses.replace(LIMITS, max_characters=1_000_000, payload_limit=2_000_000)
    with running(ranker, config=config) as server:
        model, go_on, begun = server.service.model, threading.Event(), threading.Event()
        tokenise = model.tokenise

        def slow(contexts, candidates, *more):
            if sum(map(len, candidates)) >= LONG:
                begun.set()
                go_on.wait(30)
            return tokenise(contexts, candidates, *more)

        monkeypatch.setattr(model, "tokenise", slow)
        with ThreadPoolExecutor(4) as threads:
            long = [threads.submit(rerank, server, ["a" * LONG]) for _ in range(3)]
            assert begun.wait(10)
            assert [rerank(server).status for _ in range(3)] == [200] * 3
            assert not any(one.done() for one in long)
            go_on.set()
            assert [one.result(30).status for one in long] == [200] * 3


def test_a_fault_in_the_queue_itself_is_said_at_once(ranker, monkeypatch):
    """Requests would only time out, one after the other, while /health said that all is well."""
    with running(ranker) as server, logged() as records:

        def broken():
            raise IndexError("a bug")

        monkeypatch.setattr(server.service.worker._waiting, "take", broken)
        answer = rerank(server)
        assert answer.status == 503 and "failed and must be restarted" in answer.json["error"]
        assert server.ask("GET", "/health").status == 503 and not server.healthy()
        assert rerank(server).json["error"].startswith("the server failed and must be restarted")
        assert any("the queue failed" in record.getMessage() for record in records)


def test_a_server_that_drains_answers_what_it_admitted_and_refuses_the_rest(ranker):
    with running(ranker) as server, ThreadPoolExecutor(1) as threads:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        kept.request("GET", "/health")
        assert kept.getresponse().read() == b""
        with contextlib.closing(kept), Gate(server):
            admitted = threads.submit(rerank, server)
            assert waited(lambda: server.service.worker.requests == 1)
            server.service.draining = True  # as SIGTERM does
            refused = rerank(server)
            assert refused.status == 503 and "shutting down" in refused.json["error"]
            assert int(refused.headers["retry-after"]) >= 1
            assert server.ask("GET", "/health").status == 503
            body, headers = json.dumps({"query": QUERY, "texts": TEXTS}), {"Content-Type": "application/json"}
            kept.request("POST", "/rerank", body, headers)
            assert kept.getresponse().status == 503, "on a connection that was there before, too"
            time.sleep(0.5)  # in which it looks five times whether it may end
            assert not admitted.done() and not server.server.should_exit
        assert admitted.result().status == 200


def test_a_client_that_goes_away_frees_its_place(ranker):
    config = dataclasses.replace(LIMITS, max_concurrent_requests=2)
    with running(ranker, config=config) as server:
        with Gate(server), logged() as records:
            for _ in range(2):
                client = socket.create_connection(("127.0.0.1", server.port))
                content = b'{"query": "a", "texts": ["b"]}'
                head = f"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
                client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
                before = server.service.worker.requests
                assert waited(lambda before=before: server.service.worker.requests >= max(before, 1))
                client.close()
            assert waited(lambda: server.service.worker.requests == 0)
            assert len(server.service.worker._waiting) == 0
            assert waited(lambda: 499 in [getattr(r, "fields", {}).get("status") for r in records])
        assert server.healthy()


def test_only_the_request_that_the_model_fails_on_fails(ranker, monkeypatch):
    with running(ranker) as server:
        model, poison = server.service.model, "poison"
        ids = model.tokenise([], [poison], AS_TRAINED)
        bad, encode = ids.candidates[0].tobytes(), model.candidate_vectors

        def failing(rows, length, size):
            if any(row.tobytes() == bad for row in rows):
                raise RuntimeError("INTERNAL: /secret/path: the device failed")
            return encode(rows, length, size)

        monkeypatch.setattr(model, "candidate_vectors", failing)
        with ThreadPoolExecutor(8) as threads, logged() as records:
            with Gate(server):
                others = [threads.submit(rerank, server, sentences(8, seed=i)) for i in range(6)]
                guilty = threads.submit(rerank, server, ["trail", poison])
                assert waited(lambda: server.service.worker.requests == 7)
                time.sleep(0.1)
            answer = guilty.result()
            assert answer.status == 424 and answer.json["error_type"] == "Backend"
            assert "secret" not in answer.body.decode()
            assert any("secret" in str(record.exc_info) for record in records if record.exc_info)
            assert [one.result().status for one in others] == [200] * 6
        assert server.healthy()


def test_a_score_that_is_not_a_number_is_an_error_and_never_json(ranker, monkeypatch):
    with running(ranker) as server:
        monkeypatch.setattr(
            server.service.model, "scores", lambda *given: np.full(len(given[2]), np.nan, np.float32)
        )
        answer = rerank(server)
        assert answer.status == 424 and b"NaN" not in answer.body
        monkeypatch.undo()
        assert server.healthy()


def test_a_stream_of_refusals_and_failures_leaves_nothing_behind(ranker):
    with running(ranker) as server:
        for i in range(40):
            rerank(server, [] if i % 2 else ["\ud800"])
        assert server.service.worker.requests == server.service.worker.texts == 0
        assert server.healthy()


def test_a_request_does_not_count_the_vocabulary(ranker, monkeypatch):
    """It took 11 ms, twice."""
    model = Model(ranker)
    monkeypatch.setattr(HuggingFaceTokenizer, "vocab_size", property(lambda self: pytest.fail("counted")))
    assert len(model.tokenise([[QUERY]], TEXTS, AS_TRAINED).candidates) == len(TEXTS)


def test_twice_what_it_can_do_is_answered_or_refused_in_time_and_leaves_nothing(ranker, monkeypatch):
    config = dataclasses.replace(LIMITS, max_concurrent_requests=8, timeout=5.0)
    with running(ranker, config=config) as server, ThreadPoolExecutor(24) as threads:
        model = server.service.model
        encode = model.candidate_vectors

        def slow(*given):
            time.sleep(0.02)
            return encode(*given)

        monkeypatch.setattr(model, "candidate_vectors", slow)

        def timed(i: int) -> tuple[int, float, str | None]:
            began = time.monotonic()
            answer = rerank(server, sentences(4, seed=i))
            return answer.status, time.monotonic() - began, answer.headers["retry-after"]

        answers = list(threads.map(timed, range(96)))
        assert {status for status, _, _ in answers} == {200, 429}
        assert sum(status == 200 for status, _, _ in answers) >= 8
        assert max(seconds for _, seconds, _ in answers) < config.timeout + 1
        assert all((retry is None) == (status == 200) for status, _, retry in answers)
        monkeypatch.undo()
        assert server.service.worker.requests == server.service.worker.texts == 0
        assert len(server.service.worker._waiting) == 0 and server.healthy()
