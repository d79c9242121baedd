"""A user's data rows: an object of a JSON file or a row of a table is checked and made an Example."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyjax.data.identity import text_key
from polyjax.data.tasks.written_lists import is_almost_list, is_odd_list, list_in, listed, python_list
from polyjax.errors import InputError, shown
from polyjax.types import Example

KEYS = ("context", "label", "candidates", "id", "answers", "negatives", "scores", "group")
REQUIRED = ("context", "label")
HEADER_AGAIN = "the column names once more, as where files were joined"
_HALF = range(0xD800, 0xE000)
_LINE_BREAK = re.compile(r"\r\n|\n|\r")


class Twice(dict[str, Any]):
    """A JSON object in which a key came twice.

    Attributes:
        key: the first that did.
    """

    key = ""


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON parser's pairs; see ``Twice``."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found = Twice(found)
        found.key = next(name for i, name in enumerate(names) if name in names[:i])
    return found


def nearly(name: str) -> str | None:
    """The key that a misspelt name probably means: other case, spaces, singular or plural, one of several.

    >>> nearly(" Candidate"), nearly("Labels"), nearly("label"), nearly("ID"), nearly("ids")
    ('candidates', 'label', None, 'id', None)
    >>> nearly("candidate_1"), nearly("candidates[0]"), nearly("hard_negatives"), nearly("label_id")
    ('candidates', 'candidates', 'negatives', None)
    """
    if name in KEYS:
        return None
    plain = re.sub(r"[\W_]+", "", re.sub(r"\.\d+$", "", name)).casefold()  # label.1: pandas' second label
    if several := re.fullmatch(r"(?:hard)?(candidate|negative|answer)s?\d*", plain):
        return f"{several[1]}s"
    for key in KEYS:
        if plain == key or (key != "id" and plain.rstrip("s") == key.rstrip("s")):
            return key
    return None


def example_of(row: object, default_id: str) -> Example:
    """The example of an object.

    If candidates are listed, the label's place is that of the first one equal to it, or else of the first
    that is the same text (``data.identity``).

    Args:
        row: of a JSON file, or of ``cells_object``.
        default_id: its id if it has none.

    Raises:
        InputError: it has unknown keys or invalid values.
    """
    if not isinstance(row, Mapping):
        got = shown(type(row).__name__)
        raise InputError.in_row(expected="an object with a context and a label", got=got)
    if isinstance(row, Twice):
        raise InputError.in_row(problem=f"the key {row.key!r} is given twice")
    _check_keys(row)
    row = {key: value for key, value in row.items() if value is not None or key in REQUIRED}
    context = row["context"]
    if isinstance(context, str) and (python_list(context) or is_odd_list(context)):
        raise _wrong("context", "a text or a list of turns, not a list written as a text", context)
    turns = [context] if isinstance(context, str) else context
    if not isinstance(turns, list | tuple) or not turns:
        raise _wrong("context", "a text or a list of turns", context)
    texts = [_text(f"context[{i}]", turn) for i, turn in enumerate(turns)]
    label = _text("label", row["label"])
    candidates = _texts("candidates", row.get("candidates", [])) or [label]
    place = _place(label, candidates)
    answers = _texts("answers", row.get("answers", []))
    negatives = _texts("negatives", row.get("negatives", []))
    right = set(map(text_key, (label, *answers))) if negatives else set()
    for i, text in enumerate(negatives):
        if text_key(text) in right:
            raise InputError(f"negatives[{i}]", expected="a wrong answer", got=text[:40], is_argument=False)
    scores = _scores(row.get("scores"), len(candidates) + len(negatives))
    name = _name("id", row.get("id", default_id))
    return Example(
        name,
        tuple(texts),
        tuple(candidates),
        place,
        _name("group", row.get("group", name)),
        answers=tuple(answers),
        negatives=tuple(negatives),
        scores=scores,
    )


def _name(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise _wrong(key, "a text or a whole number", value)
    return _text(key, str(value))


def _place(label: str, listed: Sequence[str]) -> int:
    if label in listed:
        return list(listed).index(label)
    key = text_key(label)
    for i, text in enumerate(listed):
        if text_key(text) == key:
            return i
    raise InputError(
        "label", expected=f"one of the {len(listed)} candidates", got=label[:40], is_argument=False
    )


def _check_keys(row: Mapping[Any, Any]) -> None:
    unknown = [str(key) for key in row if key not in KEYS]
    for name in REQUIRED:
        if name not in row:
            instead = f"if {unknown[0]!r} is meant, rename it to {name!r}" if unknown else None
            if lists := [key for key in unknown if _holds_rows(row[key])]:
                instead = (
                    f"write the rows of {lists[0]!r} to a file of their own, without the object around them"
                )
            if "columns" in row and "data" in row:  # pandas' to_json(orient="split")
                instead = "write an object for each row: to_json(orient='records', lines=True)"
            raise InputError.in_row(problem=f"the key {name!r} is missing", fix=instead)
    if unknown:
        key = nearly(unknown[0])
        raise InputError.in_row(
            problem=f"unknown key {unknown[0]!r}",
            expected=", ".join(KEYS),
            fix=(_into_one_list(unknown[0], key) or f"is it meant to be {key!r}?") if key else None,
        )


def _into_one_list(name: str, key: str) -> str | None:
    """The fix for names such as candidate_1 and candidate_2; None for a name without a number."""
    lists = key in ("candidates", "negatives", "answers") and re.search(r"\d\W*$", name)
    return f"put the texts of all such columns into one list, {key!r}" if lists else None


def _holds_rows(value: object) -> bool:
    """Whether it is a list of rows, as in one object with the rows of several splits."""
    return isinstance(value, list) and any(isinstance(row, dict) and "label" in row for row in value)


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, "a list of texts", value)
    return [_text(f"{name}[{i}]", text) for i, text in enumerate(value)]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    if not value.strip() or not (value.isascii() or text_key(value)):
        raise InputError(name, problem="the text is empty", is_argument=False)
    if any(ord(letter) in _HALF for letter in value):
        raise InputError(
            name, problem="it holds half a character (a lone surrogate)", got=value[:40], is_argument=False
        )
    return value


def _scores(value: object, n: int) -> tuple[float, ...] | None:
    """A teacher's scores of a row's candidates (of its label, where it lists none) and then its negatives."""
    if value is None:
        return None
    numbers = value if isinstance(value, list | tuple) else []
    found = [one for one in numbers if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(found) != n or len(numbers) != n or not all(map(_is_finite, found)):
        raise _wrong("scores", f"{n} finite numbers, of the candidates and then of the negatives", value)
    return tuple(map(float, found))


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float can hold
        return False


def _wrong(name: str, expected: str, value: object) -> InputError:
    """An error that shows a value's type and the beginning of its text."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = ""
    return InputError(
        name, expected=expected, got=shown(f"{type(value).__name__} {text}"[:60].rstrip()), is_argument=False
    )


