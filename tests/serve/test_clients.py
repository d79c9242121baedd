"""The real clients of other servers, pointed at this one: `make test-clients`.

Each is used as its documentation shows, against addresses of this machine only.
"""

import asyncio
import base64
import os

import numpy as np
import pytest

from polyjax.inference.score_map import SIGMOID
from serving import QUERY, running, sentences, tiny_ranker

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore"),  # theirs
]
KEY = "s3cret"
DOCUMENTS = list(dict.fromkeys(sentences(12, seed=21, longest=9)))
# None of them may look for anything elsewhere.
os.environ |= {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "DO_NOT_TRACK": "1"}


@pytest.fixture(scope="module")
def server():
    with running(tiny_ranker("poly"), api_keys=[KEY]) as found:
        yield found


@pytest.fixture(scope="module")
def bi():
    with running(tiny_ranker("bi"), api_keys=[KEY]) as found:
        yield found


@pytest.fixture(scope="module")
def expected(server):
    """Places of the documents, best first, and their probabilities in that order."""
    ranked = server.service.model.ranker.rank(QUERY, DOCUMENTS)
    return [one.index for one in ranked], SIGMOID(np.array([one.score for one in ranked]))


def check(expected, places, scores) -> None:
    order, probabilities = expected
    assert list(places) == order[: len(places)]
    np.testing.assert_allclose(list(scores), probabilities[: len(places)], rtol=1e-4)


def test_cohere(server, expected):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key=KEY, base_url=server.url)
    found = client.rerank(model="any", query=QUERY, documents=DOCUMENTS, top_n=5)
    check(expected, [one.index for one in found.results], [one.relevance_score for one in found.results])
    assert len(found.results) == 5 and found.id and found.meta.api_version.version == "2"
    cut = client.rerank(model="any", query=QUERY, documents=[" ".join(DOCUMENTS)] * 2)
    assert cut.meta.warnings == ["2 of 2 documents were cut to 16 tokens"]


def test_cohere_reads_our_errors(server):
    cohere = pytest.importorskip("cohere")
    from cohere.core.api_error import ApiError

    client = cohere.ClientV2(api_key="wrong", base_url=server.url)
    with pytest.raises(ApiError) as error:
        client.rerank(model="any", query=QUERY, documents=DOCUMENTS)
    assert error.value.status_code == 401 and "API key is wrong" in str(error.value.body)
    client = cohere.ClientV2(api_key=KEY, base_url=server.url)
    with pytest.raises(ApiError) as error:
        client.rerank(model="any", query=QUERY, documents=[])
    assert error.value.status_code == 400 and error.value.body["message"].startswith("`documents`")


def test_cohere_first_version(server, expected):
    cohere = pytest.importorskip("cohere")
    if not hasattr(cohere, "Client"):
        pytest.skip("this version of cohere has no client of the first API")
    found = cohere.Client(api_key=KEY, base_url=server.url).rerank(
        query=QUERY, documents=DOCUMENTS, return_documents=True, model="any"
    )
    check(expected, [one.index for one in found.results], [one.relevance_score for one in found.results])
    assert [one.document.text for one in found.results] == [DOCUMENTS[i] for i in expected[0]]


def test_cohere_asynchronous(server, expected):
    cohere = pytest.importorskip("cohere")

    async def ask():
        client = cohere.AsyncClientV2(api_key=KEY, base_url=server.url)
        asked = [client.rerank(model="any", query=QUERY, documents=DOCUMENTS) for _ in range(8)]
        return await asyncio.gather(*asked)

    for found in asyncio.run(ask()):
        check(expected, [one.index for one in found.results], [one.relevance_score for one in found.results])


def test_langchain_cohere(server, expected):
    module = pytest.importorskip("langchain_cohere")
    from langchain_core.documents import Document

    client = module.CohereRerank(cohere_api_key=KEY, base_url=server.url, model="any", top_n=4)
    found = client.rerank(DOCUMENTS, QUERY)
    check(expected, [one["index"] for one in found], [one["relevance_score"] for one in found])
    kept = client.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    assert [one.page_content for one in kept] == [DOCUMENTS[i] for i in expected[0][:4]]


def test_haystack_tei_ranker(server, expected):
    module = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
    from haystack import Document
    from haystack.utils import Secret

    ranker = module.HuggingFaceTEIRanker(url=server.url, token=Secret.from_token(KEY), top_k=6)
    documents = [Document(content=text, meta={"place": i}) for i, text in enumerate(DOCUMENTS)]
    found = ranker.run(query=QUERY, documents=documents)["documents"]
    check(expected, [one.meta["place"] for one in found], [one.score for one in found])
    assert len(found) == 6
    raw = module.HuggingFaceTEIRanker(url=server.url, token=Secret.from_token(KEY), raw_scores=True)
    scores = [one.score for one in raw.run(query=QUERY, documents=documents)["documents"]]
    ranked = server.service.model.ranker.rank(QUERY, DOCUMENTS, len(scores))
    np.testing.assert_allclose(scores, [one.score for one in ranked], rtol=1e-5, atol=1e-5)
    cut = ranker.run(
        query=QUERY,
        documents=[Document(content=" ".join(DOCUMENTS))],
        truncation_direction=module.TruncationDirection.LEFT,
    )
    assert len(cut["documents"]) == 1


def test_llama_index_tei_postprocessor(server, expected):
    module = pytest.importorskip("llama_index.postprocessor.tei_rerank")
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    client = module.TextEmbeddingInference(base_url=server.url, auth_token=f"Bearer {KEY}", top_n=5)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(DOCUMENTS)]
    found = client.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    check(expected, [int(one.node.node_id) for one in found], [one.score for one in found])
    long = [NodeWithScore(node=TextNode(text=" ".join(DOCUMENTS)))]
    assert len(client.postprocess_nodes(long, query_bundle=QueryBundle(QUERY))) == 1, "it is cut"


@pytest.mark.parametrize(
    ("kind", "route"),
    [("text-embeddings-inference", "/rerank"), ("cohere", "/v1/rerank"), ("jina", "/v1/rerank")],
)
def test_rerankers(server, expected, kind, route):
    rerankers = pytest.importorskip("rerankers")
    ranker = rerankers.Reranker("any", model_type=kind, api_key=KEY, url=server.url + route)
    found = ranker.rank(QUERY, DOCUMENTS)
    check(expected, [one.doc_id for one in found.results], [one.score for one in found.results])


@pytest.mark.parametrize("encoding", ["as it chooses", "float", "base64"])
def test_openai_embeddings(bi, encoding):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key=KEY, base_url=f"{bi.url}/v1")
    more = {} if encoding == "as it chooses" else {"encoding_format": encoding}
    found = client.embeddings.create(model="any", input=DOCUMENTS, **more)
    vectors = np.array(
        [
            np.frombuffer(base64.b64decode(one.embedding), "<f4")
            if isinstance(one.embedding, str)
            else one.embedding
            for one in found.data
        ]
    )
    expected = np.array(
        bi.post("/embed", {"inputs": DOCUMENTS}, Authorization=f"Bearer {KEY}").json, np.float32
    )
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    assert found.usage.total_tokens > 0
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openai_reads_our_errors(server, bi):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.embeddings.create(model="any", input="hello")
    assert "poly-encoder has no embedding of a context" in str(error.value.body)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", base_url=f"{bi.url}/v1").embeddings.create(model="any", input="a")
