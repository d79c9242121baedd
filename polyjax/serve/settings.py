"""The settings of a server: limits, and what it allows."""

import dataclasses
import math

from polyjax.errors import InputError

TOKENS_PER_BATCH, CPU_TOKENS_PER_BATCH = 4096, 1024
"""Padded tokens of a full batch where the settings do not say; as ``TextScorer`` has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits of a server, and what it allows. The names are those of text-embeddings-inference's flags.

    Attributes:
        served_model_name: what ``/info``, ``/v1/models`` and replies call the model; by default the run's
            name.
        max_concurrent_requests: that are admitted at once; further ones are answered 429.
        max_waiting_texts: texts of all admitted requests together. A request with more is admitted when
            nothing else waits.
        max_batch_tokens: padded tokens that go through the model at once; by default what suits the device.
        max_client_batch_size: texts in a request.
        max_characters: in all texts of a request.
        max_json_depth: objects and lists within each other.
        max_top_n: results of a search.
        payload_limit: bytes of a request's body.
        auto_truncate: cut texts that are too long, and say so in the reply; otherwise they are refused,
            unless the request asks for it (``truncate``).
        timeout: seconds from a request's arrival until it is answered 504.
        body_timeout: seconds in which a request's body must have arrived.
        allow_changes: accept additions to the index and removals from it.
        cors_allow_origin: origins whose pages may call the server; none by default.
        log_texts: write the texts of requests into the log.
        rerank_top: candidates of a search that the re-ranker scores, where there is one.
    """

    served_model_name: str = ""
    max_concurrent_requests: int = 512
    max_waiting_texts: int = 16_384
    max_batch_tokens: int | None = None
    max_client_batch_size: int = 10_000
    max_characters: int = 4_000_000
    max_json_depth: int = 16
    max_top_n: int = 100
    payload_limit: int = 5_000_000
    auto_truncate: bool = True
    timeout: float = 30.0
    body_timeout: float = 20.0
    allow_changes: bool = False
    cors_allow_origin: tuple[str, ...] = ()
    log_texts: bool = False
    rerank_top: int = 50

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                continue
            if isinstance(value, int) and value < 1:
                raise InputError(field.name, expected="at least 1", got=value)
            if isinstance(value, float) and not (math.isfinite(value) and value > 0):
                raise InputError(field.name, expected="a positive number of seconds", got=value)
