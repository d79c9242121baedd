"""Error replies: an HTTP status, and one body format that all supported clients read."""

from collections.abc import Mapping
from typing import Literal

Kind = Literal[
    "Validation",
    "Tokenizer",
    "Empty",
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "Overloaded",
    "Unhealthy",
    "Backend",
]
"""``error_type`` in the body; names of text-embeddings-inference if it has one."""

CLOSE = {"Connection": "close"}
"""Header of replies to requests whose body was not read completely."""


class Problem(Exception):
    """A request that cannot be served.

    Args:
        status: HTTP status.
        message: one line for the client, which names the field at fault. It must not contain paths,
            tracebacks or texts of other requests.
        kind: see ``Kind``.
        headers: headers of the reply.
        logged: the message without anything that the client sent, for the log; by default the message.

    >>> Problem(422, "`top_n`: expected at least 1, got 0").body()["error_type"]
    'Validation'
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: Kind = "Validation",
        *,
        headers: Mapping[str, str] | None = None,
        logged: str | None = None,
    ):
        super().__init__(message)
        self.logged = logged or message
        self.status, self.message, self.kind = status, message, kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, str]:
        """The JSON body, with the message under the names that different clients look for."""
        return {
            "error": self.message,
            "error_type": self.kind,
            "message": self.message,
            "detail": self.message,
        }


def invalid(where: str, expected: str, got: object = ...) -> Problem:
    """Status 422: a field has an invalid value.

    >>> print(invalid("top_n", "a whole number of at least 1", "three"))
    `top_n`: expected a whole number of at least 1, got "three"
    """
    found = "" if got is ... else f", got {shown(got)}"
    message = f"`{where}`: expected {expected}"
    return Problem(422, message + found, logged=message)


def shown(value: object) -> str:
    """A JSON value for an error message: short values as they are, otherwise only their type.

    >>> shown([1, 2]), shown("x" * 50), shown(None)
    ('a list', 'a text of 50 characters', 'null')
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            text = repr(value)
            return text if len(text) <= 20 else "a number"
        case str():
            plain = len(value) <= 20 and value.isprintable()
            return f'"{value}"' if plain else f"a text of {len(value)} characters"
        case list():
            return "a list"
        case _:
            return "an object"


def overloaded(seconds: float, message: str) -> Problem:
    """Status 429: the server is full; the client may try again after ``seconds``."""
    return Problem(429, message, "Overloaded", headers={"Retry-After": _retry(seconds)})


def unavailable(message: str, seconds: float = 1.0) -> Problem:
    """Status 503: the server is not ready, or is shutting down."""
    return Problem(503, message, "Unhealthy", headers={"Retry-After": _retry(seconds)})


def failed() -> Problem:
    """Status 424: the model failed on this request."""
    return Problem(424, "the model failed on this request; the server's log says why", "Backend")


def _retry(seconds: float) -> str:
    """Seconds for Retry-After, rounded up and limited to 1 to 60.

    >>> _retry(0.2), _retry(2.1), _retry(1e9)
    ('1', '3', '60')
    """
    return str(min(max(-int(-seconds // 1), 1), 60))
