"""The ASGI application: the routes of a ranker.

It uses Starlette, not FastAPI: the tables in ``shapes`` check requests, so pydantic is not needed.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polyjax.errors import InputError
from polyjax.inference.score_map import ScoreMap
from polyjax.ranker import Ranker
from polyjax.serve.about import FILES, AboutRoutes
from polyjax.serve.bodies import DRAINED
from polyjax.serve.embedding import EmbeddingRoutes
from polyjax.serve.gate import Gate, http_problem
from polyjax.serve.index import LiveIndex
from polyjax.serve.openapi import OPERATIONS
from polyjax.serve.ranking import RankingRoutes
from polyjax.serve.searching import SearchRoutes
from polyjax.serve.service import Service
from polyjax.serve.settings import ServeConfig

OPEN = frozenset({"/health", "/openapi.json", *FILES})
"""Paths that need no API key, because they reveal nothing about the model."""
EXPOSED = (
    *("x-request-id", "x-total-time", "x-queue-time", "x-inference-time", "x-tokenization-time"),
    *("x-truncated-texts", "x-truncated-queries", "retry-after"),
)
"""Headers that a page of another origin may read."""
Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("polyjax.serve")


def create_app(
    ranker: Ranker,
    *,
    config: ServeConfig | None = None,
    name: str = "polyjax",
    index: LiveIndex | None = None,
    reranker: Ranker | None = None,
    api_keys: Sequence[str] = (),
    score_map: ScoreMap | None = None,
    reranker_map: ScoreMap | None = None,
) -> Starlette:
    """An ASGI application that serves a ranker. ``/health`` replies 200 once all programs are compiled.

    Args:
        ranker: a bi-, poly- or cross-encoder.
        config: limits; None for the defaults.
        name: name of the model in replies.
        index: the index that ``/search`` uses; None for no search.
        reranker: another model, such as a cross-encoder, that re-ranks search results.
        api_keys: keys, one of which a request must carry; without any, requests need no key.
        score_map: map from scores to probabilities, from a run's model card; None for the sigmoid.
        reranker_map: likewise, for the re-ranker.

    Raises:
        InputError: the model cannot be served, or an argument is invalid.
    """
    config = config or ServeConfig()
    # Clients encode other characters of a header each in its own way.
    if any(not key or key != key.strip() or not (key.isascii() and key.isprintable()) for key in api_keys):
        raise InputError("api_keys", expected="keys of printable ASCII, without white space around them")
    if config.allow_changes and (index is None or not index.can_change):
        raise InputError("allow_changes", expected="an index that is kept in a folder")
    needed = max(config.max_top_n, config.rerank_top if reranker is not None else 0)
    if index is not None and index.max_top_n < needed:
        raise InputError(
            "index",
            expected=f"a LiveIndex with max_top_n={needed} or more, for which programs are compiled",
            got=index.max_top_n,
        )
    if reranker is not None and index is None:
        raise InputError("reranker", expected="an index, whose results it orders")
    service = Service(
        ranker,
        config,
        name=name,
        index=index,
        reranker=reranker,
        score_map=score_map,
        reranker_map=reranker_map,
    )
    most = (1 + DRAINED) * config.payload_limit
    gate = Middleware(Gate, keys=api_keys, open_paths=OPEN, metrics=service.metrics, most=most)
    middleware = [gate]
    if config.cors_allow_origin:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_allow_origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=list(EXPOSED),
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=_routes(service),
        middleware=middleware,
        exception_handlers={HTTPException: http_problem},
        lifespan=lambda app: _lifespan(service),
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _routes(service: Service) -> list[Route]:
    handlers = {
        "ranking": RankingRoutes(service),
        "embedding": EmbeddingRoutes(service),
        "searching": SearchRoutes(service),
        "about": AboutRoutes(service),
    }
    routes: dict[str, dict[str, str]] = {}
    for operation in OPERATIONS:
        routes.setdefault(operation.path, {})[operation.method] = operation.handler
    found = []
    for path, methods in routes.items():
        named = {method: handler.split(".") for method, handler in methods.items()}
        by_method = {method: getattr(handlers[group], name) for method, (group, name) in named.items()}
        found.append(Route(path, _dispatch(by_method), methods=list(by_method)))
    about = handlers["about"]
    found.append(Route("/openapi.json", about.openapi))
    return [*found, *(Route(path, about.file) for path in FILES)]


def _dispatch(by_method: dict[str, Handler]) -> Handler:
    """One handler for all methods of a path, so that the error for another method names all of them."""

    async def serve(request: Request) -> Response:
        return await by_method["GET" if request.method == "HEAD" else request.method](request)

    return serve


@contextlib.asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[None]:
    """Compile in the background, so that /health replies in the meantime; stop the threads at the end."""
    compiling = asyncio.create_task(_open(service))
    try:
        yield
    finally:
        service.draining = True
        await compiling
        await asyncio.to_thread(service.worker.stop)


async def _open(service: Service) -> None:
    log.info("compiling: /health replies 503 until this is done")
    try:
        await asyncio.to_thread(service.compile)
    except Exception as error:
        log.critical("the server cannot start", exc_info=error)
        service.failure = type(error).__name__
        return
    if service.draining:
        return
    service.worker.start()
    service.ready = True
    log.info("ready")
