"""Searching the server's own index, and changing it while it is searched."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax.monitoring
import numpy as np
import pytest

from polyjax import InputError, Ranker
from polyjax.inference.score_map import ScoreMap
from polyjax.serve import LiveIndex, create_app
from serving import LIMITS, QUERY, running, sentences, tiny_ranker

CANDIDATES = list(dict.fromkeys(sentences(120, seed=7, longest=9)))
CHANGES = dataclasses.replace(LIMITS, allow_changes=True)


@pytest.fixture(scope="module")
def ranker():
    return tiny_ranker("poly")


def indexed(ranker: Ranker, folder, texts=CANDIDATES) -> LiveIndex:
    return LiveIndex(ranker, ranker.index(texts, folder))


@pytest.fixture(scope="module")
def server(ranker, tmp_path_factory):
    index = indexed(ranker, tmp_path_factory.mktemp("index") / "index")
    with running(ranker, index=index, score_map=ScoreMap(slope=0.1)) as found:
        yield found


def texts_of(reply) -> list[str]:
    return [one["document"]["text"] for one in reply.json["results"]]


@pytest.mark.parametrize("method", ["auto", "scan", "certified"])
def test_search_gives_what_ranking_all_puts_first(server, ranker, method):
    turns = ["hello", QUERY]
    body = {"context": turns, "top_n": 7, "raw_scores": True, "method": method}
    reply = server.post("/search", body)
    ranked = ranker.rank(turns, CANDIDATES, 7)
    assert texts_of(reply) == [one.text for one in ranked]
    scores = [one["relevance_score"] for one in reply.json["results"]]
    np.testing.assert_allclose(scores, [one.score for one in ranked], rtol=1e-5, atol=1e-5)
    assert [CANDIDATES[one["index"]] for one in reply.json["results"]] == texts_of(reply)
    meta = reply.json["meta"]
    assert meta["certified"] is True and meta["candidates"] == len(CANDIDATES)
    assert meta["method"] in ("scan", "certified") and 0 < meta["rescored"] <= 1
    assert meta["reranked"] == 0 and meta["milliseconds"] > 0


def test_quick_search_says_that_it_proves_nothing_or_what_was_done_instead(server):
    meta = server.post("/search", {"query": QUERY, "method": "quick"}).json["meta"]
    assert (meta["method"], meta["certified"]) in [("quick", False), ("quick", True), ("scan", True)]


def test_scores_are_probabilities_unless_raw(server, ranker):
    raw, mapped = (
        [one["relevance_score"] for one in server.post("/search", {"query": QUERY, **more}).json["results"]]
        for more in ({"raw_scores": True}, {})
    )
    np.testing.assert_allclose(mapped, ScoreMap(slope=0.1)(np.array(raw)), rtol=1e-5)
    assert len(raw) == 10


def test_texts_come_unless_they_are_not_wanted(server):
    found = server.post("/search", {"query": QUERY, "return_documents": False}).json["results"]
    assert all(set(one) == {"index", "relevance_score"} for one in found)


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"top_n": 101}, 422, "`top_n`: expected at most 100, got 101"),
        ({"method": "exact"}, 422, "`method`: expected one of auto, scan, certified, quick"),
        ({"query": None}, 422, "`query`: missing"),
        ({"query": "\ud800"}, 422, "half a character"),
        ({"query": " ".join(["trail"] * 60), "truncate": False}, 422, "longer than 32 tokens"),
    ],
)
def test_searches_that_are_refused(server, fields, status, text):
    answer = server.post("/search", {"query": QUERY} | fields)
    assert answer.status == status and text in answer.json["error"]


def test_searches_share_the_model_with_other_requests_and_never_compile(tmp_path):
    ranker = tiny_ranker("poly", seed=3)  # of which nothing is compiled yet
    with running(ranker, index=indexed(ranker, tmp_path / "index"), config=CHANGES) as server:
        search_with_others(server, ranker)


def search_with_others(server, ranker) -> None:
    compiled: list[str] = []

    def listen(event: str, seconds: float, **more: object) -> None:
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with ThreadPoolExecutor(8) as threads:
            others = [
                threads.submit(server.post, "/rerank", {"query": QUERY, "texts": sentences(30, seed=i)})
                for i in range(8)
            ]
            asked = [{"query": text, "top_n": 5, "method": "scan"} for text in CANDIDATES[:20]]
            replies = list(threads.map(lambda body: server.post("/search", body), asked))
            assert {one.result().status for one in others} == {200}
        for top_n in (1, 10, 33, 65, 100):
            for method in ("auto", "scan", "certified", "quick"):
                assert (
                    server.post("/search", {"query": QUERY, "top_n": top_n, "method": method}).status == 200
                )
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for reply, text in zip(replies, CANDIDATES, strict=False):
        assert texts_of(reply) == [one.text for one in ranker.rank(text, CANDIDATES, 5)]
    # Nor after the index has grown beyond a power of two, on which shapes depend.
    grown = [f"reply {i}" for i in range(40)]
    assert server.post("/index", {"documents": grown}).json["added"] == 40
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for top_n in (1, 33, 100):
            assert server.post("/search", {"query": QUERY, "top_n": top_n}).status == 200
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_server_without_an_index_says_so(ranker):
    with running(ranker) as server:
        for method, path in (("POST", "/search"), ("GET", "/index")):
            answer = server.ask(method, path, {"query": QUERY} if method == "POST" else None)
            assert answer.status == 404 and "has no index" in answer.json["error"]


def test_a_second_model_orders_what_was_found(ranker, tmp_path):
    cross = tiny_ranker("cross", seed=1)
    config = dataclasses.replace(LIMITS, rerank_top=20)
    index = indexed(ranker, tmp_path / "index")
    with running(ranker, config=config, index=index, reranker=cross) as server:
        reply = server.post("/search", {"query": QUERY, "top_n": 5, "raw_scores": True})
        first = [one.text for one in ranker.rank(QUERY, CANDIDATES, 20)]
        expected = cross.rank(QUERY, first, 5)
        assert texts_of(reply) == [one.text for one in expected]
        scores = [one["relevance_score"] for one in reply.json["results"]]
        np.testing.assert_allclose(scores, [one.score for one in expected], rtol=1e-5, atol=1e-5)
        meta = reply.json["meta"]
        assert (meta["certified"], meta["reranked"]) == (False, 20)
        assert server.ask("GET", "/info").json["polyjax"]["reranker"] is True


def test_changes_are_off_unless_allowed(server):
    for method, body in (("POST", {"documents": ["new"]}), ("DELETE", {"ids": [0]})):
        answer = server.ask(method, "/index", body)
        assert answer.status == 403 and "--allow-changes" in answer.json["error"]
    assert server.ask("GET", "/index").json == {
        "candidates": len(CANDIDATES),
        "dtype": "float32",
        "allow_changes": False,
    }


@pytest.fixture
def changing(ranker, tmp_path):
    with running(ranker, config=CHANGES, index=indexed(ranker, tmp_path / "index")) as found:
        yield found


def test_candidates_are_added_and_removed_live(changing, ranker, tmp_path):
    new = ["a brand new reply", CANDIDATES[0], "another new reply"]
    added = changing.post("/index", {"documents": [*new, {"text": new[0]}]}).json
    assert (added["added"], added["candidates"]) == (2, len(CANDIDATES) + 2)
    assert added["ids"][1] == 0 and added["ids"][3] == added["ids"][0] and len(set(added["ids"])) == 3
    found = changing.post("/search", {"query": new[0], "top_n": 100, "method": "scan"})
    by_text = {one["document"]["text"]: one["index"] for one in found.json["results"]}
    everything = [*CANDIDATES, new[0], new[2]]
    assert texts_of(found) == [one.text for one in ranker.rank(new[0], everything, 100)]
    removed = changing.ask("DELETE", "/index", {"documents": [new[0]]}).json
    assert (removed["removed"], removed["candidates"]) == (1, len(CANDIDATES) + 1)
    other = changing.ask("DELETE", "/index", {"ids": [by_text[new[2]]]}).json
    assert (other["removed"], other["candidates"]) == (1, len(CANDIDATES))
    left = changing.post("/search", {"query": new[0], "top_n": 100})
    assert not {new[0], new[2]} & set(texts_of(left))
    # What the server searched is what is on disk.
    assert len(ranker.open_index(tmp_path / "index")) == len(changing.service.index)


@pytest.mark.parametrize(
    ("method", "body"),
    [("POST", {"documents": ["new"]}), ("DELETE", {"ids": [0]}), ("DELETE", {"documents": ["other"]})],
)
def test_an_index_that_another_process_built_again_is_not_changed(changing, ranker, tmp_path, method, body):
    """The clients' ids mean other candidates now."""
    ranker.index(["other", CANDIDATES[0]], tmp_path / "index", replace=True)
    answer = changing.ask(method, "/index", body)
    assert answer.status == 503 and "the server must be restarted" in answer.json["error"], answer.body
    assert ranker.open_index(tmp_path / "index").texts == ["other", CANDIDATES[0]]
    assert texts_of(changing.post("/search", {"query": CANDIDATES[0]}))


