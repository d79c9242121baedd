"""A server's telemetry: Prometheus metrics and a log of JSON lines."""

import json
import logging
import re
import secrets
import sys
import time
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = tuple(float(1 << n) for n in range(0, 15))
_CREATED = re.compile(r"(# \w+ )?\w+_created\b")
_TOTAL = re.compile(r"^((?:# \w+ )?)(te_request_(?:count|success|failure))_total\b")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Metrics:
    """Counts and times, under the names of text-embeddings-inference.

    No label contains data from clients, so the number of time series does not grow.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("te_request_count", "requests of the model", "route")
        self.successes = self._counter("te_request_success", "requests answered 200", "route")
        self.failures = self._counter("te_request_failure", "requests refused or failed", "err")
        self.durations = self._histogram("te_request_duration", "seconds until the answer")
        self.queue_times = self._histogram("te_request_queue_duration", "seconds until the model began")
        self.inference_times = self._histogram("te_request_inference_duration", "seconds in the model")
        self.tokenisation_times = self._histogram("te_request_tokenization_duration", "seconds of tokenising")
        self.batch_sizes = self._histogram("te_batch_next_size", "sequences of a batch", SIZES)
        self.batch_tokens = self._histogram("te_batch_next_tokens", "padded tokens of a batch", SIZES)
        self.batch_requests = self._histogram("polyjax_batch_requests", "requests of a batch", SIZES[:11])
        self.queue_size = Gauge("te_queue_size", "admitted requests", registry=self._registry)
        self.truncated = Counter("polyjax_truncated_texts", "texts that were cut", registry=self._registry)
        self.candidates = Gauge("polyjax_index_candidates", "candidates", registry=self._registry)
        self.programs = Gauge("polyjax_compiled_programs", "programs at the start", registry=self._registry)

    def _counter(self, name: str, doc: str, label: str) -> Counter:
        return Counter(name, doc, [label], registry=self._registry)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(name, doc, buckets=buckets, registry=self._registry)

    def batch(self, sequences: int, tokens: int, requests: int) -> None:
        """Count a batch: its sequences, padded tokens, and the requests that share it."""
        self.batch_requests.observe(requests)
        self.batch_sizes.observe(sequences)
        self.batch_tokens.observe(tokens)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format.

        Its library adds ``_total`` to the names of counters, which text-embeddings-inference does not, and
        the times at which they were created.
        """
        lines = generate_latest(self._registry).decode("utf-8").splitlines(keepends=True)
        kept = (line for line in lines if not _CREATED.match(line))
        return "".join(_TOTAL.sub(r"\1\2", line) for line in kept).encode("utf-8")


def request_id(given: str | None) -> str:
    """The request id from the client, or a new one if it is missing or not safe for the log.

    >>> request_id("a-1"), len(request_id("a\\nb"))
    ('a-1', 16)
    """
    return given if given is not None and _ID.fullmatch(given) else secrets.token_hex(8)


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON; ``extra={"fields": {...}}`` adds entries."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to(file: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Write the log of the server and uvicorn, and warnings of other packages, as JSON lines.

    It changes logging for the whole process, so only commands should call it.

    Args:
        file: where to write.
        level: minimum level for the server and uvicorn.
    """
    handler = logging.StreamHandler(file)
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    for name in ("polyjax.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
