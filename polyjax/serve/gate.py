"""Middleware of all requests: request id, API key, uniform errors, times, metrics and the log."""

import asyncio
import contextlib
import hmac
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyjax.serve.problems import CLOSE, Problem
from polyjax.serve.telemetry import Metrics, request_id

GONE = 499
"""Status that is logged if the client disconnected; no reply is sent."""
_ABSOLUTE = re.compile("^https?://[^/]*", re.IGNORECASE)
"""Origin of a request target in absolute form, which HTTP allows to any client."""
DRAIN_SECONDS = 2.0
"""Maximum time to receive the rest of a body whose request is refused."""
log = logging.getLogger("polyjax.serve")


class Body:
    """``receive`` of a request, which knows whether its body has ended.

    Args:
        receive: the server's.
        headers: of the request.
        most: bytes that are received in all before a refusal; with more announced, none are.
    """

    def __init__(self, receive: Receive, headers: Headers, most: int):
        announced = headers.get("content-length", "0")
        length = int(announced) if announced.isdecimal() else 0
        self._receive, self._most, self._size = receive, most, 0
        self._ended = length > most or not (length or "transfer-encoding" in headers)
        # Such a client waits for leave to send its body.
        self._ended |= headers.get("expect", "").lower() == "100-continue"

    async def __call__(self) -> Message:
        """The next message."""
        message = await self._receive()
        self._ended |= not message.get("more_body")  # also if the client disconnected
        self._size += len(message.get("body", b""))
        return message

    async def drain(self) -> None:
        """Discard the rest: most clients do not read a reply before they have sent the whole body."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended and self._size <= self._most:
                    await self()


class Gate:
    """ASGI middleware around the routes.

    Args:
        app: the routes.
        keys: keys, one of which a request must carry as a bearer token; without any, requests need no key.
        open_paths: paths that need no key.
        metrics: counts failed requests.
        most: bytes of a refused request's body that are received.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        open_paths: frozenset[str],
        metrics: Metrics,
        most: int,
    ):
        self._app, self._open, self._metrics, self._most = app, open_paths, metrics, most
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = _ABSOLUTE.sub("", scope["path"]) or "/"
        began, headers = time.perf_counter(), Headers(scope=scope)
        notes: dict[str, Any] = {"request_id": request_id(headers.get("x-request-id"))}
        scope.setdefault("state", {}).update(notes=notes, arrived=time.monotonic())
        status, body = 0, Body(receive, headers, self._most)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = notes["request_id"]
                out["x-total-time"] = _ms(time.perf_counter() - began)
                out["x-content-type-options"] = "nosniff"
                if out.get("connection") == "close":
                    await body.drain()
            await send(message)

        response: Response | None = None
        try:
            if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may believe either
                message = "the request has Content-Length and Transfer-Encoding; send one of them"
                raise Problem(400, message, headers=CLOSE)
            self._check_key(scope, headers)
            await self._app(scope, body, answer)
        except Problem as problem:
            response = JSONResponse(problem.body(), problem.status, problem.headers)
            self._metrics.failures.labels(err=problem.kind).inc()
            notes["problem"] = problem.logged
        except (ClientDisconnect, ConnectionError):
            status = GONE
            self._metrics.failures.labels(err="Gone").inc()
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": notes["request_id"]}})
            problem = Problem(500, "the server failed; its log says why", "Backend")
            response = JSONResponse(problem.body(), problem.status)
            self._metrics.failures.labels(err=problem.kind).inc()
        if response is not None and not status:
            await response(scope, body, answer)
        self._note(scope, status, time.perf_counter() - began, notes)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or scope["path"] in self._open or scope["method"] == "OPTIONS":
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        # Compare with all keys in constant time, so that timing reveals nothing.
        if not any([hmac.compare_digest(given, known) for known in self._keys]):
            what = "is missing" if not given else "is wrong"
            message = f"the API key {what}; send it as `Authorization: Bearer KEY`"
            raise Problem(401, message, "Unauthorized", headers={"WWW-Authenticate": "Bearer", **CLOSE})

    def _note(self, scope: Scope, status: int, seconds: float, notes: dict[str, Any]) -> None:
        fields = {"method": scope["method"], "path": scope["path"][:200], "status": status}
        level = logging.DEBUG if scope["path"] in ("/health", "/metrics") else logging.INFO
        log.log(level, "request", extra={"fields": fields | {"ms": round(1e3 * seconds, 2)} | notes})


async def http_problem(request: Request, error: Exception) -> Response:
    """Starlette's own errors (404, 405) in the same format as all others."""
    assert isinstance(error, HTTPException)
    texts = {404: "there is no such route; see /docs", 405: "this route does not take that method"}
    kind = "NotFound" if error.status_code == 404 else "Validation"
    problem = Problem(error.status_code, texts.get(error.status_code, error.detail), kind)
    request.scope["state"]["notes"]["problem"] = problem.message
    return JSONResponse(problem.body(), problem.status, {**(error.headers or {}), **CLOSE})


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
