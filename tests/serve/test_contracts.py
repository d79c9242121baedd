"""The replies that existing clients read, field by field (TEI, Cohere, Jina, vLLM, Infinity, OpenAI)."""

import base64
import re

import numpy as np
import pytest

from polyjax.inference.score_map import ScoreMap
from serving import QUERY, TEXTS, running, sentences, tiny_ranker

MAP = ScoreMap(slope=0.5, offset=0.25)


@pytest.fixture(scope="module")
def ranker():
    return tiny_ranker("poly")


@pytest.fixture(scope="module")
def server(ranker):
    with running(ranker, score_map=MAP) as found:
        yield found


@pytest.fixture(scope="module")
def bi():
    with running(tiny_ranker("bi")) as found:
        yield found


def expected(ranker, texts):
    """Places, best first, and the raw score of each text."""
    ranked = ranker.rank(QUERY, texts)
    return [one.index for one in ranked], ranker.score(QUERY, texts)


def test_tei_rerank_is_a_bare_list_best_first_of_all_texts(server, ranker):
    order, scores = expected(ranker, TEXTS)
    found = server.post("/rerank", {"query": QUERY, "texts": TEXTS}).json
    assert [set(one) for one in found] == [{"index", "score"}] * 3
    assert [one["index"] for one in found] == order
    np.testing.assert_allclose([one["score"] for one in found], MAP(scores)[order], rtol=1e-5)
    assert all(0 <= one["score"] <= 1 for one in found)


