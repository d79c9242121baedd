"""A server in a thread, around a ranker small enough for a test."""

import contextlib
import dataclasses
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from polyjax import BiConfig, CrossConfig, EncoderConfig, PolyConfig, Ranker, make_scorer
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.inference.scorer import TextScorer
from polyjax.interop.huggingface import minilm_folder
from polyjax.serve import ServeConfig, bind, create_app
from polyjax.serve.server import make_server

TEXT = TextConfig(max_turns=3, context_tokens=32, candidate_tokens=16, buckets=(16, 32))
HEADS = {
    "bi": BiConfig(normalize=True, score_scale=20.0),
    "poly": PolyConfig(n_codes=4, codes_std=1.0),
    "cross": CrossConfig(reduction="mean"),
    "folder": CrossConfig(reduction="mean", activation="sigmoid"),
}
"""``folder``: a cross-encoder as a folder of sentence-transformers has it, which also cuts pairs together."""
TEXT_OF = {
    "folder": dataclasses.replace(TEXT, context_tokens=32, candidate_tokens=32, pair_tokens=32, cut="end")
}
LIMITS = ServeConfig(max_batch_tokens=128, max_client_batch_size=300, max_characters=40_000)
WORDS = "trail view hike printer ink mountain coffee rain book train music garden soup river moon".split()
QUERY = "we went hiking in the mountains"
TEXTS = ["which trail did you take?", "my printer is out of ink", "nice, how was the view?"]


def tiny_tokenizer() -> HuggingFaceTokenizer:
    """MiniLM's vocabulary."""
    return HuggingFaceTokenizer(minilm_folder() / "tokenizer.json")


def tiny_scorer(arch: str, *, seed: int = 0):
    """A random model."""
    shape = EncoderConfig(
        vocab_size=tiny_tokenizer().vocab_size,
        dim=16,
        n_layers=2,
        n_heads=2,
        mlp_dim=32,
        n_positions=64,
    )
    scorer = make_scorer(shape, HEADS[arch], rngs=nnx.Rngs(seed))
    # Matrices far from their small initial values, so that texts differ.
    nnx.update(scorer, jax.tree.map(lambda x: 10 * x if x.ndim >= 2 else x, nnx.state(scorer)))
    return scorer


def tiny_ranker(arch: str = "poly", *, seed: int = 0) -> Ranker:
    """A ranker around it."""
    return Ranker(
        TextScorer(tiny_scorer(arch, seed=seed), TextEncoder(tiny_tokenizer(), TEXT_OF.get(arch, TEXT)))
    )


def sentences(n: int, *, seed: int = 0, longest: int = 20) -> list[str]:
    """Texts of random words, of different lengths; some are longer than a candidate may be."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest))) for _ in range(n)]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


class Running:
    """A server in a thread of this process.

    Args:
        app: from ``create_app``.
    """

    def __init__(self, app):
        self.service = app.state.service
        self.server, sock = make_server(app), bind("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self._thread = threading.Thread(target=self.server.run, args=[[sock]])
        self._thread.start()
        deadline = time.monotonic() + 120
        while not (self.server.started and self.service.ready):
            assert self._thread.is_alive() and self.service.failure is None, self.service.failure
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop, as SIGTERM does."""
        self.service.draining = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request; a body that is not bytes as JSON. Underscores in names of headers are dashes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        """Send a POST request."""
        return self.ask("POST", path, body, **headers)

    def raw(self, data: bytes, *, timeout: float = 10) -> bytes:
        """Send bytes, and read until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            parts = []
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    parts.append(part)
            return b"".join(parts)

    def healthy(self) -> bool:
        """Whether it still ranks."""
        answer = self.post("/rerank", {"query": QUERY, "texts": TEXTS})
        return answer.status == 200 and len(answer.json) == len(TEXTS)


@contextlib.contextmanager
def running(ranker: Ranker, **options: Any) -> Iterator[Running]:
    """A server around a ranker; the options are those of ``create_app``."""
    options = {"config": LIMITS, "name": "tiny"} | options
    server = Running(create_app(ranker, **options))
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """The server's log records."""
    records: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("polyjax.serve"), Kept()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
