"""Input that is wrong or hostile: the right status and one clear line each, and a healthy server afterwards.

The rows marked with a name are what users of other servers report (TEI, hindsight, MiniSearch, WeKnora).
"""

import contextlib
import dataclasses
import gzip
import json
import re
import socket
import time

import numpy as np
import pytest

from polyjax.serve import server as http_server
from serving import LIMITS, QUERY, TEXTS, running, sentences, tiny_ranker

RERANK = {"query": QUERY, "texts": TEXTS}
HUGE = 10_000_000
DEEP = 10_000


@pytest.fixture(scope="module", params=["poly", "cross"])
def server(request):
    config = dataclasses.replace(LIMITS, payload_limit=1_000_000, body_timeout=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_server, "HEAD_TIMEOUT", 1.0)
        with running(tiny_ranker(request.param), config=config) as found:
            yield found


def body(**fields) -> bytes:
    return json.dumps(RERANK | fields).encode()


BODIES = {
    "empty body": (b"", 400, "is empty"),
    "white space": (b" \n", 400, "is empty"),
    "no JSON": (b"query=a", 400, "not JSON"),
    "truncated": (body()[:-1], 400, "not JSON"),
    "two values": (body() + body(), 400, "Extra data"),
    "byte order mark": (b"\xef\xbb\xbf" + body(), 400, "not JSON"),
    "UTF-16": (body().decode().encode("utf-16"), 400, "not UTF-8"),
    "latin-1": ('{"query": "caf\xe9"}'.encode("latin-1"), 400, "not UTF-8"),
    "surrogates as bytes": (b'{"query": "\xed\xa0\x80", "texts": ["a"]}', 400, "not UTF-8"),
    "NaN": (b'{"query": "a", "texts": ["b"], "top_n": NaN}', 400, "NaN"),
    "Infinity": (b'{"query": "a", "texts": ["b"], "x": -Infinity}', 400, "Infinity"),
    "too large a float": (b'{"query": "a", "texts": ["b"], "top_n": 1e999}', 422, "top_n"),
    "digits without end": (b'{"top_n": ' + b"9" * 10_000 + b"}", 400, "too many digits"),
    "a key twice": (b'{"query": "a", "query": "b", "texts": ["c"]}', 422, "`query` occurs twice"),
    "a key twice, deeper": (b'{"query": "a", "documents": [{"text": "b", "text": "c"}]}', 422, "`text`"),
    "many keys twice": (
        b"{" + b",".join(b'"k%d":1' % (i % 40_000) for i in range(80_000)) + b"}",
        422,
        "twice",
    ),
    "depth 10,000 of lists": (b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}", 422, "within each other"),
    "depth 10,000 of objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, 422, "within each other"),
    "depth 10,000, not closed": (b"[" * DEEP, 422, "within each other"),
    "depth 20": (b'{"x": ' + b"[" * 20 + b"]" * 20 + b"}", 422, "within each other"),
    "a list": (b"[1]", 422, "`body`"),
    "null": (b"null", 422, "`body`"),
    "a text": (b'"query"', 422, "`body`"),
    "no query": (b'{"texts": ["a"]}', 422, "`query`: missing"),
    "no texts": (b'{"query": "a"}', 422, "`texts`: missing"),
    "texts and documents": (body(documents=["a"]), 422, "`texts` and `documents`"),
    "query and context": (body(context=["a"]), 422, "`query` and `context`"),
    "empty query": (body(query=""), 400, "`query`: is empty"),
    "empty context": (b'{"context": [], "texts": ["a"]}', 400, "`context`: is empty"),
    "empty list (as 500 elsewhere)": (body(texts=[]), 400, "`texts`: is empty"),
    "empty documents": (b'{"query": "a", "documents": []}', 400, "`documents`: is empty"),
    "a number as query": (body(query=3), 422, "`query`: expected a text, got 3"),
    "a text as texts": (body(texts="abc"), 422, "`texts`: expected a list of texts"),
    "a number among texts": (body(texts=["a", 1]), 422, "`texts[1]`: expected a text, got 1"),
    "null among texts": (body(texts=["a", None]), 422, "`texts[1]`: expected a text, got null"),
    "an object among texts": (body(texts=[{"text": "a"}]), 422, "`texts[0]`"),
    "a document without text": (b'{"query": "a", "documents": [{"title": "b"}]}', 422, "`documents[0]`"),
    "a document whose text is a number": (
        b'{"query": "a", "documents": [{"text": 1}]}',
        422,
        "`documents[0].text`",
    ),
    "top_n -1": (body(top_n=-1), 422, "`top_n`"),
    "top_n true": (body(top_n=True), 422, "`top_n`"),
    "top_n 2.0": (body(top_n=2.0), 422, "`top_n`"),
    "top_n of another kind": (
        body(top_n="2"),
        422,
        '`top_n`: expected a whole number of at least 1, got "2"',
    ),
    "raw_scores of another kind": (body(raw_scores="yes"), 422, "`raw_scores`"),
    "truncation_direction": (body(truncation_direction="Up"), 422, "`truncation_direction`"),
    "lone surrogate (hindsight 1875)": (
        body(texts=["a", "\ud83d"]),
        422,
        "`texts[1]`: holds half a character",
    ),
    "lone surrogate in the query": (body(query="\udc00"), 422, "`query`: holds half a character"),
    "lone surrogate in a key": (b'{"\\ud83d": 1, "\\ud83d": 2}', 422, "occurs twice"),
    "more texts than allowed": (body(texts=["a"] * 301), 413, "301 texts are too many"),
    "100,000 texts": (body(texts=["a"] * 100_000), 413, "100,000 texts are too many"),
    "too many turns": (b'{"context": [' + b'"a",' * 400 + b'"a"], "texts": ["b"]}', 413, "`context`: 401"),
    "too many characters": (body(texts=["x" * 1000] * 41), 413, "characters are too many"),
    "10 MB of body": (b" " * HUGE + body(), 413, "1,000,000 bytes"),
    "a body a little too large": (body(texts=["x" * 1_000_000]), 413, "1,000,000 bytes"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_wrong(server, name):
    content, status, text = BODIES[name]
    answer = server.post("/rerank", content)
    check(answer, status, text)
    assert server.healthy()


def check(answer, status: int, text: str = "") -> None:
    """An error in the one form of all, on one line, that gives nothing away."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error", "error_type", "message", "detail"}
    message = answer.json["error"]
    assert message == answer.json["message"] == answer.json["detail"]
    assert text in message and "\n" not in message and len(message) < 200
    for given_away in ("Traceback", "/work", "site-packages", ".py", "polyjax."):
        assert given_away not in message


ACCEPTED = {
    "unknown fields": body(model="x", user=None, extra={"a": [1, {"b": 2}]}),
    "NUL": body(texts=["a\0b", "\0"]),
    "an empty text": body(texts=["a", ""]),
    "white space as query": body(query=" "),
    "texts that repeat": body(texts=["a"] * 300),
    "a long text (TEI 725)": body(texts=["a " * 19_000, "b"]),
    "a word without end": body(texts=["a" * 39_000]),
    "a long query (WeKnora 2160)": body(query="a " * 19_000),
    "special tokens (hindsight 1883)": body(query="[SEP]", texts=["[CLS] [PAD]", "<s>"]),
    "marks that combine": body(texts=["e" + "\u0301" * 5000]),
    "emoji": body(texts=["👩‍👩‍👧‍👦" * 100]),
    "right to left": body(texts=["שלום \u202e world"]),
    "pairs of surrogates": b'{"query": "\\ud83d\\ude00", "texts": ["a"]}',
    "depth 16": b'{"query": "a", "texts": ["b"], "x": ' + b"[" * 15 + b"]" * 15 + b"}",
    "300 texts in one request (TEI 378)": body(texts=sentences(300)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_odd_but_right_is_served(server, name):
    answer = server.post("/rerank", ACCEPTED[name])
    assert answer.status == 200, answer.body
    asked = json.loads(ACCEPTED[name])
    scores = server.service.model.ranker.score(asked["query"], asked["texts"])
    found = {one["index"]: one["score"] for one in answer.json}
    assert len(found) == len(asked["texts"])
    raw = 1 / (1 + np.exp(-scores.astype(np.float64)))
    np.testing.assert_allclose([found[i] for i in range(len(scores))], raw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "fields", "text"),
    [
        ("/v1/rerank", {"query": "a", "texts": ["b"]}, "`documents`: missing"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 0}, "`max_tokens_per_doc`"),
        (
            "/score",
            {"queries": ["a", "b"], "documents": ["c", "d", "e"]},
            "`queries`: expected one, or as many",
        ),
        ("/score", {"queries": "a"}, "`documents` (or `text_2`): missing"),
        ("/score", {"queries": "a", "text_1": "a", "documents": "b"}, "`queries` and `text_1`"),
        ("/score", {"queries": {"a": 1}, "documents": "b"}, "`queries`: expected a text or a list"),
        ("/embed", {"inputs": ["a", 1]}, "`inputs[1]`"),
        ("/embed", {"inputs": "a", "prompt_name": "other"}, "`prompt_name`: expected one of query, document"),
        (
            "/v1/embeddings",
            {"input": [1, 2, 3]},
            "`input`: expected a text or a list of texts, got token ids",
        ),
        ("/v1/embeddings", {"input": [[1, 2], [3]]}, "check_embedding_ctx_length=False"),
        ("/v1/embeddings", {"input": ["a", 1]}, "`input[1]`: expected a text, got 1"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "`encoding_format`"),
    ],
)
def test_fields_of_other_routes(server, path, fields, text):
    check(server.post(path, fields), 422, text)


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"Content_Encoding": "gzip"}, "Content-Encoding"),
        ({"Content_Encoding": "br"}, "Content-Encoding"),
        ({"Content_Type": "text/plain"}, "expected application/json"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, "expected application/json"),
        ({"Content_Type": "multipart/form-data; boundary=x"}, "expected application/json"),
        ({"Content_Type": ""}, "expected application/json"),
        ({"Content_Type": "application/json; charset=utf-16"}, "UTF-8"),
    ],
)
def test_headers_that_are_wrong(server, headers, text):
    content = gzip.compress(body()) if "Content_Encoding" in headers else body()
    check(server.post("/rerank", content, **headers), 415, text)


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", "application/vnd.api+json"])
def test_headers_that_are_right(server, kind):
    assert server.post("/rerank", body(), Content_Type=kind).status == 200


def test_methods(server):
    check(server.ask("GET", "/rerank"), 405, "method")
    check(server.ask("PUT", "/rerank", RERANK), 405, "method")
    options = server.ask("OPTIONS", "/index")
    check(options, 405, "method")
    assert set(options.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD", "POST", "DELETE"}
    check(server.ask("BREW", "/rerank", RERANK), 405, "method")
    head = server.ask("HEAD", "/health")
    assert (head.status, head.body) == (200, b"")
    assert server.ask("HEAD", "/rerank").status == 405
    for path in ("/nothing", "/rerank/", "/page/../../etc/passwd", "/%2e%2e/x", "/%00", "//rerank"):
        check(server.ask("GET", path), 404, "no such route")
    assert server.healthy()


def test_a_target_in_absolute_form_is_the_same_route(server):
    """Clients send it through a proxy, and HTTP lets them send it to any server."""
    origin = f"HTTP://127.0.0.1:{server.port}"
    first = request(body(), path=f"{origin}/rerank")
    found = server.raw(first + request(b"", "Connection: close", method="GET", path=f"{origin}/health"))
    assert statuses(found) == [200, 200]


def test_a_long_text_takes_nothing_from_the_query():
    """WeKnora 2160 and MiniSearch 2260: the query was cut away, or cut by characters instead of tokens."""
    ranker = tiny_ranker("folder")  # query and text together have 32 tokens
    with running(ranker) as server:
        long = "山" * 300 + " garden" * 1000
        scores = [server.post("/rerank", {"query": q, "texts": [long]}).json[0]["score"] for q in TEXTS]
        assert len(set(scores)) == len(TEXTS)
        whole = server.post("/rerank", {"query": "山" * 5, "texts": ["山" * 5]})
        assert "x-truncated-texts" not in whole.headers and "x-truncated-queries" not in whole.headers


def request(content: bytes, *more: str, method: str = "POST", path: str = "/rerank") -> bytes:
    """A request's bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *more]
    lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def test_pipelined_requests_are_answered_in_their_order(server):
    first, second = body(texts=TEXTS[:1]), body(texts=TEXTS[:2])
    last = request(b"", "Connection: close", method="GET", path="/health")
    found = server.raw(request(first) + request(b"no JSON") + request(second) + last)
    assert statuses(found) == [200, 400, 200, 200]
    assert found.index(b'"index":0') < found.index(b"not JSON") < found.rindex(b'"index":1')
    assert server.healthy()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 8, 400),  # TLS
        (b"GET /health\r\n\r\n", 400),
        (b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (b"POST /rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n", 400),
    ],
)
def test_what_is_no_http(server, data, status):
    found = server.raw(data)
    assert statuses(found) == [status]
    assert b"application/json" in found and b'"error"' in found
    assert server.healthy()


