"""Routes that return embeddings of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polyjax.serve import shapes
from polyjax.serve.model import Cut
from polyjax.serve.problems import Problem, invalid
from polyjax.serve.service import Service
from polyjax.serve.work import Embedding


class EmbeddingRoutes:
    """``/embed`` and ``/v1/embeddings``.

    Args:
        service: the models and the queue.
    """

    def __init__(self, service: Service):
        self._service = service

    async def embed(self, request: Request) -> Response:
        """POST /embed: a list of vectors, as in text-embeddings-inference, even for a single text."""
        values = await self._service.fields(request, shapes.EMBED)
        texts = shapes.listed(values, "inputs")
        vectors, _, headers = await self._vectors(
            request, texts, values["prompt_name"], values, values["truncation_direction"]
        )
        if values["normalize"]:
            vectors = _unit(vectors)
        return JSONResponse(vectors.tolist(), headers=headers)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings: vectors in OpenAI's format."""
        values = await self._service.fields(request, shapes.EMBEDDINGS)
        texts, dim = shapes.listed(values, "input"), self._service.model.dim
        if values["dimensions"] not in (None, dim):
            raise invalid("dimensions", f"{dim}, the model's", values["dimensions"])
        vectors, usage, headers = await self._vectors(request, texts, values["input_type"], values, "Right")
        body = shapes.embeddings_body(_unit(vectors), values["encoding_format"], self._service.name, usage)
        return JSONResponse(body, headers=headers)

    async def _vectors(
        self, request: Request, texts: Sequence[str], side: str, values: dict[str, Any], direction: Any
    ) -> tuple[np.ndarray, shapes.Usage, dict[str, str]]:
        service, model = self._service, self._service.model
        if not model.is_dual:
            raise Problem(422, "a cross-encoder has no embedding of a text: it reads pairs; use /rerank")
        if side == "query" and model.n_vectors != 1:
            raise Problem(
                422,
                "a poly-encoder has no embedding of a context, but several vectors; use /rerank or /search, "
                "or ask for a candidate's (`document`)",
            )
        if "" in texts:
            raise Problem(400, f"text {texts.index('')} is empty", "Empty")
        service.check_sizes(inputs=texts)
        contexts = [[text] for text in texts] if side == "query" else []
        candidates = [] if contexts else texts
        async with service.visit(request, len(texts)) as visit:
            rows, usage = await visit.tokenise(
                model, contexts, candidates, truncate=values["truncate"], cut=Cut(None, direction)
            )
            return await visit.result(Embedding(model, rows, **visit.times)), usage, visit.timed()


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [n, d] to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
