"""Receives request bodies within limits of size and time, and parses them as strict JSON."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from polyjax.serve.problems import CLOSE, Problem, overloaded

DRAINED = 15
"""How much of a too large body is read and discarded, in multiples of the limit.

Most clients do not read a reply before they have sent the whole body.
"""
AT_ONCE = 16
"""Number of bodies of the maximum size that may be received at the same time."""


class Bodies:
    """Receives bodies, and limits the memory of all bodies being received.

    Args:
        limit: maximum size of a body, bytes.
        timeout: maximum time to receive a body, seconds.
        depth: maximum nesting of objects and lists.
    """

    def __init__(self, *, limit: int, timeout: float, depth: int):
        self._limit, self._timeout, self._depth = limit, timeout, depth
        self._underway = 0

    async def json(self, request: Request) -> Any:
        """The JSON value of a request's body.

        Raises:
            Problem: the body is not JSON, too large, too slow or nested too deeply.
            ClientDisconnect: the client disconnected.
        """
        _check_headers(request)
        announced = request.headers.get("content-length")
        if announced is not None and announced.isdecimal() and int(announced) > self._limit * (1 + DRAINED):
            raise self._too_large()
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._received(request)
        except TimeoutError:
            message = f"the body did not arrive within {self._timeout:g} s"
            raise Problem(408, message, headers=CLOSE) from None
        return parse(body, depth=self._depth)

    async def _received(self, request: Request) -> bytes:
        parts, size = [], 0
        try:
            async for part in request.stream():
                if size + len(part) <= self._limit:
                    self._underway += len(part)
                    parts.append(part)
                    if self._underway > AT_ONCE * self._limit:
                        busy = overloaded(1, "too many large requests are being received; try again later")
                        busy.headers |= CLOSE
                        raise busy
                size += len(part)
                if size > self._limit * (1 + DRAINED):
                    break
        finally:
            self._underway -= sum(map(len, parts))
        if size > self._limit:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem(413, f"the body has more than {self._limit:,} bytes, the limit", headers=CLOSE)


def _check_headers(request: Request) -> None:
    """Raise Problem unless the headers announce plain JSON.

    This protects browsers: a page of another site can send forms and plain text here, but not JSON.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        headers = {"Accept-Encoding": "identity", **CLOSE}
        message = "Content-Encoding: compressed bodies are not accepted; send plain JSON"
        raise Problem(415, message, headers=headers)
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, "Content-Type: expected application/json", headers=CLOSE)
    charset = parameters.replace(" ", "").lower().partition("charset=")[2].strip('"')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise Problem(415, "Content-Type: expected JSON in UTF-8", headers=CLOSE)


def parse(body: bytes, *, depth: int) -> Any:
    """Parse strict JSON: UTF-8, no NaN or Infinity, no repeated key, limited nesting.

    Args:
        body: the bytes to parse.
        depth: maximum nesting of objects and lists.

    Raises:
        Problem: the body is empty or breaks a rule; the message says which.

    >>> parse(b'{"a": [1]}', depth=2)
    {'a': [1]}
    """
    if not body.strip():
        raise Problem(400, "the body is empty; expected a JSON object", "Empty")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep(depth) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise Problem(400, f"the body is not JSON: {error.msg} ({place})") from None
    except ValueError:  # a whole number of thousands of digits
        raise Problem(400, "the body holds a number with too many digits") from None
    level = [value]
    for _ in range(depth):
        level = [item for part in level for item in _items(part)]
        if not level:
            return value
    raise _too_deep(depth)


def _items(value: Any) -> list[Any]:
    """The objects and lists directly within a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict | list)]


def _too_deep(depth: int) -> Problem:
    return Problem(422, f"the body has more than {depth} objects and lists within each other")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        name = twice if len(twice) <= 40 and twice.isprintable() else "a key"
        message = f"`{name}` occurs twice in one object"
        raise Problem(422, message, logged="a key occurs twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise Problem(400, f"the body is not JSON: {name} is not a number that JSON has")


__all__ = ["Bodies", "ClientDisconnect", "parse"]
