"""The settings of a server: limits and permissions."""

import dataclasses
import math

from polyjax.errors import InputError

TOKENS_PER_BATCH, CPU_TOKENS_PER_BATCH = 4096, 1024
"""Default numbers of padded tokens in a full batch, the same as in ``TextScorer``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits and permissions of a server. Many have the names of text-embeddings-inference's flags.

    Attributes:
        served_model_name: name of the model in ``/info``, ``/v1/models`` and replies; by default the run's
            name.
        max_concurrent_requests: maximum number of admitted requests; others get 429.
        max_waiting_texts: maximum number of texts in all admitted requests. A request with more is admitted
            if nothing else is waiting.
        max_batch_tokens: padded tokens of a batch; the default depends on the device.
        max_client_batch_size: maximum number of texts in a request.
        max_characters: maximum number of characters in all texts of a request.
        max_json_depth: maximum nesting of objects and lists in a request's body.
        max_top_n: maximum number of results of a search.
        payload_limit: maximum size of a request's body, bytes.
        auto_truncate: truncate texts that are too long, with a warning in the reply; otherwise they are
            refused, unless the request has ``truncate``.
        timeout: seconds from a request's arrival until it gets 504; its body arrives within them.
        body_timeout: maximum time to receive a request's body, seconds.
        allow_changes: allow requests that add candidates to the index or remove them.
        cors_allow_origin: origins whose pages may call the server; none by default.
        log_texts: write the texts of requests into the log.
        rerank_top: number of search results that the re-ranker scores.
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
        for field in dataclasses.fields(ServeConfig):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                continue
            if isinstance(value, int) and value < 1:
                raise InputError(field.name, expected="at least 1", got=value)
            if isinstance(value, float) and not (math.isfinite(value) and value > 0):
                raise InputError(field.name, expected="a positive number of seconds", got=value)