@pytest.mark.parametrize(
    ("method", "body", "status", "text"),
    [
        ("POST", {"documents": []}, 400, "is empty"),
        ("POST", {"documents": ["a", ""]}, 400, "`documents[1]`: is empty"),
        ("POST", {"documents": [" \u200b"]}, 400, "is empty"),
        ("POST", {"documents": ["\ud800"]}, 422, "half a character"),
        ("POST", {}, 422, "`documents`: missing"),
        ("POST", {"documents": ["a"] * 301}, 413, "too many"),
        ("DELETE", {}, 422, "give one of them"),
        ("DELETE", {"ids": []}, 400, "nothing to remove"),
        ("DELETE", {"ids": [1], "documents": ["a"]}, 422, "give one of them"),
        ("DELETE", {"ids": [0, 10_000]}, 404, "`ids[1]`: was never given"),
        ("DELETE", {"ids": [-1]}, 422, "`ids[0]`"),
        ("DELETE", {"ids": ["1"]}, 422, "`ids[0]`"),
        ("DELETE", {"ids": [1 << 70]}, 422, "`ids[0]`"),
        ("DELETE", {"documents": [CANDIDATES[0], "not there"]}, 404, "`documents[1]`: is not in the index"),
    ],
)
def test_changes_that_are_refused_change_nothing(changing, method, body, status, text):
    answer = changing.ask(method, "/index", body)
    assert answer.status == status and text in answer.json["error"], answer.body
    assert changing.ask("GET", "/index").json["candidates"] == len(CANDIDATES)
    assert changing.healthy()


