"""Keys, origins, request ids, and what is written into the log."""

import dataclasses
import hmac
import json
import logging
from types import SimpleNamespace

import pytest

from polyjax import InputError
from polyjax.serve import create_app, gate
from polyjax.serve.telemetry import JsonLines
from serving import LIMITS, QUERY, TEXTS, logged, running, tiny_ranker

BODY = {"query": QUERY, "texts": TEXTS}
KEY, OTHER = "s3cret", "another key"
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def ranker():
    return tiny_ranker("poly")


@pytest.fixture(scope="module")
def server(ranker):
    config = dataclasses.replace(LIMITS, cors_allow_origin=(ORIGIN,))
    with running(ranker, config=config, api_keys=[KEY, OTHER]) as found:
        yield found


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"],
)
def test_without_the_key_nothing_is_served(server, given):
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", "/rerank"), ("GET", "/info"), ("GET", "/metrics"), ("GET", "/nothing")):
        answer = server.ask(method, path, BODY if method == "POST" else None, **headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json["error_type"] == "Unauthorized"


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens(server, key):
    assert server.post("/rerank", BODY, Authorization=f"Bearer {key}").status == 200
    assert server.post("/rerank", BODY, authorization=f"bearer {key}").status == 200


def test_every_key_is_compared_in_constant_time(server, monkeypatch):
    """However the given key begins, and wherever the right one stands among several."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return hmac.compare_digest(given, known)

    monkeypatch.setattr(gate, "hmac", SimpleNamespace(compare_digest=compare))
    for given in (KEY, OTHER, KEY[:-1], "x", ""):
        compared.clear()
        server.ask("GET", "/info", Authorization=f"Bearer {given}")
        assert compared == [(given.encode(), known.encode()) for known in (KEY, OTHER)]


@pytest.mark.parametrize("path", ["/health", "/", "/docs", "/openapi.json", "/page.js", "/page.css"])
def test_what_tells_nothing_of_the_model_needs_no_key(server, path):
    assert server.ask("GET", path).status == 200


def test_pages_take_nothing_from_elsewhere(server):
    for path in ("/", "/docs"):
        answer = server.ask("GET", path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"https://" not in answer.body and b"http://" not in answer.body.replace(
            b"http://www.w3.org/2000/svg", b""
        )


def test_other_origins_are_allowed_by_name_only(server, ranker):
    asked = {"Origin": ORIGIN, "Access_Control_Request_Method": "POST"}
    preflight = server.ask("OPTIONS", "/rerank", **asked)
    assert preflight.status == 200 and preflight.headers["access-control-allow-origin"] == ORIGIN
    answer = server.post("/rerank", BODY, Origin=ORIGIN)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, ORIGIN)
    stranger = server.ask("OPTIONS", "/rerank", **asked | {"Origin": "https://evil.example"})
    assert stranger.status == 400 and "access-control-allow-origin" not in stranger.headers
    with running(ranker) as closed:
        preflight = closed.ask("OPTIONS", "/rerank", **asked)
        assert preflight.status == 405 and "access-control-allow-origin" not in preflight.headers


def test_a_request_keeps_its_id_unless_it_is_unfit_for_a_log(server):
    headers = {"Authorization": f"Bearer {KEY}"}
    kept = server.post("/rerank", BODY, X_Request_Id="trace-1.a", **headers)
    assert kept.headers["x-request-id"] == "trace-1.a"
    for unfit in ("a b", "x" * 65, "<script>"):
        made = server.post("/rerank", BODY, X_Request_Id=unfit, **headers).headers["x-request-id"]
        assert made != unfit and len(made) == 16
    assert server.ask("GET", "/info").headers["x-request-id"], "refusals have one too"


@pytest.mark.parametrize("log_texts", [False, True])
def test_texts_are_in_the_log_only_if_asked_for(ranker, log_texts):
    config = dataclasses.replace(LIMITS, log_texts=log_texts)
    with running(ranker, config=config) as server, logged() as records:
        server.post("/rerank", {"query": "zebra", "texts": ["giraffe"]}, X_Request_Id="id-7")
        server.post("/rerank", {"query": "zebra", "texts": ["gir\ud800affe"]})
        server.post("/rerank", {"query": "zebra", "texts": "giraffe"})
        server.ask("GET", "/rerank?zebra")
    lines = [JsonLines().format(record) for record in records]
    found = [json.loads(line) for line in lines]
    (asked,) = (line for line in found if line.get("request_id") == "id-7")
    assert (asked["path"], asked["status"], asked["texts"]) == ("/rerank", 200, 1)
    assert asked["ms"] >= asked["inference_ms"] >= 0
    assert ("zebra" in "\n".join(lines)) == log_texts
    assert ("giraffe" in "\n".join(lines)) == log_texts
    refused = [line["problem"] for line in found if line.get("status") == 422]
    assert len(refused) == 2


def test_a_log_record_is_one_line():
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\nb", None, None)
    assert JsonLines().format(record).count("\n") == 0


@pytest.mark.parametrize("keys", [[""], [" a"], ["a\n"], ["a", "schl\xfcssel"], ["\ufeffkey"], ["a\0b"]])
def test_keys_that_no_client_can_send_are_refused(ranker, keys):
    with pytest.raises(InputError) as error:
        create_app(ranker, api_keys=keys)
    assert error.value.argument == "api_keys"


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_concurrent_requests", 0), ("timeout", 0.0), ("timeout", float("nan")), ("payload_limit", -1)],
)
def test_limits_that_cannot_work_are_refused(field, value):
    with pytest.raises(InputError) as error:
        dataclasses.replace(LIMITS, **{field: value})
    assert error.value.argument == field