def check_header(header: Sequence[str]) -> None:
    """Check a table's column names; unknown columns are ignored.

    Raises:
        InputError: one of ours is missing, given twice, or nearly spelt.
    """
    for name in KEYS:
        if header.count(name) > 1:
            raise InputError.in_row(problem=f"the column {name!r} is given twice")
    for name in header:
        key = nearly(name)
        if key is not None and key not in header:
            fix = _into_one_list(name, key) or "rename it to that, or to something else"
            raise InputError.in_row(problem=f"the column {name!r} is nearly {key!r}", fix=fix)
        if key is not None:
            problem = f"the columns {key!r} and {name!r} have nearly the same name"
            raise InputError.in_row(problem=problem, fix="rename or remove one of them")
    if any(name not in header for name in REQUIRED):
        raise InputError.in_row(
            expected=f"columns named {', '.join(KEYS)}, of which context and label are required",
            got=shown(", ".join(header) or "nothing"),
        )


def repeats_header(cells: Iterable[object]) -> bool:
    """Whether a row names the columns once more, in any order and writing, as where files were joined."""
    names = {cell.strip('\ufeff\t "').casefold() for cell in cells if isinstance(cell, str)}
    return names.issuperset(REQUIRED)


def cells_object(cells: Mapping[str, str]) -> dict[str, Any]:
    """The object that cells of a row of a table stand for.

    Turns are the lines of a cell, or a list; lists are as JSON, Python, pandas or numpy write them.

    Raises:
        InputError: a cell that should be a list is not one, or a label is a list.
    """
    found: dict[str, Any] = {}
    if "label" in cells:
        found["label"] = cells["label"]
        several = listed("label", cells["label"])
        if is_odd_list(cells["label"]) or (several and any(isinstance(one, str) for one in several)):
            raise InputError(
                "label",
                expected="a text",
                got=cells["label"][:40],
                fix="put further right answers into a column `answers`",
                is_argument=False,
            )
    if "context" in cells:
        turns = [turn for turn in _LINE_BREAK.split(cells["context"]) if turn.strip()]
        cell = cells["context"]
        several = listed("context", cell)
        if several and all(isinstance(one, int | float) for one in several):
            several = None  # a text such as "[1]"
        if several is None and (is_odd_list(cell) or is_almost_list(cell)):
            expected = "a text, or a JSON list of turns"
            raise InputError("context", expected=expected, got=cell[:40], is_argument=False)
        found["context"] = turns if several is None else several
    for name in ("id", "group"):
        if cells.get(name, "").strip():
            found[name] = cells[name]
    for name in ("candidates", "answers", "negatives", "scores"):
        if cells.get(name, "").strip():
            found[name] = list_in(name, cells[name])
            if found[name] is None:
                kind = "numbers" if name == "scores" else "texts"
                raise InputError(
                    name, expected=f"a JSON list of {kind}", got=cells[name][:40], is_argument=False
                )
    return found
