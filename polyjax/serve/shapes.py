"""The bodies of requests and replies, in the formats of existing clients.

There is one table of fields per route; it checks requests and describes them at /docs.
"""

import base64
import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyjax.inference.explain import Explanation
from polyjax.serve.fields import (
    COUNT,
    COUNT_OR_ALL,
    DOCUMENTS,
    FLAG,
    IDS,
    TEXT,
    TEXT_OR_TEXTS,
    TEXTS,
    Field,
    choice,
)
from polyjax.serve.problems import Problem

QUERY = Field("query", TEXT, "What the candidates are ranked for.", example="we went hiking last weekend")
CONTEXT = Field(
    "context", TEXTS, "The turns of a conversation, oldest first, instead of `query`.", example=None
)
RAW = Field("raw_scores", FLAG, "The model's own scores instead of scores in [0, 1].", False)
TRUNCATE = Field(
    "truncate", FLAG, "Truncate too long texts (true) or refuse them (false); default: as the server is set."
)
DIRECTION = Field(
    "truncation_direction",
    choice("Right", "Left"),
    "The side on which candidates are truncated. A query is truncated as in training.",
    "Right",
)
TOP_N = Field("top_n", COUNT_OR_ALL, "Maximum number of results; 0 for all.")
LISTED = Field("documents", DOCUMENTS, "Candidates, texts or objects with `text`.")
RETURN_DOCUMENTS = Field("return_documents", FLAG, "Repeat each candidate's text in its result.", False)
PER_DOC = Field("max_tokens_per_doc", COUNT, "Truncate candidates to this many tokens.")

RERANK = (
    QUERY,
    CONTEXT,
    Field(
        "texts",
        TEXTS,
        "Candidates; the reply is a list, as in text-embeddings-inference.",
        example=["which trail did you take?", "my printer is out of ink"],
    ),
    dataclasses.replace(LISTED, doc=f"{LISTED.doc} The reply is an object, as in Cohere's API."),
    TOP_N,
    RAW,
    Field("return_text", FLAG, "Repeat each candidate's text in its result (with `texts`).", False),
    RETURN_DOCUMENTS,
    TRUNCATE,
    DIRECTION,
    PER_DOC,
)
COHERE = (
    QUERY,
    CONTEXT,
    dataclasses.replace(LISTED, example=["which trail did you take?", "my printer is out of ink"]),
    TOP_N,
    RETURN_DOCUMENTS,
    PER_DOC,
    RAW,
    TRUNCATE,
    DIRECTION,
)
SCORE = (
    Field("queries", TEXT_OR_TEXTS, "A context, or several.", example="we went hiking"),
    Field("documents", TEXT_OR_TEXTS, "A candidate, or several.", example=["nice", "no ink"]),
    Field("text_1", TEXT_OR_TEXTS, "Another name of `queries`."),
    Field("text_2", TEXT_OR_TEXTS, "Another name of `documents`."),
    RAW,
    TRUNCATE,
    DIRECTION,
)
SIDE = choice("query", "document")
EMBED = (
    Field("inputs", TEXT_OR_TEXTS, "A text, or several.", example="we went hiking"),
    Field("normalize", FLAG, "Vectors of length 1.", True),
    Field("prompt_name", SIDE, "Embed as a context (`query`) or as a candidate (`document`).", "query"),
    TRUNCATE,
    DIRECTION,
)
EMBEDDINGS = (
    Field("input", TEXT_OR_TEXTS, "A text, or several.", example="we went hiking"),
    Field("encoding_format", choice("float", "base64"), "base64 encodes little-endian float32.", "float"),
    Field("dimensions", COUNT, "Width of the vectors; only the model's own is possible."),
    Field("input_type", SIDE, "Embed as a context (`query`) or as a candidate (`document`).", "query"),
    TRUNCATE,
)
MOST_READS = 32
"""Maximum number of codes whose tokens a reply shows; each adds a number for every token of the context."""
METHOD = choice("auto", "scan", "certified", "quick")
SEARCH = (
    dataclasses.replace(QUERY, doc="The context to search candidates for."),
    CONTEXT,
    Field("top_n", COUNT, "Maximum number of results.", 10),
    Field(
        "method",
        METHOD,
        "`scan` scores every candidate; `certified` finds the same candidates without scoring all, with a "
        "proof; `auto` chooses the faster of the two; `quick` is approximate.",
        "auto",
    ),
    Field("return_documents", FLAG, "Repeat each candidate's text in its result.", True),
    RAW,
    TRUNCATE,
)
EXPLAIN = (
    QUERY,
    CONTEXT,
    Field("document", TEXT, "The candidate whose score is explained.", example="which trail did you take?"),
    Field("top", COUNT, f"Codes whose tokens are shown, the largest first; {MOST_READS} at most.", 5),
    TRUNCATE,
)
ADD = (
    Field("documents", DOCUMENTS, "Candidates to add; those already in the index are skipped."),
    TRUNCATE,
)
REMOVE = (
    Field("ids", IDS, "Ids of candidates, the `index` of search results."),
    Field("documents", DOCUMENTS, "Texts of candidates to remove, instead of `ids`."),
)


