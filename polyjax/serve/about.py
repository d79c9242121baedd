"""Routes about the server: its model, its health, its metrics."""

from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polyjax.serve.openapi import description
from polyjax.serve.problems import Problem
from polyjax.serve.service import Service
from polyjax.version import __version__

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the pages: no resources from other origins, no inline scripts or styles."""
FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
}
"""Files of the pages, by path."""


class AboutRoutes:
    """``/info``, ``/health``, ``/metrics`` and the pages.

    Args:
        service: the service that they describe.
    """

    def __init__(self, service: Service):
        self._service = service
        folder = resources.files("polyjax.serve") / "page"
        self._files = {path: (folder / name).read_bytes() for path, (name, _) in FILES.items()}
        self._description = description()

    async def info(self, request: Request) -> Response:
        """GET /info: the reply of text-embeddings-inference, with an object ``polyjax`` for the page."""
        service, model, config = self._service, self._service.model, self._service.config
        label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        body: dict[str, Any] = {
            "model_id": service.name,
            "model_sha": None,
            "model_dtype": model.dtype,
            "model_type": {"reranker": label},
            "max_concurrent_requests": config.max_concurrent_requests,
            "max_input_length": model.limit("candidate" if model.is_dual else "pair"),
            "max_batch_tokens": model.tokens_per_batch,
            "max_batch_requests": None,
            "max_client_batch_size": config.max_client_batch_size,
            "auto_truncate": config.auto_truncate,
            "tokenization_workers": 2,
            "version": __version__,
            "polyjax": {
                "arch": model.arch,
                "max_context_tokens": model.limit("context"),
                "max_turns": model.max_turns,
                "calibrated": service.calibrated,
                "search_calibrated": service.search_calibrated,
                "reranker": service.reranker is not None,
                "candidates": None if service.index is None else len(service.index),
                "allow_changes": config.allow_changes,
                "explains": model.explains,
                "max_top_n": config.max_top_n,
            },
        }
        return JSONResponse(body)

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the model, as a list in OpenAI's format."""
        model = {
            "id": self._service.name,
            "object": "model",
            "created": self._service.started,
            "owned_by": "polyjax",
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """GET /health: 200 if the server accepts requests, else 503."""
        self._service.check_open()
        return Response(status_code=200)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: the metrics in Prometheus' text format."""
        metrics = self._service.metrics
        return Response(metrics.page(), media_type=metrics.content_type)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: the API's description."""
        return JSONResponse(self._description)

    async def file(self, request: Request) -> Response:
        """GET / and the files of the pages."""
        path = request.scope["path"]
        if path not in self._files:
            raise Problem(404, "there is no such route; see /docs", "NotFound")
        headers = {
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        }
        return Response(self._files[path], media_type=FILES[path][1], headers=headers)
