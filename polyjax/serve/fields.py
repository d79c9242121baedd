"""Fields of request bodies: each kind of field checks a JSON value and has a JSON schema."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from polyjax.serve.problems import Problem, invalid


@dataclasses.dataclass(frozen=True)
class Kind:
    """The type of a field's value.

    Attributes:
        read: (JSON value, its path in the body) -> the value for the route; raises Problem.
        schema: JSON schema, for the API's description.
    """

    read: Callable[[Any, str], Any]
    schema: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a request body. ``null`` counts as not given, because some clients send it.

    Attributes:
        name: name of the field.
        kind: type of its value.
        doc: one sentence for the API's description.
        default: value if the field is not given.
        example: example for the API's description.
    """

    name: str
    kind: Kind
    doc: str
    default: Any = None
    example: Any = None


def read_fields(fields: Sequence[Field], body: Any) -> dict[str, Any]:
    """The values of a body's fields, including defaults. Unknown fields of the body are ignored.

    Raises:
        Problem: the body is not an object, or a field has an invalid value.
    """
    if not isinstance(body, dict):
        raise invalid("body", "a JSON object", body)
    values = {}
    for field in fields:
        value = body.get(field.name)
        values[field.name] = field.default if value is None else field.kind.read(value, field.name)
    return values


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise invalid(where, "a text", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Problem(422, f"`{where}`: holds half a character (a lone surrogate)") from None
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        raise invalid(where, "a list of texts", value)
    return [_text(item, f"{where}[{i}]") for i, item in enumerate(value)]


def _documents(value: Any, where: str) -> list[str]:
    """Texts, or objects with a ``text`` as in Cohere's first version."""
    if not isinstance(value, list):
        raise invalid(where, "a list of texts", value)
    texts = []
    for i, item in enumerate(value):
        if isinstance(item, dict):
            if "text" not in item:
                raise invalid(f"{where}[{i}]", 'a text, or an object with "text"')
            texts.append(_text(item["text"], f"{where}[{i}].text"))
        else:
            texts.append(_text(item, f"{where}[{i}]"))
    return texts


def _text_or_texts(value: Any, where: str) -> str | list[str]:
    if isinstance(value, list):
        if value and all(type(item) is int or isinstance(item, list) for item in value):
            message = (
                f"`{where}`: expected a text or a list of texts, got token ids, which are another model's"
            )
            raise Problem(422, f"{message}; send texts (langchain: check_embedding_ctx_length=False)")
        return _texts(value, where)
    if not isinstance(value, str):
        raise invalid(where, "a text or a list of texts", value)
    return _text(value, where)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(where, "true or false", value)
    return value


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(where, "a whole number of at least 1", value)
    return value


def _count_or_all(value: Any, where: str) -> int | None:
    return None if type(value) is int and value == 0 else _count(value, where)


def _numbers(value: Any, where: str) -> list[int]:
    if not isinstance(value, list):
        raise invalid(where, "a list of ids", value)
    for i, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 63:
            raise invalid(f"{where}[{i}]", "an id, a whole number of at least 0", item)
    return value


def choice(*names: str) -> Kind:
    """A field whose value is one of some names; upper and lower case are the same."""
    known = {name.lower(): name for name in names}

    def read(value: Any, where: str) -> str:
        found = known.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            raise invalid(where, f"one of {', '.join(names)}", value)
        return found

    return Kind(read, {"type": "string", "enum": list(names)})


_STRING: dict[str, Any] = {"type": "string"}
_STRINGS: dict[str, Any] = {"type": "array", "items": _STRING}

TEXT = Kind(_text, _STRING)
TEXTS = Kind(_texts, _STRINGS)
TEXT_OR_TEXTS = Kind(_text_or_texts, {"oneOf": [_STRING, _STRINGS]})
DOCUMENTS = Kind(
    _documents,
    {
        "type": "array",
        "items": {
            "oneOf": [
                _STRING,
                {"type": "object", "properties": {"text": _STRING}, "required": ["text"]},
            ]
        },
    },
)
FLAG = Kind(_flag, {"type": "boolean"})
COUNT = Kind(_count, {"type": "integer", "minimum": 1})
COUNT_OR_ALL = Kind(_count_or_all, {"type": "integer", "minimum": 0})
"""0 for all, as in vLLM, whose clients send it where nothing was asked for."""
IDS = Kind(_numbers, {"type": "array", "items": {"type": "integer", "minimum": 0}})
