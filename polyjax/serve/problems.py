"""What a request is answered where it cannot be served: a status, and one body that every client reads."""

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
"""``error_type`` of the body, in the words of text-embeddings-inference where it has one."""

CLOSE = {"Connection": "close"}
"""Header of answers to requests whose body was not read to its end."""


class Problem(Exception):
    """A request that cannot be served.

    Args:
        status: of HTTP.
        message: one line for whoever sent the request; it names the field at fault and holds no path, text of
            another request or traceback.
        kind: see ``Kind``.
        headers: of the answer.
        logged: the message without anything that the client sent; the message itself by default.

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
        """Under the names that clients of several servers look for."""
        return {
            "error": self.message,
            "error_type": self.kind,
            "message": self.message,
            "detail": self.message,
        }


def invalid(where: str, expected: str, got: object = ...) -> Problem:
    """422: a field does not hold what is expected of it.

    >>> print(invalid("top_n", "a whole number of at least 1", "three"))
    `top_n`: expected a whole number of at least 1, got "three"
    """
    found = "" if got is ... else f", got {shown(got)}"
    message = f"`{where}`: expected {expected}"
    return Problem(422, message + found, logged=message)


def shown(value: object) -> str:
    """A JSON value in an error: short values as they are, of others their kind.

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
    """429: there is no room now; the client may try again after so many seconds."""
    return Problem(429, message, "Overloaded", headers={"Retry-After": _retry(seconds)})


def unavailable(message: str, seconds: float = 1.0) -> Problem:
    """503: the server is not ready, or is shutting down."""
    return Problem(503, message, "Unhealthy", headers={"Retry-After": _retry(seconds)})


def failed() -> Problem:
    """424: the model failed on this request."""
    return Problem(424, "the model failed on this request; the server's log says why", "Backend")


def _retry(seconds: float) -> str:
    """Whole seconds, from 1 to 60.

    >>> _retry(0.2), _retry(2.1), _retry(1e9)
    ('1', '3', '60')
    """
    return str(min(max(-int(-seconds // 1), 1), 60))