def test_candidates_that_are_too_long_are_counted_or_refused(changing):
    long = "river " * 200
    added = changing.post("/index", {"documents": ["a short one", long]})
    assert added.json["added"] == 2 and added.headers["x-truncated-texts"] == "1"
    assert added.json["warnings"] == ["1 of 2 documents were cut to 16 tokens"]
    refused = changing.post("/index", {"documents": ["another", "soup " * 200], "truncate": False})
    assert refused.status == 422 and "document 1 is longer than 16 tokens" in refused.json["error"]
    assert changing.ask("GET", "/index").json["candidates"] == len(CANDIDATES) + 2


def test_what_the_re_ranker_cuts_is_counted(ranker, tmp_path):
    index, again = indexed(ranker, tmp_path / "index"), tiny_ranker("folder")
    with running(ranker, index=index, reranker=again, reranker_map=ScoreMap(slope=0.1)) as server:
        info = server.ask("GET", "/info").json["polyjax"]
        assert (info["calibrated"], info["search_calibrated"]) == (False, True)
        short = server.post("/search", {"query": "trail", "top_n": 3}).json
        reply = server.post("/search", {"query": "trail " * 31, "top_n": 3})
        cut = [line for line in reply.json["meta"]["warnings"] if line.startswith("the re-ranker: ")]
        assert any("the query was cut" in line for line in cut), reply.body
        assert reply.json["usage"]["prompt_tokens"] > short["usage"]["prompt_tokens"] > 3
        refused = server.post("/search", {"query": "trail " * 31, "top_n": 3, "truncate": False})
        assert refused.status == 422 and "a query is longer than" in refused.json["error"]
        assert server.post("/search", {"query": "trail", "truncate": False}).status == 200