def turns_of(values: Mapping[str, Any]) -> list[str]:
    """The turns of the context in a body, from ``query`` or ``context``.

    Raises:
        Problem: both or neither are given, or the context is empty.
    """
    query, context = values["query"], values["context"]
    if query is not None and context is not None:
        raise Problem(422, "`query` and `context`: give one of them")
    if query is not None:
        if not query:
            raise Problem(400, "`query`: is empty", "Empty")
        return [query]
    if context is None:
        raise Problem(422, "`query`: missing; expected a text (or `context`, the turns of a conversation)")
    if not any(context):
        raise Problem(400, "`context`: is empty; expected at least one turn", "Empty")
    return context


def listed(values: Mapping[str, Any], name: str) -> list[str]:
    """A required list of texts; a single text becomes a list.

    Raises:
        Problem: 422 if it is missing, 400 if it is empty.
    """
    found = values[name]
    if found is None:
        raise Problem(422, f"`{name}`: missing; expected a list of texts")
    if isinstance(found, str):
        found = [found]
    if not found:
        raise Problem(400, f"`{name}`: is empty; expected at least one text", "Empty")
    return found


@dataclasses.dataclass(frozen=True)
class Usage:
    """The number of tokens of a request, and warnings.

    Attributes:
        tokens: number of tokens of contexts and candidates, each counted once.
        warnings: lines about truncated texts.
    """

    tokens: int
    warnings: list[str]

    def body(self) -> dict[str, int]:
        """``usage`` in OpenAI's format."""
        return {"prompt_tokens": self.tokens, "total_tokens": self.tokens}


def tei_results(
    order: Sequence[int], scores: np.ndarray, texts: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The reply of text-embeddings-inference, best first.

    >>> tei_results([1, 0], np.array([0.25, 0.5]), None)
    [{'index': 1, 'score': 0.5}, {'index': 0, 'score': 0.25}]
    """
    results: list[dict[str, Any]] = [{"index": i, "score": float(scores[i])} for i in order]
    if texts is not None:
        for result in results:
            result["text"] = texts[result["index"]]
    return results


def cohere_results(
    order: Sequence[int], scores: np.ndarray, texts: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The results in Cohere's format, best first; without texts the key ``document`` is left out."""
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": float(scores[i])} for i in order]
    if texts is not None:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    return results


def new_id() -> str:
    """A new id for a reply."""
    return str(uuid.uuid4())


def meta(version: str, usage: Usage, **more: Any) -> dict[str, Any]:
    """``meta`` in Cohere's format; ``more`` is added."""
    found: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": 0},
        "tokens": {"input_tokens": usage.tokens},
        **more,
    }
    if usage.warnings:
        found["warnings"] = usage.warnings
    return found


def score_body(scores: np.ndarray, model: str, usage: Usage) -> dict[str, Any]:
    """The reply of /score in vLLM's format, in the order of the input."""
    data = [{"index": i, "object": "score", "score": float(score)} for i, score in enumerate(scores)]
    return {
        "id": new_id(),
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": usage.body(),
    }


def explained_body(found: Explanation) -> dict[str, Any]:
    """The parts of a score: contributions add up to it; ``reads`` has the attention of the largest codes."""
    products, weights = found.products.tolist(), found.weights.tolist()
    codes = [
        {"code": i, "weight": weight, "product": product, "contribution": found.scale * weight * product}
        for i, (weight, product) in enumerate(zip(weights, products, strict=True))
    ]
    reads = [
        {"code": int(code), "attention": row.tolist()}
        for code, row in zip(found.vectors, found.reads, strict=True)
    ]
    return {
        "score": found.score,
        "scale": found.scale,
        "codes": codes,
        "tokens": found.tokens,
        "reads": reads,
    }


def embeddings_body(vectors: np.ndarray, encoding: str, model: str, usage: Usage) -> dict[str, Any]:
    """The reply of /v1/embeddings in OpenAI's format."""
    little = np.ascontiguousarray(vectors, "<f4")
    rows = [
        base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist() for row in little
    ]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": model, "usage": usage.body()}