@pytest.mark.parametrize("more", [0, 1])
def test_the_limit_of_a_body_is_the_last_size_that_is_read(server, more):
    limit = server.service.config.payload_limit
    content = b" " * (limit - len(body()) + more) + body()  # what counts is in the last part
    assert server.post("/rerank", content).status == (413 if more else 200)
    assert statuses(server.raw(chunked(content))) == [413 if more else 200]


@pytest.mark.parametrize(("name", "limit"), [("max_client_batch_size", 300), ("max_characters", 40_000)])
def test_other_limits_are_the_last_size_that_is_served(server, name, limit):
    assert getattr(server.service.config, name) == limit
    for more in (0, 1):
        if name == "max_client_batch_size":
            fields = {"query": "a", "texts": ["b"] * (limit + more)}
        else:
            fields = {"query": "a", "texts": ["b" * 1000] * 39 + ["b" * (999 + more)]}
        assert server.post("/rerank", fields).status == (413 if more else 200)


def chunked(content: bytes) -> bytes:
    head = "POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return (
        f"{head}Transfer-Encoding: chunked\r\n\r\n{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    )


def test_a_body_in_chunks(server):
    assert statuses(server.raw(chunked(body()))) == [200]
    assert statuses(server.raw(chunked(b" " * 1_100_000 + body()))) == [413]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/rerank", {"Content_Type": "text/plain"}, 415),
        ("/v3/rerank", {}, 404),
        ("/info", {}, 405),
    ],
)
def test_a_large_body_is_received_before_it_is_refused(server, path, headers, status):
    """Its client reads no reply before it has sent all of it, and would find a closed connection."""
    for _ in range(5):
        assert server.post(path, b" " * 990_000, **headers).status == status


