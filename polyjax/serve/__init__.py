"""Serves a ranker over HTTP (extra ``serve``): an ASGI application, its limits, and a server for it."""

from polyjax.serve.app import create_app
from polyjax.serve.index import LiveIndex
from polyjax.serve.server import bind, serve
from polyjax.serve.settings import ServeConfig
from polyjax.serve.telemetry import log_to

__all__ = ["LiveIndex", "ServeConfig", "bind", "create_app", "log_to", "serve"]