def test_tei_rerank_raw_scores_and_texts_on_request(server, ranker):
    order, scores = expected(ranker, TEXTS)
    body = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True, "truncate": None}
    found = server.post("/rerank", body).json
    assert [one["text"] for one in found] == [TEXTS[i] for i in order]
    np.testing.assert_allclose([one["score"] for one in found], scores[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_cohere_rerank(server, ranker, path):
    order, scores = expected(ranker, TEXTS)
    body = {"model": "rerank-v3.5", "query": QUERY, "documents": TEXTS, "top_n": 2, "unknown": [1]}
    found = server.post(path, body).json
    assert {"id", "results", "meta"} <= set(found)
    assert [set(one) for one in found["results"]] == [{"index", "relevance_score"}] * 2
    assert [one["index"] for one in found["results"]] == order[:2]
    np.testing.assert_allclose(
        [one["relevance_score"] for one in found["results"]], MAP(scores)[order[:2]], rtol=1e-5
    )
    assert found["meta"]["api_version"] == {"version": "2" if path == "/v2/rerank" else "1"}
    assert "warnings" not in found["meta"]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 10
    assert found["model"] == "tiny"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_documents_may_be_objects_and_come_back_on_request_only(server, path):
    documents = [{"text": TEXTS[0], "title": "ignored"}, TEXTS[1]]
    body = {"query": QUERY, "documents": documents, "return_documents": True}
    results = server.post(path, body).json["results"]
    assert {one["index"]: one["document"] for one in results} == {
        0: {"text": TEXTS[0]},
        1: {"text": TEXTS[1]},
    }
    again = server.post(path, body | {"return_documents": False}).json["results"]
    assert all("document" not in one for one in again), "LiteLLM rejects a null"


def test_results_of_v2_never_hold_texts(server):
    body = {"query": QUERY, "documents": TEXTS, "return_documents": True}
    assert all("document" not in one for one in server.post("/v2/rerank", body).json["results"])


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_top_n_beyond_the_documents_gives_all(server, path):
    assert len(server.post(path, {"query": QUERY, "documents": TEXTS, "top_n": 99}).json["results"]) == 3


def test_top_n_is_unknown_to_the_format_of_text_embeddings_inference(server):
    """All come back: clients that send it cut the list themselves."""
    answer = server.post("/rerank", {"query": QUERY, "texts": TEXTS, "top_n": 1})
    assert answer.json == server.post("/rerank", {"query": QUERY, "texts": TEXTS}).json


def test_metrics_have_the_names_of_text_embeddings_inference(server):
    server.post("/rerank", {"query": QUERY, "texts": TEXTS})
    page = server.ask("GET", "/metrics").body.decode()
    assert re.search(r'^te_request_count{route="/rerank"} [1-9]', page, re.MULTILINE)
    assert re.search(r"^te_request_duration_count [1-9]", page, re.MULTILINE)
    for name in ("te_request_count", "te_request_success", "te_request_failure"):
        assert f"# TYPE {name} counter" in page and f"{name}_total" not in page
    assert "_created" not in page


def test_null_is_a_field_that_is_not_given(server):
    body = {"query": QUERY, "texts": TEXTS, "documents": None, "top_n": None, "raw_scores": None}
    assert server.post("/rerank", body).json == server.post("/rerank", {"query": QUERY, "texts": TEXTS}).json


def test_a_conversation_may_stand_for_the_query(server, ranker):
    turns = ["hello there", "what did you do?", QUERY]
    found = server.post("/rerank", {"context": turns, "texts": TEXTS, "raw_scores": True}).json
    scores = ranker.score(turns, TEXTS)
    np.testing.assert_allclose([one["score"] for one in found], np.sort(scores)[::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("queries", "documents"), ("text_1", "text_2")])
def test_score_keeps_the_order_of_the_input(server, ranker, path, names):
    one, other = names
    raw = {"raw_scores": True}
    many = server.post(path, {one: QUERY, other: TEXTS, **raw}).json
    assert (many["object"], many["model"]) == ("list", "tiny")
    assert [(d["index"], d["object"]) for d in many["data"]] == [(i, "score") for i in range(3)]
    np.testing.assert_allclose(
        [d["score"] for d in many["data"]], ranker.score(QUERY, TEXTS), rtol=1e-5, atol=1e-5
    )
    single = server.post(path, {one: QUERY, other: TEXTS[0], **raw}).json["data"]
    np.testing.assert_allclose(single[0]["score"], ranker.score(QUERY, TEXTS[:1]), rtol=1e-5, atol=1e-5)
    queries = sentences(3, seed=1)
    pairs = server.post(path, {one: queries, other: TEXTS, **raw}).json["data"]
    wanted = [ranker.score(query, [text])[0] for query, text in zip(queries, TEXTS, strict=True)]
    np.testing.assert_allclose([d["score"] for d in pairs], wanted, rtol=1e-5, atol=1e-5)


def test_embed_is_a_list_of_vectors_even_for_one_text(bi):
    (vector,) = bi.post("/embed", {"inputs": QUERY}).json
    assert len(vector) == 16
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
    again = bi.post("/embed", {"inputs": [TEXTS[0], QUERY], "truncate": None}).json
    np.testing.assert_allclose(again[1], vector, rtol=1e-4, atol=1e-5)


def test_embeddings_of_both_sides_give_the_score(bi):
    ranker = bi.service.model.ranker
    context = np.array(bi.post("/embed", {"inputs": QUERY, "normalize": False}).json)
    candidates = np.array(
        bi.post("/embed", {"inputs": TEXTS, "normalize": False, "prompt_name": "document"}).json
    )
    np.testing.assert_allclose(
        20 * context @ candidates.T, [ranker.score(QUERY, TEXTS)], rtol=1e-4, atol=1e-4
    )


def test_openai_embeddings_in_both_encodings(bi):
    body = {"input": TEXTS, "model": "any", "encoding_format": "float"}
    floats = bi.post("/v1/embeddings", body).json
    assert (floats["object"], floats["model"]) == ("list", "tiny")
    assert [(d["object"], d["index"]) for d in floats["data"]] == [("embedding", i) for i in range(3)]
    packed = bi.post("/v1/embeddings", body | {"encoding_format": "base64"}).json
    for one, other in zip(floats["data"], packed["data"], strict=True):
        vector = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        np.testing.assert_allclose(vector, one["embedding"], rtol=1e-6)
    assert bi.post("/v1/embeddings", body | {"dimensions": 16}).status == 200
    assert bi.post("/v1/embeddings", body | {"dimensions": 8}).status == 422


@pytest.mark.parametrize(("path", "name"), [("/embed", "inputs"), ("/v1/embeddings", "input")])
def test_a_poly_encoder_has_no_embedding_of_a_context(server, path, name):
    answer = server.post(path, {name: QUERY})
    assert answer.status == 422 and "poly-encoder has no embedding of a context" in answer.json["error"]
    side = "prompt_name" if path == "/embed" else "input_type"
    assert server.post(path, {name: QUERY, side: "document"}).status == 200


def test_info_models_and_health(server):
    info = server.ask("GET", "/info").json
    assert info["model_id"] == "tiny" and info["model_dtype"] == "float32"
    assert info["max_client_batch_size"] == 300 and info["max_batch_tokens"] == 128
    assert info["max_input_length"] == 16 and info["auto_truncate"] is True
    assert "reranker" in info["model_type"]
    models = server.ask("GET", "/v1/models").json
    assert models["object"] == "list" and models["data"][0]["id"] == "tiny"
    health = server.ask("GET", "/health")
    assert (health.status, health.body) == (200, b"")


def test_times_come_in_headers(server):
    headers = server.post("/rerank", {"query": QUERY, "texts": TEXTS}).headers
    names = ("x-total-time", "x-queue-time", "x-inference-time", "x-tokenization-time")
    times = [float(headers[name]) for name in names]
    assert times[0] >= times[2] > 0


def test_a_text_that_is_cut_is_counted_in_the_reply(server, ranker):
    long = " ".join(["mountain"] * 40)
    body = {"query": QUERY, "documents": [TEXTS[0], long, long]}
    before = truncated(server)
    answer = server.post("/v1/rerank", body)
    assert answer.headers["x-truncated-texts"] == "2"
    assert answer.json["meta"]["warnings"] == ["2 of 3 documents were cut to 16 tokens"]
    tei = server.post("/rerank", {"query": QUERY, "texts": [TEXTS[0], long], "raw_scores": True})
    assert tei.headers["x-truncated-texts"] == "1"
    scores = {one["index"]: one["score"] for one in tei.json}
    np.testing.assert_allclose(scores[1], ranker.score(QUERY, [long])[0], rtol=1e-5, atol=1e-5)
    cut = server.post("/v1/rerank", {"query": long, "documents": TEXTS})
    assert "the query was cut" in cut.json["meta"]["warnings"][0]
    assert cut.headers["x-truncated-queries"] == "1"
    assert truncated(server) == before + 2 + 1 + 1


def truncated(server) -> float:
    """Texts that were cut, as /metrics counts them."""
    page = server.ask("GET", "/metrics").body.decode()
    return float(re.search(r"^polyjax_truncated_texts_total (\S+)$", page, re.MULTILINE)[1])


def test_cutting_can_be_refused_and_chosen(server):
    long = " ".join(["mountain"] * 20 + ["soup"])
    refused = server.post("/rerank", {"query": QUERY, "texts": [TEXTS[0], long], "truncate": False})
    assert refused.status == 422 and "document 1 is longer than 16 tokens" in refused.json["error"]
    raw = {"query": QUERY, "texts": [long], "raw_scores": True}
    right, left = (
        server.post("/rerank", raw | {"truncation_direction": side}).json[0]["score"]
        for side in ("Right", "Left")
    )
    same = server.post("/rerank", {**raw, "texts": [" ".join(["mountain"] * 13 + ["soup"])]}).json[0]["score"]
    assert right != left
    np.testing.assert_allclose(left, same, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def folder():
    with running(tiny_ranker("folder")) as found:
        yield found


@pytest.mark.parametrize(("path", "name"), [("/embed", "inputs"), ("/v1/embeddings", "input")])
def test_a_cross_encoder_has_no_embedding(folder, path, name):
    answer = folder.post(path, {name: QUERY})
    assert answer.status == 422 and "a cross-encoder has no embedding" in answer.json["error"]


def test_what_a_pair_cuts_is_counted_though_each_text_would_fit(folder):
    query, long = " ".join(["mountain"] * 12), " ".join(["soup"] * 25)
    body = {"query": query, "documents": ["soup", long]}
    answer = folder.post("/v1/rerank", body)
    together = "a query and a document have at most 32 tokens together"
    assert answer.json["meta"]["warnings"] == [f"1 of 2 documents were cut: {together}"]
    assert answer.headers["x-truncated-texts"] == "1" and "x-truncated-queries" not in answer.headers
    refused = folder.post("/v1/rerank", body | {"truncate": False})
    assert refused.status == 422 and "document 1 and its query are longer than 32" in refused.json["error"]
    both = folder.post("/v1/rerank", {"query": long, "documents": [long]})
    assert [line.split(":")[0] for line in both.json["meta"]["warnings"]] == [
        "the query was cut",
        "1 of 1 documents were cut",
    ]
    assert both.json["usage"]["prompt_tokens"] <= 32 + 2  # each text has a start and an end of its own
    fits = folder.post("/v1/rerank", {"query": query, "documents": ["soup"]})
    assert "warnings" not in fits.json["meta"]


def test_a_pair_is_cut_on_the_side_that_was_asked_for(folder):
    query = "trail " * 10
    same, other, end = ("river " * 24 + word * 4 for word in ("soup ", "moon ", "rain "))
    body = {"query": query, "raw_scores": True, "texts": [same, other, end]}
    scores = {
        side: {one["score"] for one in folder.post("/rerank", {**body, "truncation_direction": side}).json}
        for side in ("Right", "Left")
    }
    assert len(scores["Right"]) == 1 and len(scores["Left"]) == 3
    # 32 tokens, of which 3 are marks and 10 the query's.
    (kept,) = folder.post("/rerank", body | {"texts": ["river " * 15 + "soup " * 4]}).json
    (left,) = folder.post("/rerank", body | {"texts": [same], "truncation_direction": "Left"}).json
    np.testing.assert_allclose(left["score"], kept["score"], rtol=1e-5, atol=1e-5)


def test_top_n_0_is_all_as_in_vllm(server):
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        reply = server.post(path, {"query": QUERY, "documents": TEXTS, "top_n": 0})
        assert len(reply.json["results"]) == len(TEXTS)


def test_an_activation_gives_the_rankers_scores_and_the_same_probabilities(folder):
    texts = sentences(12, seed=4)
    raw, mapped = (
        {one["index"]: one["score"] for one in folder.post("/rerank", body).json}
        for body in (
            {"query": QUERY, "texts": texts, "raw_scores": True},
            {"query": QUERY, "texts": texts},
        )
    )
    scores = folder.service.model.ranker.score(QUERY, texts)
    assert 0.01 < scores.mean() < 0.99 and list(raw) == list(mapped)
    np.testing.assert_allclose([raw[i] for i in range(12)], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([mapped[i] for i in range(12)], scores, rtol=1e-4, atol=1e-6)


def test_probabilities_that_are_all_1_keep_the_order_of_the_scores(ranker):
    """A sigmoid in half precision put them into ties (sentence-transformers 3893)."""
    texts = sentences(20, seed=8)
    with running(ranker, score_map=ScoreMap(slope=1.0, offset=1e4)) as server:
        found = server.post("/rerank", {"query": QUERY, "texts": texts}).json
    assert {one["score"] for one in found} == {1.0}
    assert [one["index"] for one in found] == [one.index for one in ranker.rank(QUERY, texts)]


def test_max_tokens_per_doc_is_kept_to_and_reported(server):
    body = {"query": QUERY, "documents": ["trail view hike printer", "trail view"], "raw_scores": True}
    answer = server.post("/v2/rerank", body | {"max_tokens_per_doc": 2})
    scores = [one["relevance_score"] for one in answer.json["results"]]
    assert scores[0] == scores[1], "both are the same two tokens"
    assert answer.json["meta"]["warnings"] == ["1 of 2 documents were cut to 2 tokens"]


def test_the_description_names_every_route_and_field(server):
    description = server.ask("GET", "/openapi.json").json
    assert description["openapi"].startswith("3.1")
    assert server.service.name not in description["info"]["title"], "it needs no key"
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/embed"} <= set(
        description["paths"]
    )
    assert {"/v1/embeddings", "/search", "/index", "/info", "/v1/models", "/health", "/metrics"} <= set(
        description["paths"]
    )
    rerank = description["paths"]["/rerank"]["post"]
    schema = rerank["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["texts"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": schema["properties"]["texts"]["description"],
    }
    example = rerank["requestBody"]["content"]["application/json"]["example"]
    assert server.post("/rerank", example).status == 200
    for path, methods in description["paths"].items():
        for method in methods:
            answer = server.ask(method.upper(), path, None if method == "get" else {})
            assert b"no such route" not in answer.body and answer.status != 405
