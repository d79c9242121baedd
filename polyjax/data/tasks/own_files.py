"""A user's data files: each row, or what is wrong with it, with its line.

JSON lines; a JSON list of objects, or objects that are written over several lines; CSV and TSV. Text is
UTF-8, or UTF-16 with its byte order mark.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from polyjax.data.encodings import encoding_of, not_valid
from polyjax.data.tables import read_table
from polyjax.data.tasks.own_rows import (
    HEADER_AGAIN,
    cells_object,
    check_header,
    json_object,
    repeats_header,
)
from polyjax.data.tasks.written_lists import json_fault
from polyjax.errors import InputError

LONGEST_LINE = 10_000_000
"""Characters; a longer line is more likely a file of another kind than a dialogue."""

JSON_LINES = (".jsonl", ".json", ".ndjson")
"""Endings of files of JSON."""

KINDS = "a .jsonl, .json, .ndjson, .csv or .tsv file"
_LIST = re.compile(r"\s*\[\s*(?:\{|\]\s*$)")
_HEAD = 1 << 16
_SPACE = re.compile(r"\s*")
_HALF = re.compile("[\ud800-\udfff]")
Row = tuple[int, Any]
"""A line's number, from 1, and what begins there: an object or an InputError."""


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file, read by its ending (in upper or lower case).

    Raises:
        InputError: the file is missing, cannot be read, is of another kind, or is a table without the columns
            that are needed.
    """
    if path.is_dir():
        raise InputError.in_file(path, problem="a folder", expected=KINDS)
    if not path.is_file():
        raise InputError.missing_file(path, KINDS)
    match path.suffix.casefold():
        case ending if ending in JSON_LINES:
            return _json_rows(path, encoding_of(path))
        case ".csv":
            return _table_rows(path, encoding_of(path), ",")
        case ".tsv":
            return _table_rows(path, encoding_of(path), "\t")
        case other:
            raise InputError.in_file(path, expected=KINDS, got=other or "no ending")


def _json_rows(path: Path, encoding: str) -> Iterator[Row]:
    if _is_list(path, encoding):
        yield from _items(_whole(path, encoding), is_list=True)
        return
    lines = _json_lines(path, encoding)
    first = next(lines, None)
    if first is None:
        return
    if isinstance(first[1], InputError) and (text := _whole_object(path, encoding)):
        yield from _items(text, is_list=False)
        return
    yield from chain([first], lines)


def _is_list(path: Path, encoding: str) -> bool:
    """Whether a file is one JSON list of objects, or an empty one."""
    with path.open(encoding=encoding, errors="replace") as file:
        return _LIST.match(file.read(_HEAD)) is not None


def _whole(path: Path, encoding: str) -> str:
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise not_valid(path, encoding, error) from None


def _whole_object(path: Path, encoding: str) -> str:
    """The text of a file that begins with an object of several lines; "" for another."""
    try:
        text = path.read_text(encoding=encoding)
        start = _space(text, 0)
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return ""
    return text if "\n" in text[start:end] else ""


def _items(text: str, *, is_list: bool) -> Iterator[Row]:
    """Items of a JSON list, or JSON values one after the other, with the lines that they begin in."""
    decoder = json.JSONDecoder(object_pairs_hook=json_object)
    place = _space(text, 0) + is_list
    number, counted, first = 1, 0, True
    while True:
        place = _space(text, place)
        if is_list and not first and text.startswith(",", place):
            place = _space(text, place + 1)
        elif is_list and text.startswith("]", place):
            place = _space(text, place + 1)
            if place < len(text):
                number += text.count("\n", counted, place)
                rest = text[place : place + 20]
                yield number, InputError.in_row(expected="the end of the file after the list", got=rest)
            return
        elif is_list and not first and place < len(text):
            number += text.count("\n", counted, place)
            yield number, InputError.in_row(expected="',' or ']' in the list", got=text[place : place + 20])
            return
        number += text.count("\n", counted, place)
        counted = place
        if place == len(text):
            if is_list:
                yield number, InputError.in_row(problem="the list does not end; is the file cut short?")
            return
        try:
            item, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else number
            yield line, json_fault(error)
            return
        yield number, item
        first = False


def _space(text: str, place: int) -> int:
    """The place of the first character that is not white space, from a place on."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _json_lines(path: Path, encoding: str) -> Iterator[Row]:
    """What each line holds; empty ones are skipped."""
    for number, raw in _raw_lines(path, encoding):
        if raw is None:
            yield number, InputError.in_row(problem=f"longer than {LONGEST_LINE:,} bytes")
            continue
        # Files that begin with a mark may have been joined; an error at the end would be the next line's.
        raw = raw.removeprefix(codecs.BOM_UTF8).rstrip()
        if not raw:
            continue
        try:
            text = raw.decode()
            yield number, json.loads(text, object_pairs_hook=json_object)
        except UnicodeDecodeError as error:
            problem = f"not valid UTF-8: {error.reason} at byte {error.start}"
            yield number, InputError.in_row(problem=problem)
        except (ValueError, RecursionError) as error:
            yield number, json_fault(error)


def _raw_lines(path: Path, encoding: str) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file as UTF-8; None for a line that is too long, which is never in memory as a whole."""
    if not encoding.startswith("utf-8"):
        for number, line in enumerate(_whole(path, encoding).split("\n"), start=1):
            yield number, line.encode("utf-8", "surrogatepass") if len(line) <= LONGEST_LINE else None
        return
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            else:
                yield number, raw


def _table_rows(path: Path, encoding: str, delimiter: str) -> Iterator[Row]:
    # Bytes that are not UTF-8 become lone surrogates, which each row is searched for.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        try:
            yield from _cells(path, read_table(file, delimiter=delimiter, longest=LONGEST_LINE))
        except UnicodeDecodeError as error:
            raise not_valid(path, encoding, error) from None


def _cells(path: Path, rows: Iterator[tuple[int, list[str] | InputError]]) -> Iterator[Row]:
    _, header = next(rows, (1, []))
    try:
        if isinstance(header, InputError):
            raise header
        check_header(header)
    except InputError as error:
        raise error.at(f"{path}:1") from None
    for number, row in rows:
        if isinstance(row, InputError) or not row:
            if row:
                yield number, row
            continue
        row[0] = row[0].removeprefix("\ufeff")  # of a file that another was joined to
        if any(map(_HALF.search, row)):
            yield number, InputError.in_row(problem="not valid UTF-8")
        elif repeats_header(row):
            yield number, InputError.in_row(problem=HEADER_AGAIN, fix="remove this line")
        elif len(row) != len(header):
            yield number, InputError.in_row(expected=f"{len(header)} columns", got=len(row))
        else:
            try:
                yield number, cells_object(dict(zip(header, row, strict=True)))
            except InputError as error:
                yield number, error