def test_the_key_of_a_large_body_is_refused_in_words():
    with running(tiny_ranker("poly"), api_keys=["secret"]) as server:
        for _ in range(5):
            reply = server.post("/rerank", b" " * 990_000, Authorization="Bearer no")
            assert reply.status == 401 and "API key" in reply.json["error"]


def test_a_second_request_is_not_smuggled_in_a_body(server):
    """A proxy that believed Content-Length would have taken it for this request's body."""
    inner = request(b"", "Connection: close", method="GET", path="/info")
    found = server.raw(request(b"0\r\n\r\n" + inner, "Transfer-Encoding: chunked"))
    assert statuses(found) == [400] and b"send one of them" in found
    assert server.healthy()


def test_a_body_that_trickles_in_is_given_up(server):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(request(body())[:-40])
        for _ in range(8):
            assert server.healthy(), "others are served meanwhile"
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                slow.sendall(b" ")
            time.sleep(0.15)
        found = slow.recv(65536)
    assert statuses(found) == [408] and b"did not arrive within 1 s" in found
    assert time.monotonic() - began < 8


def test_what_is_no_http_is_counted_and_logged(server, caplog):
    assert server.post("/rerank", {}).status == 422
    before = server.ask("GET", "/metrics").body
    with caplog.at_level("INFO", logger="polyjax.serve"):
        reply = server.raw(b"GARBAGE\r\n\r\n")
    assert statuses(reply) == [400] and b"x-request-id: " in reply
    logged = [getattr(one, "fields", {}) for one in caplog.records]
    (fields,) = [one for one in logged if one.get("status") == 400]
    assert fields["request_id"].encode() in reply
    line = re.compile(rb'te_request_failure\{err="Validation"\} (\S+)')
    counted = [float(line.search(page)[1]) for page in (before, server.ask("GET", "/metrics").body)]
    assert counted[1] == counted[0] + 1


