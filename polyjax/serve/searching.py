"""Routes that search and change the server's index."""

import asyncio
import functools
import logging
import time
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polyjax.data.identity import text_key
from polyjax.errors import InputError
from polyjax.serve import shapes
from polyjax.serve.index import LiveIndex, RebuiltIndex, UnknownCandidate
from polyjax.serve.problems import Problem, invalid, overloaded, unavailable
from polyjax.serve.service import Service, Visit
from polyjax.serve.work import Scoring, Searching

log = logging.getLogger("polyjax.serve")


class SearchRoutes:
    """``/search`` and ``/index``.

    Args:
        service: the models, the queue and the index.
    """

    def __init__(self, service: Service):
        self._service = service
        self._changes, self._waiting = asyncio.Lock(), 0

    async def search(self, request: Request) -> Response:
        """POST /search: the best candidates in the index, in the format of Cohere's results."""
        service = self._service
        values = await service.fields(request, shapes.SEARCH)
        index, turns, most = self._index(), shapes.turns_of(values), service.config.max_top_n
        if values["top_n"] > most:
            raise invalid("top_n", f"at most {most}", values["top_n"])
        service.check_sizes(context=turns)
        again = service.reranker is not None
        n = max(values["top_n"], service.config.rerank_top) if again else values["top_n"]
        async with service.visit(request, n if again else 1) as visit:
            began = time.perf_counter()
            rows, usage = await visit.tokenise(service.model, [turns], truncate=values["truncate"])
            search = functools.partial(index.search, top_n=n, method=values["method"])
            found = await visit.result(Searching(service.model, rows, search, **visit.times))
            results = [(one.id, one.text, one.score) for one in found]
            if again and results:
                results, more = await self._reranked(visit, turns, results, truncate=values["truncate"])
                usage = shapes.Usage(usage.tokens + more.tokens, usage.warnings + more.warnings)
            results = results[: values["top_n"]]
            seconds = time.perf_counter() - began
            headers = visit.timed()
        raw = np.array([score for _, _, score in results], np.float32)
        last = service.reranker or service.model
        to_probability = service.reranker_map if again else service.score_map
        scores = last.activated(raw) if values["raw_scores"] else to_probability(raw)
        body = {
            "id": shapes.new_id(),
            "model": service.name,
            "results": [
                {"index": id_, "relevance_score": float(score)}
                | ({"document": {"text": text}} if values["return_documents"] else {})
                for (id_, text, _), score in zip(results, scores, strict=True)
            ],
            "meta": shapes.meta(
                "2",
                usage,
                method=_method(found),
                certified=found.certified and not again,
                rescored=float(found.rescored),
                rank=found.rank,
                reranked=len(found) if again else 0,
                candidates=len(index),
                milliseconds=round(1e3 * seconds, 2),
            ),
            "usage": usage.body(),
        }
        return JSONResponse(body, headers=headers)

    async def _reranked(
        self,
        visit: Visit,
        turns: list[str],
        results: list[tuple[int, str, float]],
        *,
        truncate: bool | None,
    ) -> tuple[list[tuple[int, str, float]], shapes.Usage]:
        """Search results, re-ranked, and what the re-ranker read."""
        model = self._service.reranker
        assert model is not None
        texts = [text for _, text, _ in results]
        pairs = [(0, place) for place in range(len(texts))]
        rows, usage = await visit.tokenise(
            model, [turns], texts, pairs=pairs, truncate=truncate, are_stored=True
        )
        scores = await visit.result(Scoring(model, rows, pairs, **visit.times))
        order = np.argsort(-scores, kind="stable").tolist()
        warnings = [f"the re-ranker: {warning}" for warning in usage.warnings]
        ranked = [(*results[i][:2], float(scores[i])) for i in order]
        return ranked, shapes.Usage(usage.tokens, warnings)

    async def about(self, request: Request) -> Response:
        """GET /index: the number of candidates, their dtype, and whether changes are allowed."""
        return JSONResponse(self._state(self._index()))

    async def add(self, request: Request) -> Response:
        """POST /index: add candidates."""
        index = self._changeable()
        values = await self._service.fields(request, shapes.ADD)
        texts = shapes.listed(values, "documents")
        self._service.check_sizes(documents=texts)
        for i, text in enumerate(texts):
            if not text_key(text):
                raise Problem(400, f"`documents[{i}]`: is empty", "Empty")
        async with self._service.visit(request, 1) as visit:
            _, usage = await visit.tokenise(self._service.model, [], texts, truncate=values["truncate"])
            headers = visit.timed()
        added, ids = await self._change(request, lambda: index.add(texts))
        body = {"added": added, "ids": ids, **self._state(index)}
        return JSONResponse(body | ({"warnings": usage.warnings} if usage.warnings else {}), headers=headers)

    async def remove(self, request: Request) -> Response:
        """DELETE /index: remove candidates by id or by text."""
        index = self._changeable()
        values = await self._service.fields(request, shapes.REMOVE)
        ids, texts = values["ids"], values["documents"]
        if (ids is None) == (texts is None):
            raise Problem(422, "`ids` and `documents`: give one of them")
        if not (ids or texts):
            raise Problem(400, "there is nothing to remove", "Empty")
        self._service.check_sizes(**({"documents": texts} if texts else {"ids": list(map(str, ids))}))
        removed = await self._change(request, lambda: index.remove(ids=ids or (), texts=texts or ()))
        return JSONResponse({"removed": removed, **self._state(index)})

    async def _change(self, request: Request, function: Any) -> Any:
        """Change the index in another thread, one change at a time; searches continue in the meantime.

        Raises:
            Problem: too many changes wait (429), or the change did not begin in time (504).
            ConnectionError: the client disconnected before its change began.
        """
        config = self._service.config
        if self._waiting >= config.max_concurrent_requests:
            raise overloaded(1.0, "too many changes of the index wait; try again later")
        self._waiting += 1
        try:
            left = request.scope["state"]["arrived"] + config.timeout - time.monotonic()
            await asyncio.wait_for(self._changes.acquire(), max(left, 0.001))
        except TimeoutError:
            raise Problem(504, f"no answer within {config.timeout:g} s", "Overloaded") from None
        finally:
            self._waiting -= 1
        try:
            if await request.is_disconnected():
                raise ConnectionError("the client went away")
            self._service.check_open()
            self._service.changing += 1
            try:
                return await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(function)))
            except UnknownCandidate as error:
                raise Problem(404, str(error), "NotFound") from None
            except RebuiltIndex as error:
                log.error(str(error))
                raise unavailable(str(error), 60.0) from None
            except (InputError, OSError) as error:  # another process is writing, the disk is full, ...
                log.error("the index was not changed", exc_info=error)
                raise unavailable("the index cannot be changed now; the server's log says why") from None
            finally:
                self._service.changing -= 1
                self._service.metrics.candidates.set(len(self._index()))
        finally:
            self._changes.release()

    def _index(self) -> LiveIndex:
        if self._service.index is None:
            raise Problem(404, "this server has no index; start it with --index", "NotFound")
        return self._service.index

    def _changeable(self) -> LiveIndex:
        index = self._index()
        if not self._service.config.allow_changes:
            raise Problem(403, "changes are off; start the server with --allow-changes", "Forbidden")
        return index

    def _state(self, index: LiveIndex) -> dict[str, Any]:
        return {
            "candidates": len(index),
            "dtype": index.dtype,
            "allow_changes": self._service.config.allow_changes,
        }


def _method(found: Any) -> str:
    """The search method that was used: ``scan``, ``certified`` or ``quick``."""
    if found.rank is None:
        return "scan"
    return "certified" if found.certified else "quick"
