"""Routes that score the candidates in a request."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polyjax.serve import shapes
from polyjax.serve.model import Cut
from polyjax.serve.problems import Problem, failed, invalid
from polyjax.serve.service import Service
from polyjax.serve.work import Call, Scoring


class RankingRoutes:
    """``/rerank``, ``/score`` and ``/explain``, in the formats of several servers.

    Args:
        service: the models and the queue.
    """

    def __init__(self, service: Service):
        self._service = service

    async def rerank(self, request: Request) -> Response:
        """POST /rerank: a reply as in text-embeddings-inference (``texts``) or Cohere (``documents``)."""
        values = await self._service.fields(request, shapes.RERANK)
        if values["texts"] is not None and values["documents"] is not None:
            raise Problem(422, "`texts` and `documents`: give one of them")
        if values["texts"] is None:
            if values["documents"] is None:
                raise Problem(422, "`texts`: missing; expected a list of texts (or `documents`)")
            return await self._cohere(request, values, version="1")
        texts = shapes.listed(values, "texts")
        order, scores, _, headers = await self._ranked(request, values, texts, "texts")
        shown = texts if values["return_text"] else None  # all of them: this format has no `top_n`
        return JSONResponse(shapes.tei_results(order, scores, shown), headers=headers)

    async def rerank_v1(self, request: Request) -> Response:
        """POST /v1/rerank: the format of Cohere's first version, Jina, vLLM and Infinity."""
        return await self._cohere(request, await self._service.fields(request, shapes.COHERE), version="1")

    async def rerank_v2(self, request: Request) -> Response:
        """POST /v2/rerank: the format of Cohere's second version, whose results never include texts."""
        return await self._cohere(request, await self._service.fields(request, shapes.COHERE), version="2")

    async def _cohere(self, request: Request, values: dict[str, Any], *, version: str) -> Response:
        texts = shapes.listed(values, "documents")
        order, scores, usage, headers = await self._ranked(request, values, texts, "documents")
        order = order[: values["top_n"]]
        with_texts = values["return_documents"] and version == "1"
        body = {
            "id": shapes.new_id(),
            "model": self._service.name,
            "results": shapes.cohere_results(order, scores, texts if with_texts else None),
            "meta": shapes.meta(version, usage),
            "usage": usage.body(),
        }
        return JSONResponse(body, headers=headers)

    async def _ranked(
        self, request: Request, values: dict[str, Any], texts: Sequence[str], name: str
    ) -> tuple[list[int], np.ndarray, shapes.Usage, dict[str, str]]:
        """Indices of the texts, best first, the score of each text, the usage, and headers."""
        turns = shapes.turns_of(values)
        pairs = [(0, place) for place in range(len(texts))]
        raw, usage, headers = await self._scores(request, values, [turns], texts, pairs, name)
        # Sort by the model's own scores, because probabilities near 0 and 1 can tie for different scores.
        order = np.argsort(-raw, kind="stable").tolist()
        return order, self._shown(raw, values), usage, headers

    def _shown(self, raw: np.ndarray, values: dict[str, Any]) -> np.ndarray:
        """Scores in the requested form: the ranker's own, or probabilities."""
        service = self._service
        return service.model.activated(raw) if values["raw_scores"] else service.score_map(raw)

    async def score(self, request: Request) -> Response:
        """POST /score and /v1/score: scores of pairs, 1:1, 1:n or n:n, in the order of the input."""
        values = await self._service.fields(request, shapes.SCORE)
        queries, documents = _named(values, "queries", "text_1"), _named(values, "documents", "text_2")
        n, m = len(queries), len(documents)
        if n not in (1, m):
            raise Problem(
                422, f"`queries`: expected one, or as many as the {m} documents, got {n}; pairs are scored"
            )
        if "" in queries:
            raise Problem(400, f"`queries[{queries.index('')}]`: is empty", "Empty")
        pairs = [(place if n > 1 else 0, place) for place in range(m)]
        contexts = [[query] for query in queries]
        raw, usage, headers = await self._scores(request, values, contexts, documents, pairs, "documents")
        scores = self._shown(raw, values)
        return JSONResponse(shapes.score_body(scores, self._service.name, usage), headers=headers)

    async def explain(self, request: Request) -> Response:
        """POST /explain: the parts of a bi- or poly-encoder's score."""
        service, model = self._service, self._service.model
        values = await service.fields(request, shapes.EXPLAIN)
        if not model.explains:
            raise Problem(422, f"the score of this {model.arch}-encoder has no parts to explain")
        turns, text, top = shapes.turns_of(values), values["document"], values["top"]
        if text is None:
            raise Problem(422, "`document`: missing; expected a text")
        if top > shapes.MOST_READS:
            raise invalid("top", f"at most {shapes.MOST_READS}", top)
        service.check_sizes(context=turns, document=[text])
        async with service.visit(request, 1) as visit:
            rows, usage = await visit.tokenise(model, [turns], [text], truncate=values["truncate"])
            (context,), (candidate,) = rows.contexts, rows.candidates
            call = Call(model, lambda: model.explain(context, candidate, top=top), **visit.times)
            found = await visit.result(call)
            headers = visit.timed()
        if not np.isfinite(found.score):
            raise failed()
        body = {
            "id": shapes.new_id(),
            "model": service.name,
            "relevance_score": float(service.score_map(np.array([found.score]))[0]),
            **shapes.explained_body(found),
            "meta": shapes.meta("2", usage),
            "usage": usage.body(),
        }
        return JSONResponse(body, headers=headers)

    async def _scores(
        self,
        request: Request,
        values: dict[str, Any],
        contexts: Sequence[Sequence[str]],
        texts: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        name: str,
    ) -> tuple[np.ndarray, shapes.Usage, dict[str, str]]:
        """The model's scores of pairs before activation, float32 [n], the usage, and headers."""
        service = self._service
        service.check_sizes(**{name: texts, "context": [turn for turns in contexts for turn in turns]})
        cut = Cut(values.get("max_tokens_per_doc"), values["truncation_direction"])
        async with service.visit(request, len(texts)) as visit:
            rows, usage = await visit.tokenise(
                service.model, contexts, texts, pairs=pairs, truncate=values["truncate"], cut=cut
            )
            job = Scoring(service.model, rows, pairs, **visit.times)
            return await visit.result(job), usage, visit.timed()


def _named(values: dict[str, Any], name: str, other: str) -> list[str]:
    """The texts in a field that has two names."""
    if values[name] is not None and values[other] is not None:
        raise Problem(422, f"`{name}` and `{other}` are the same; give one of them")
    if values[name] is None and values[other] is None:
        raise Problem(422, f"`{name}` (or `{other}`): missing; expected a list of texts")
    return shapes.listed(values, other if values[name] is None else name)
