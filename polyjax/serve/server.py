"""The HTTP server of the application: uvicorn, with further limits and its own shutdown."""

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
from polyjax.serve.telemetry import request_id

HEAD_TIMEOUT = 20.0
"""Maximum time to receive the head of a request, in seconds."""
KEEP_ALIVE = 75.0
"""Seconds that an idle connection is kept; longer than the 60 s for which most proxies reuse connections."""
POLL = 0.05
log = logging.getLogger("polyjax.serve")


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a time limit for request heads and JSON for its own errors."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when a client connects: starts the timer for the head."""
        super().connection_made(transport)  # pyright: ignore[reportArgumentType]
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection is lost: stops the timer."""
        self._forget_head()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Process received data; the timer runs while a head is incomplete."""
        super().handle_events()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._watch_head()
        else:
            self._forget_head()

    def send_400_response(self, msg: str) -> None:
        """Reply 400 to data that is not valid HTTP."""
        self._refuse(Problem(400, "the request is not valid HTTP/1.1"))

    def _refuse(self, problem: Problem, *, level: int = logging.INFO) -> None:
        name = request_id(None)
        fields = {"status": problem.status, "request_id": name, "problem": problem.logged}
        log.log(level, "request", extra={"fields": fields})
        service: Service = self.config.app.state.service  # pyright: ignore
        service.metrics.failures.labels(err=problem.kind).inc()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # a reply has already started
            return
        body = json.dumps(problem.body()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            ("x-request-id", name),
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
            level = logging.INFO if self.conn.trailing_data[0] else logging.DEBUG  # browsers connect ahead
            problem = Problem(408, f"the request's head did not arrive within {HEAD_TIMEOUT:g} s")
            self._refuse(problem, level=level)


class Server(uvicorn.Server):
    """uvicorn with a graceful shutdown.

    On SIGTERM or SIGINT, new requests get 503 (on old and new connections), and admitted requests are
    completed. Then the server ends with status 0. A second signal ends it immediately.

    Args:
        config: uvicorn's configuration.
        service: the service whose requests are completed.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for a signal: start the shutdown, or at the second signal end the process."""
        if self._service.draining:
            os._exit(128 + sig)
        self._service.draining = True
        log.info(
            "shutting down: no new requests", extra={"fields": {"admitted": self._service.worker.requests}}
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and log the address."""
        await super().startup(sockets)
        for sock in (sockets or ()) if self.started else ():
            host, port = sock.getsockname()[:2]
            log.info("listening", extra={"fields": {"host": host, "port": port}})

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether the server should end."""
        if self._service.failure is not None or (self._service.draining and not self._service.busy):
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket for ``serve``, bound but not listening yet.

    Args:
        host: address to listen on.
        port: port to listen on; 0 for any free one.

    Raises:
        InputError: the port is out of range or in use, or the machine does not have that address.
    """
    if not 0 <= port < 1 << 16:
        raise InputError("port", expected="0 to 65535", got=port)
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only where the protocol is named. Without it a reply's body waits for the
        # client's delayed acknowledgement of its head, 40 ms on Linux.
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        return sock
    except OSError as error:
        if sock is not None:
            sock.close()
        problem = f"cannot listen at {host}:{port} ({error.strerror or error})"
        raise InputError("port", problem=problem, fix="choose a free port, or another `hostname`") from None


def make_server(app: Starlette) -> Server:
    """A server for an application.

    Args:
        app: the application, from ``create_app``.
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
    """Serve an application until a signal ends it.

    Args:
        app: the application, from ``create_app``.
        sock: the socket, from ``bind``.

    Returns:
        The exit status: 0 after a signal, 1 if the server could not start.
    """
    server = make_server(app)
    server.run([sock])
    return 1 if app.state.service.failure is not None else 0