def test_a_head_that_trickles_in_is_given_up(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\n")
        for _ in range(8):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                slow.sendall(b"X: a\r\n")
            time.sleep(0.15)
        found = slow.recv(65536)
    assert statuses(found) == [408]
    assert server.healthy()


def test_a_connection_without_a_request_is_closed(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle:
        assert statuses(idle.recv(65536)) == [408]


def test_a_client_that_ends_within_its_body_leaves_nothing_behind(server):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(request(body())[:-10])
    time.sleep(0.2)
    assert server.service.worker.requests == 0 and server.healthy()


def test_a_bad_text_fails_no_other_request(server):
    expected = server.post("/rerank", RERANK).json
    for _ in range(3):
        check(server.post("/rerank", body(texts=["\ud800"] * 5)), 422, "half a character")
        assert server.post("/rerank", RERANK).json == expected


def test_metrics_do_not_grow_with_what_clients_send(server):
    before = len(server.ask("GET", "/metrics").body.splitlines())
    for i in range(50):
        server.ask("GET", f"/nothing/{i}")
        server.post("/rerank", body(query=i), X_Request_Id=f"id-{i}", User_Agent=f"agent {i}")
        server.ask("GET", f"/health?{i}")
    assert len(server.ask("GET", "/metrics").body.splitlines()) <= before + 4
