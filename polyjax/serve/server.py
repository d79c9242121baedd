"""The HTTP server around the application: uvicorn, with limits and a shutdown of its own."""

import asyncio
import json
import logging
import os
import socket
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from polyjax.errors import InputError
from polyjax.serve.problems import Problem
from polyjax.serve.service import Service

HEAD_TIMEOUT = 20.0
"""Seconds in which the head of a request must have arrived once it has begun."""
KEEP_ALIVE = 75.0
"""Seconds that an idle connection is kept: longer than the 60 of most proxies, which reuse it until then."""
POLL = 0.05
log = logging.getLogger("polyjax.serve")


class Protocol(H11Protocol):
    """HTTP/1.1 whose heads must arrive in time, and whose own refusals are JSON."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        super().connection_made(transport)  # pyright: ignore[reportArgumentType]
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client, or the connection, is gone."""
        self._forget_head()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """What came is read; while a head is incomplete its time runs."""
        super().handle_events()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._watch_head()
        else:
            self._forget_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(Problem(400, "the request is not valid HTTP/1.1"))

    def _refuse(self, problem: Problem) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer is underway
            return
        body = json.dumps(problem.body()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=problem.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(Problem(408, f"the request's head did not arrive within {HEAD_TIMEOUT:g} s"))


class Server(uvicorn.Server):
    """uvicorn, which answers what was admitted before it ends.

    On SIGTERM or SIGINT new requests are refused (503, on connections old and new) and admitted ones are
    answered; then the server ends with status 0. A second signal ends it at once.

    Args:
        config: of uvicorn.
        service: whose requests are waited for.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._service.draining:
            os._exit(128 + sig)
        self._service.draining = True
        log.info(
            "shutting down: no new requests", extra={"fields": {"admitted": self._service.worker.requests}}
        )

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        if self._service.failure is not None or (self._service.draining and not self._service.busy):
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket for ``serve``, bound and not listening yet.

    Args:
        host: address to listen at.
        port: of it; 0 for any that is free.

    Raises:
        InputError: the address is not the machine's, or is in use.
    """
    if not 0 <= port < 1 << 16:
        raise InputError("port", expected="0 to 65535", got=port)
    sock = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        return sock
    except OSError as error:
        if sock is not None:
            sock.close()
        problem = f"cannot listen at {host}:{port} ({error.strerror or error})"
        raise InputError("port", problem=problem, fix="choose a free port, or another `hostname`") from None


def make_server(app: Starlette) -> Server:
    """A server of an application that ``create_app`` made.

    Args:
        app: the application.
    """
    settings: dict[str, Any] = {
        "http": Protocol,
        "loop": "asyncio",
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": KEEP_ALIVE,
        "timeout_graceful_shutdown": 5,
    }
    return Server(uvicorn.Config(app, **settings), app.state.service)


def serve(app: Starlette, sock: socket.socket) -> int:
    """Serve an application until a signal ends it; the exit status, 0 after a signal.

    Args:
        app: from ``create_app``.
        sock: from ``bind``.
    """
    server = make_server(app)
    server.run([sock])
    return 1 if app.state.service.failure is not None else 0
