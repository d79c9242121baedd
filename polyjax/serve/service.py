"""Shared by the routes: the models, the queue, and the visit of a request to them."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request

from polyjax.inference.score_map import SIGMOID, ScoreMap
from polyjax.ranker import Ranker
from polyjax.serve.bodies import Bodies
from polyjax.serve.cutting import refusal_of, warnings_of
from polyjax.serve.fields import Field, read_fields
from polyjax.serve.index import LiveIndex
from polyjax.serve.model import AS_TRAINED, Cut, Model, Rows
from polyjax.serve.problems import Problem, unavailable
from polyjax.serve.settings import ServeConfig
from polyjax.serve.shapes import Usage
from polyjax.serve.telemetry import Metrics
from polyjax.serve.work import Job
from polyjax.serve.worker import Observed, Ticket, Worker

log = logging.getLogger("polyjax.serve")


class Service:
    """A ranker with its limits, queue, metrics and state.

    Args:
        ranker: the ranker to serve.
        config: limits.
        name: name of the model in replies.
        index: the index to search; None for none.
        reranker: re-ranks search results; None for none.
        score_map: map from scores to probabilities; None for the sigmoid.
        reranker_map: likewise, for the re-ranker.

    Attributes:
        ready: whether every shape is compiled.
        draining: whether new requests are refused because the server is shutting down.
        failure: why the server could not start; None if it could.
        calibrated: whether scores of candidates in a request are mapped to probabilities.
        search_calibrated: likewise, scores of search results, which the re-ranker gives if there is one.
        changing: number of changes of the index in progress.
    """

    def __init__(
        self,
        ranker: Ranker,
        config: ServeConfig,
        *,
        name: str,
        index: LiveIndex | None,
        reranker: Ranker | None,
        score_map: ScoreMap | None,
        reranker_map: ScoreMap | None,
    ):
        self.config, self.name, self.index = config, config.served_model_name or name, index
        self.model = Model(ranker, tokens_per_batch=config.max_batch_tokens)
        self.reranker = (
            None if reranker is None else Model(reranker, tokens_per_batch=config.max_batch_tokens)
        )
        self.score_map, self.reranker_map = score_map or SIGMOID, reranker_map or SIGMOID
        self.calibrated = score_map is not None
        self.search_calibrated = (score_map if reranker is None else reranker_map) is not None
        self.metrics = Metrics()
        self.worker = Worker(config, Observed(batch=self.metrics.batch))
        self.bodies = Bodies(
            limit=config.payload_limit, timeout=config.body_timeout, depth=config.max_json_depth
        )
        self.ready = self.draining = False
        self.failure: str | None = None
        self.changing = 0
        self.started = int(time.time())

    def compile(self) -> None:
        """Compile every shape that a request can need; call it before any request."""
        began, programs = time.monotonic(), 0
        for model in (self.model, self.reranker):
            for _ in () if model is None else model.compile():
                programs += 1
                if self.draining:
                    return
        if self.index is not None:
            programs += self.index.compile()
            self.metrics.candidates.set(len(self.index))
        self.metrics.programs.set(programs)
        fields = {"programs": programs, "seconds": round(time.monotonic() - began, 1)}
        log.info("compiled", extra={"fields": fields})

    @property
    def busy(self) -> bool:
        """Whether an admitted request or a change of the index is not finished."""
        return bool(self.worker.requests or self.changing)

    def check_open(self) -> None:
        """Raise Problem (503) unless the server accepts requests."""
        if self.failure is not None:
            raise unavailable("the server could not start; its log says why", 60.0)
        self.worker.check()
        if self.draining:
            raise unavailable("the server is shutting down")
        if not self.ready:
            raise unavailable("the model is being compiled; try again soon", 2.0)

    async def fields(self, request: Request, fields: Sequence[Field]) -> dict[str, Any]:
        """The fields of a request's body.

        Raises:
            Problem: the server does not accept requests, or see ``Bodies.json`` and ``read_fields``.
        """
        self.check_open()
        values = read_fields(fields, await self.bodies.json(request))
        if self.config.log_texts:
            given = {name: value for name, value in values.items() if value is not None}
            request.scope["state"]["notes"]["body"] = given
        return values

    def check_sizes(self, **texts: Sequence[str]) -> None:
        """Raise Problem (413) if a request has too many texts or characters; arguments are its fields."""
        config, characters = self.config, 0
        for name, some in texts.items():
            if len(some) > config.max_client_batch_size:
                most = f"the most are {config.max_client_batch_size:,}"
                raise Problem(413, f"`{name}`: {len(some):,} texts are too many for a request; {most}")
            characters += sum(map(len, some))
        if characters > config.max_characters:
            most = f"the most are {config.max_characters:,}"
            raise Problem(413, f"{characters:,} characters are too many for a request; {most}")

    @contextlib.asynccontextmanager
    async def visit(self, request: Request, texts: int) -> AsyncIterator["Visit"]:
        """A context in which a request has a place in the queue.

        Args:
            request: a request whose body was read.
            texts: number of its texts, its weight in the queue.

        Raises:
            Problem: 429, the queue is full; or 503, the server does not accept requests.
        """
        self.check_open()
        route = request.scope["path"]
        self.metrics.requests.labels(route=route).inc()
        admitted = time.monotonic()
        ticket = self.worker.admit(texts, arrived=request.scope["state"]["arrived"])
        self.metrics.queue_size.set(self.worker.requests)
        gone = asyncio.ensure_future(_gone(request))
        visit = Visit(self, request, ticket, gone)
        try:
            yield visit
            self.metrics.successes.labels(route=route).inc()
        finally:
            gone.cancel()
            self.worker.leave(ticket)
            self.metrics.queue_size.set(self.worker.requests)
            self.metrics.durations.observe(time.monotonic() - admitted)
            visit.note()


async def _gone(request: Request) -> None:
    """Return when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Visit:
    """One request, from its admission to its reply.

    Args:
        service: the service.
        request: the client's request.
        ticket: its place in the queue.
        gone: a future that is done when the client disconnects.

    Attributes:
        headers: headers for the reply.
    """

    def __init__(self, service: Service, request: Request, ticket: Ticket, gone: "asyncio.Future[None]"):
        self._service, self._request, self._ticket, self._gone = service, request, ticket, gone
        self.headers: dict[str, str] = {}
        self._tokenisation = self._queue = self._inference = 0.0
        self._cut = 0

    async def tokenise(
        self,
        model: Model,
        contexts: Sequence[Sequence[str]],
        candidates: Sequence[str] = (),
        *,
        pairs: Sequence[tuple[int, int]] = (),
        truncate: bool | None,
        cut: Cut = AS_TRAINED,
        are_stored: bool = False,
    ) -> tuple[Rows, Usage]:
        """The token ids of a request's texts, and the usage with warnings about truncated texts.

        Args:
            model: the model whose tokenizer is used.
            contexts: turns of each context.
            candidates: texts.
            pairs: indices of contexts and candidates that are scored together.
            truncate: True truncates too long texts, False refuses them; None as configured for the server.
            cut: truncation of candidates.
            are_stored: whether the candidates are the index's own, which are truncated in any case.

        Raises:
            Problem: 422; a text cannot be tokenised, or is too long and must not be truncated. 504; the
                deadline has passed.
            ConnectionError: the client disconnected.
        """
        began = time.monotonic()
        try:
            characters = sum(map(len, candidates)) + sum(len(turn) for turns in contexts for turn in turns)
            rows = await self._service.worker.tokenise(
                lambda: model.tokenise(contexts, candidates, cut, pairs),
                characters,
                self._gone,
                self._ticket.deadline,
            )
        except (Problem, ConnectionError):
            raise
        except Exception as error:
            log.error("tokenising failed", exc_info=error)
            raise Problem(422, "a text cannot be tokenised", "Tokenizer") from None
        self._tokenisation += time.monotonic() - began
        found = warnings_of(model, rows, cut)
        allowed = self._service.config.auto_truncate if truncate is None else truncate
        own = dataclasses.replace(rows, cut_candidates=[]) if are_stored else rows
        if not allowed and (own.cut_contexts or own.cut_candidates):
            raise Problem(422, refusal_of(model, own))
        if rows.cut_contexts:
            self.headers["x-truncated-queries"] = str(rows.cut_contexts)
        if rows.cut_candidates:
            self.headers["x-truncated-texts"] = str(len(rows.cut_candidates))
        n_cut = rows.cut_contexts + len(rows.cut_candidates)
        self._cut += n_cut
        self._service.metrics.truncated.inc(n_cut)
        return rows, Usage(rows.tokens, found)

    async def result(self, job: Job) -> Any:
        """The result of a job.

        Raises:
            Problem: see ``Worker.result``.
        """
        waited_from = time.monotonic()
        found = await self._service.worker.result(job, self._gone)
        self._queue += (job.began or waited_from) - waited_from
        self._inference += time.monotonic() - (job.began or waited_from)
        return found

    @property
    def times(self) -> dict[str, float]:
        """Arrival and deadline of the request, in seconds on the monotonic clock."""
        return {"arrived": self._ticket.arrived, "deadline": self._ticket.deadline}

    def timed(self) -> dict[str, str]:
        """Headers of the reply, including times in milliseconds."""
        times = {
            "x-queue-time": self._queue,
            "x-inference-time": self._inference,
            "x-tokenization-time": self._tokenisation,
        }
        return self.headers | {name: f"{1e3 * seconds:.2f}" for name, seconds in times.items()}

    def note(self) -> None:
        """Add the times of the request to the metrics and to its log line."""
        metrics = self._service.metrics
        metrics.queue_times.observe(self._queue)
        metrics.inference_times.observe(self._inference)
        metrics.tokenisation_times.observe(self._tokenisation)
        self._request.scope["state"]["notes"] |= {
            "texts": self._ticket.texts,
            "cut": self._cut,
            "queue_ms": round(1e3 * self._queue, 2),
            "inference_ms": round(1e3 * self._inference, 2),
        }