def test_readers_keep_what_they_began_with_while_others_change(ranker, tmp_path):
    few = CANDIDATES[:40]  # all that there will be fit into a reply
    with running(ranker, config=CHANGES, index=indexed(ranker, tmp_path / "index", few)) as server:
        read_and_change(server, len(few))


def read_and_change(changing, n: int) -> None:
    batches = [[f"reply {i} of thread {t}" for i in range(6)] for t in range(4)]
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            reply = changing.post("/search", {"query": "reply 1", "top_n": 100, "method": "scan"})
            there = set(texts_of(reply)) if reply.status == 200 else None
            whole = there is not None and all(len(there & set(b)) in (0, len(b)) for b in batches)
            if not whole:
                failures.append(reply.body)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    with ThreadPoolExecutor(4) as threads:
        added = list(threads.map(lambda b: changing.post("/index", {"documents": b}), batches))
    stop.set()
    for reader in readers:
        reader.join()
    assert [one.status for one in added] == [200] * 4
    assert sorted(one.json["candidates"] for one in added) == [n + 6 * i for i in (1, 2, 3, 4)]
    assert failures == []


def test_an_index_that_cannot_be_written_is_said_and_stays(changing, monkeypatch):
    def full(*given, **more):
        raise InputError.in_file("/secret/index", problem="No space left on device")

    monkeypatch.setattr(changing.service.index, "add", full)
    answer = changing.post("/index", {"documents": ["new"]})
    assert answer.status == 503 and "secret" not in answer.json["error"]
    monkeypatch.undo()
    assert changing.post("/index", {"documents": ["new"]}).status == 200


def test_changes_wait_in_a_queue_with_a_limit_and_a_deadline(ranker, tmp_path, monkeypatch):
    config = dataclasses.replace(CHANGES, max_concurrent_requests=2, timeout=1.0)
    index = indexed(ranker, tmp_path / "index")
    with running(ranker, config=config, index=index) as server, ThreadPoolExecutor(4) as threads:
        slow, first = threading.Event(), threading.Event()

        def add(texts):
            first.set()
            slow.wait(10)
            return len(texts), [0]

        monkeypatch.setattr(server.service.index, "add", add)
        begun = threads.submit(server.post, "/index", {"documents": ["a"]})
        assert first.wait(10)
        waiting = [threads.submit(server.post, "/index", {"documents": ["b"]}) for _ in range(2)]
        time.sleep(0.3)
        refused = server.post("/index", {"documents": ["c"]})
        assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1
        assert [one.result(10).status for one in waiting] == [504, 504]
        slow.set()
        assert begun.result(10).status == 200


def test_what_needs_an_index_is_refused_without_one(ranker):
    with pytest.raises(InputError) as error:
        create_app(ranker, config=CHANGES)
    assert error.value.argument == "allow_changes"
    with pytest.raises(InputError) as error:
        create_app(ranker, reranker=ranker)
    assert error.value.argument == "reranker"


def test_an_index_without_programs_for_the_largest_request_is_refused(ranker, tmp_path):
    """A request would compile them."""
    index = LiveIndex(ranker, ranker.index(CANDIDATES), max_top_n=20)
    config = dataclasses.replace(LIMITS, max_top_n=20, rerank_top=50)
    assert create_app(ranker, config=config, index=index)
    for changed, reranker in ((LIMITS, None), (config, ranker)):
        with pytest.raises(InputError, match="index: expected a LiveIndex with max_top_n=.* got 20"):
            create_app(ranker, config=changed, index=index, reranker=reranker)
