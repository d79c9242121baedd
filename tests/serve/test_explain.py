"""/explain: a score in its parts, as the page shows them."""

import jax.monitoring
import numpy as np
import pytest

from polyjax.inference.score_map import ScoreMap
from serving import QUERY, TEXTS, running, tiny_ranker

MAP = ScoreMap(slope=0.5, offset=0.25)
BODY = {"context": ["hello", QUERY], "document": TEXTS[0]}


@pytest.fixture(scope="module")
def server():
    with running(tiny_ranker("poly"), score_map=MAP) as found:
        yield found


@pytest.fixture(scope="module")
def cross():
    with running(tiny_ranker("cross")) as found:
        yield found


def test_the_parts_add_up_to_the_score_of_a_ranking(server):
    found = server.post("/explain", BODY).json
    (ranked,) = server.post(
        "/rerank", {"context": BODY["context"], "texts": [BODY["document"]], "raw_scores": True}
    ).json
    np.testing.assert_allclose(found["score"], ranked["score"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["relevance_score"], MAP(np.array([ranked["score"]])), rtol=1e-5)
    codes = found["codes"]
    assert [code["code"] for code in codes] == [0, 1, 2, 3]
    np.testing.assert_allclose(sum(code["weight"] for code in codes), 1, rtol=1e-5)
    np.testing.assert_allclose(sum(code["contribution"] for code in codes), found["score"], rtol=1e-5)
    for code in codes:
        product = found["scale"] * code["weight"] * code["product"]
        np.testing.assert_allclose(code["contribution"], product, rtol=1e-6)
    # The candidate's attention is a softmax of its products.
    ratio = np.exp(codes[0]["product"] - codes[1]["product"])
    np.testing.assert_allclose(codes[0]["weight"] / codes[1]["weight"], ratio, rtol=1e-3)


def test_it_is_what_the_ranker_says(server):
    found = server.post("/explain", BODY | {"top": 2}).json
    expected = server.service.model.ranker.explain(BODY["context"], BODY["document"], top=2)
    np.testing.assert_allclose([code["weight"] for code in found["codes"]], expected.weights, rtol=1e-4)
    assert found["tokens"] == expected.tokens and "hiking" in found["tokens"]
    assert [one["code"] for one in found["reads"]] == expected.vectors.tolist()
    for one, reads in zip(found["reads"], expected.reads, strict=True):
        np.testing.assert_allclose(one["attention"], reads, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sum(one["attention"]), 1, rtol=1e-4)


def test_the_largest_codes_come_first_and_there_are_no_more_than_codes(server):
    found = server.post("/explain", BODY | {"top": 32}).json
    weights = [found["codes"][one["code"]]["weight"] for one in found["reads"]]
    assert len(weights) == 4 and weights == sorted(weights, reverse=True)


def test_what_was_cut_is_said(server):
    long = " ".join(["mountain"] * 60)
    answer = server.post("/explain", {"query": long, "document": long})
    assert answer.headers["x-truncated-queries"] == answer.headers["x-truncated-texts"] == "1"
    assert len(answer.json["meta"]["warnings"]) == 2 and len(answer.json["tokens"]) == 32
    refused = server.post("/explain", {"query": long, "document": "a", "truncate": False})
    assert refused.status == 422 and "longer than 32 tokens" in refused.json["error"]


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"document": None}, 422, "`document`: missing"),
        ({"document": ["a"]}, 422, "`document`: expected a text, got a list"),
        ({"document": "\ud800"}, 422, "`document`: holds half a character"),
        ({"document": "x" * 41_000}, 413, "characters are too many"),
        ({"context": None}, 422, "`query`: missing"),
        ({"context": [""]}, 400, "`context`: is empty"),
        ({"query": "a"}, 422, "give one of them"),
        ({"top": 0}, 422, "`top`: expected a whole number of at least 1"),
        ({"top": 33}, 422, "`top`: expected at most 32, got 33"),
        ({"truncate": 1}, 422, "`truncate`"),
    ],
)
def test_requests_that_are_refused(server, fields, status, text):
    answer = server.post("/explain", BODY | fields)
    assert answer.status == status and text in answer.json["error"], answer.body
    assert server.healthy()


def test_an_empty_candidate_has_parts_too(server):
    assert server.post("/explain", BODY | {"document": ""}).status == 200


def test_a_model_whose_score_has_no_parts_says_so(cross, server):
    assert "no parts to explain" in cross.post("/explain", {}).json["error"], "before what is missing"
    answer = cross.post("/explain", BODY)
    assert answer.status == 422 and "cross-encoder has no parts" in answer.json["error"]
    assert cross.ask("GET", "/info").json["polyjax"]["explains"] is False
    assert server.ask("GET", "/info").json["polyjax"]["explains"] is True


def test_an_explanation_never_compiles():
    compiled: list[str] = []

    def listen(event: str, seconds: float, **more: object) -> None:
        if "compile" in event:
            compiled.append(event)

    with running(tiny_ranker("poly", seed=5)) as server:
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            for n in (1, 10, 20, 40):
                context = [" ".join(["trail"] * n)]
                body = {"context": context, "document": context[0]}
                assert server.post("/explain", body).status == 200
            assert compiled == []
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)


def test_a_score_that_is_not_a_number_is_an_error(server, monkeypatch):
    model = server.service.model
    encode = model.candidate_vectors
    monkeypatch.setattr(model, "candidate_vectors", lambda *given: encode(*given) * np.float32("nan"))
    answer = server.post("/explain", BODY)
    assert answer.status == 424 and b"NaN" not in answer.body
    monkeypatch.undo()
    assert server.healthy()
