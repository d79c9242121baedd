"""The API's description (OpenAPI 3.1), generated from the tables that check requests."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from polyjax.serve import shapes
from polyjax.serve.fields import Field
from polyjax.version import __version__


@dataclasses.dataclass(frozen=True)
class Operation:
    """An HTTP method of a route, and its description.

    Attributes:
        method: HTTP method, in upper case.
        path: path of the route.
        handler: name of the Python method that serves it.
        summary: one line for the description.
        fields: fields of the body; None without a body.
        required: fields that are always required.
    """

    method: str
    path: str
    handler: str
    summary: str
    fields: Sequence[Field] | None = None
    required: Sequence[str] = ()


OPERATIONS = (
    Operation("POST", "/rerank", "ranking.rerank", "Rank candidates (TEI, vLLM, Infinity).", shapes.RERANK),
    Operation(
        "POST",
        "/v1/rerank",
        "ranking.rerank_v1",
        "Rank candidates (Cohere 1, Jina).",
        shapes.COHERE,
        ("documents",),
    ),
    Operation(
        "POST",
        "/v2/rerank",
        "ranking.rerank_v2",
        "Rank candidates (Cohere 2).",
        shapes.COHERE,
        ("documents",),
    ),
    Operation(
        "POST", "/score", "ranking.score", "Score pairs in the order of the input (vLLM).", shapes.SCORE
    ),
    Operation(
        "POST", "/v1/score", "ranking.score", "Score pairs in the order of the input (vLLM).", shapes.SCORE
    ),
    Operation(
        "POST", "/search", "searching.search", "The best candidates of the server's index.", shapes.SEARCH
    ),
    Operation(
        "POST",
        "/explain",
        "ranking.explain",
        "What a poly-encoder's score is made of: the share of each code, and the tokens that it reads.",
        shapes.EXPLAIN,
        ("document",),
    ),
    Operation("POST", "/embed", "embedding.embed", "Vectors of texts (TEI).", shapes.EMBED, ("inputs",)),
    Operation(
        "POST",
        "/v1/embeddings",
        "embedding.embeddings",
        "Vectors of texts (OpenAI).",
        shapes.EMBEDDINGS,
        ("input",),
    ),
    Operation("GET", "/index", "searching.about", "How many candidates the index holds."),
    Operation("POST", "/index", "searching.add", "Add candidates to the index.", shapes.ADD, ("documents",)),
    Operation("DELETE", "/index", "searching.remove", "Remove candidates from the index.", shapes.REMOVE),
    Operation("GET", "/info", "about.info", "The model and the limits (TEI)."),
    Operation("GET", "/v1/models", "about.models", "The model (OpenAI)."),
    Operation("GET", "/health", "about.health", "200 where requests are taken, 503 otherwise; needs no key."),
    Operation("GET", "/metrics", "about.metrics", "Metrics for Prometheus."),
)
"""All routes of the API; the application is built from this table."""

ERRORS = {
    "400": "The body is empty or not JSON, or there is nothing to do.",
    "401": "The API key is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body, or the number of its texts, is too large.",
    "415": "The body is no plain JSON.",
    "422": "A field is missing or wrong; the message names it.",
    "424": "The model failed.",
    "429": "The server is overloaded; Retry-After says when to try again.",
    "503": "The server is not ready, or is shutting down.",
    "504": "There was no answer within the server's timeout.",
}


def description() -> dict[str, Any]:
    """The OpenAPI description as JSON data; it needs no key, so it does not name the model."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "polyjax", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
    }


_ERROR = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("error", "error_type", "message", "detail")},
}


def _operation(operation: Operation) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    few = ("401", "503") if operation.fields is None else tuple(ERRORS)
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.handler}{operation.path}".replace("/", "_").replace(".", "_"),
        "responses": {
            "200": {"description": "The answer."},
            **{status: {"description": ERRORS[status], "content": error} for status in few},
        },
    }
    if operation.fields is not None:
        example = {f.name: f.example for f in operation.fields if f.example is not None}
        schema = {
            "type": "object",
            "properties": {field.name: _schema(field) for field in operation.fields},
            "required": list(operation.required),
        }
        content = {"application/json": {"schema": schema, "example": example}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _schema(field: Field) -> dict[str, Any]:
    found = {**field.kind.schema, "description": field.doc}
    return found if field.default is None else found | {"default": field.default}
