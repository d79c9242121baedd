"""Anyone's own data: JSON lines, CSV or TSV.

A JSON line is an object with ``context`` (a text, or a list of turns, oldest first) and ``label``; optional
are ``candidates`` (texts to rank, the label among them) and ``id``. CSV and TSV have a header line with the
same names; there, a context is a text whose turns are separated by line breaks, and candidates are a JSON
list. Every line is checked before anything is done with the first.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from polyjax.data.candidates import add_candidates
from polyjax.data.rows import Rows
from polyjax.data.tasks.protocol import KS, Split, Task
from polyjax.data.tasks.source import check_fractions
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.types import Example

SHOWN = 20
"""Bad lines that an error shows; it counts the others."""

LONGEST_LINE = 10_000_000
"""Characters; a longer line is more likely a file of another kind than a dialogue."""

KEYS = ("context", "label", "candidates", "id")
REQUIRED = ("context", "label")
_HALF = range(0xD800, 0xE000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDataConfig:
    """The task's settings.

    Attributes:
        train: file to train on.
        valid: file to validate on; by default a fraction of the training file.
        test: file to test on; by default a fraction of the training file.
        valid_fraction: of the training file, where there is no validation file.
        test_fraction: of the training file, where there is no test file.
        n_candidates: of a row to validate or test on that lists none: its label and others' labels.
        candidate_seed: of the draw of candidates.
    """

    train: Path
    valid: Path | None = None
    test: Path | None = None
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    n_candidates: int = 20
    candidate_seed: int = 0

    licence = "its owner's"
    lengths = TextConfig(max_turns=20, context_tokens=128, candidate_tokens=64, buckets=(32, 64, 96, 128))
    ks = KS

    def __post_init__(self) -> None:
        """Raise InputError for fractions that leave nothing to train on."""
        if self.n_candidates < 2:
            raise InputError("task.n_candidates", expected="at least 2", got=self.n_candidates)
        check_fractions(self.valid_fraction, self.test_fraction)

    @property
    def name(self) -> str:
        """The training file's, without its ending."""
        return self.train.stem

    def read(self, split: Split) -> Rows:
        """The examples of a split: of its file, or those of the training file that fall into it.

        Rows to validate or test on that list no candidates are given some: labels of all the file's rows.

        Raises:
            InputError: a file is missing or has bad lines (all are found), the split is empty, or its rows
                list different numbers of candidates.
        """
        return Rows(_read(self, split, as_listed=False))

    def read_listed(self, split: Split) -> Rows:
        """The examples of a split as the file has them.

        Raises:
            InputError: a file is missing or has bad lines, or the split is empty.
        """
        return Rows(_read(self, split, as_listed=True))

    def describe(self, split: Split, n: int) -> str:
        """A line about n rows of a split."""
        file = {"train": self.train, "valid": self.valid, "test": self.test}[split] or self.train
        return f"{n:,} {split} rows of {file.name}"

    def beside(self, trained: Task) -> "OwnDataConfig":
        """All rows of another file than the one that a model was trained on are there to be tested."""
        if isinstance(trained, OwnDataConfig) and trained.train.resolve() == self.train.resolve():
            return self
        return dataclasses.replace(self, valid=self.valid or self.train, test=self.test or self.train)


def _read(config: OwnDataConfig, split: Split, *, as_listed: bool) -> list[Example]:
    own = {"train": config.train, "valid": config.valid, "test": config.test}[split]
    path = own or config.train
    rows = _parsed(path, path.stat().st_mtime_ns if path.is_file() else 0)
    shares = {
        "valid": config.valid_fraction if config.valid is None else 0.0,
        "test": config.test_fraction if config.test is None else 0.0,
    }
    chosen = rows
    if own is None or split == "train":
        chosen = [row for row in rows if split_of(row, **shares) == split]
    if not chosen:
        way_out = (
            "give files of their own to validate and test (--task.valid, --task.test)"
            if split == "train"
            else f"give a file for it (--task.{split})"
        )
        raise InputError(f"{path}: no example falls into the split {split!r}; {way_out}")
    if split == "train" or as_listed:
        return chosen
    # All rows that could have come here, so that whether a file is refused does not depend on its split.
    counts = Counter(len(row.candidates) for row in rows)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(row for row in rows if len(row.candidates) != usual)
        most, other = (f"{n} candidates" if n > 1 else "none" for n in (usual, len(odd.candidates)))
        raise InputError(
            f"{path}: rows to rank must list as many candidates each; most list {most}, example {odd.id!r} "
            f"{other}; make them equal, or leave them all out: then {config.n_candidates} labels are drawn"
        )
    if set(counts) == {1}:
        return add_candidates(chosen, n_candidates=config.n_candidates, seed=config.candidate_seed, pool=rows)
    return chosen


@lru_cache(maxsize=3)
def _parsed(path: Path, changed: int) -> list[Example]:
    """The file's examples, which all splits may come from, read once as long as the file does not change."""
    return parse(path)


def split_of(example: Example, *, valid: float, test: float) -> Split:
    """The split of an example by a stable hash of its context: equal contexts stay together."""
    digest = hashlib.sha1("\n".join(example.context).encode()).hexdigest()
    place = int(digest[:8], 16) / 2**32
    return "test" if place < test else "valid" if place < test + valid else "train"


def parse(path: Path) -> list[Example]:
    """All examples of a .jsonl (or .json), .csv or .tsv file.

    Where candidates are given, the label is the first that equals it.

    Raises:
        InputError: the file is missing, of another kind, empty, or has bad lines; all are found, and the
            first 20 shown.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; expected a .jsonl, .csv or .tsv file")
    match path.suffix:
        case ".jsonl" | ".json":
            rows = _json_rows(path)
        case ".csv" | ".tsv":
            rows = _table_rows(path, "," if path.suffix == ".csv" else "\t")
        case other:
            raise InputError(f"{path}: expected a .jsonl, .csv or .tsv file, got {other or 'no ending'}")
    examples: list[Example] = []
    bad: dict[str, list[int]] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        try:
            if isinstance(row, str):
                raise InputError(row)
            example = _example(row, number)
            if example.id in lines:
                raise InputError(f"the id {example.id!r} is that of line {lines[example.id]}")
            lines[example.id] = number
            examples.append(example)
        except InputError as error:
            bad.setdefault(str(error), []).append(number)
    if bad:
        shown = [f"{_lines(numbers)}: {what}" for what, numbers in list(bad.items())[:SHOWN]]
        more = f"\n  and {len(bad) - SHOWN:,} other mistakes" if len(bad) > SHOWN else ""
        n = sum(map(len, bad.values()))
        raise InputError(f"{path}: {n:,} bad lines\n  " + "\n  ".join(shown) + more)
    if not examples:
        raise InputError(f"{path} is empty; expected an example a line")
    return examples


def _lines(numbers: Sequence[int]) -> str:
    """The numbers of lines that have one fault.

    >>> _lines([4]), _lines([4, 7]), _lines([4, 7, 9, 12, 15])
    ('line 4', 'lines 4, 7', 'lines 4, 7, 9 and 2 more')
    """
    first = ", ".join(f"{number:,}" for number in numbers[:3])
    more = f" and {len(numbers) - 3:,} more" if len(numbers) > 3 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {first}{more}"


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and objects, or what is wrong with a line as a text; blank lines are skipped."""
    with path.open("rb") as file:
        number = 0
        while True:
            raw = file.readline(LONGEST_LINE + 1)
            if not raw:
                return
            number += 1
            if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, f"longer than {LONGEST_LINE:,} bytes"
                continue
            raw = raw.rstrip()  # an error at its end would be told as one of the next line
            if not raw:
                continue
            try:
                yield number, json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield number, f"expected UTF-8, got {error.reason} at byte {error.start}"
            except json.JSONDecodeError as error:
                yield number, f"expected JSON, got {error.msg.removesuffix(' at')} at column {error.colno}"
            except RecursionError:
                yield number, "expected an object with a context and a label, got one nested too deeply"
            except ValueError as error:  # a number of thousands of digits
                yield number, f"expected JSON, got {error}"


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_LINE)
    # Bytes that are no UTF-8 come out as half characters, which each row is searched for.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, [])
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            raise InputError(
                f"{path}: line 1: expected columns named {', '.join(KEYS)}, of which context and "
                f"label are needed; got {', '.join(header) or 'nothing'}"
            )
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield number, str(error)
                continue
            if row is None:
                return
            if not row:
                continue
            if any(ord(letter) in _HALF for cell in row for letter in cell):
                yield number, "expected UTF-8, got bytes that are none"
            elif len(row) != len(header):
                yield number, f"expected {len(header)} columns, got {len(row)}"
            else:
                yield number, _table_object(dict(zip(header, row, strict=True)))


def _table_object(row: dict[str, str]) -> dict[str, Any] | str:
    """The object that a row of a table stands for."""
    found: dict[str, Any] = {name: text for name, text in row.items() if name in REQUIRED}
    found["context"] = [turn for turn in row["context"].splitlines() if turn.strip()]
    if row["context"].startswith("["):  # as in a JSONL file; or a text that begins so
        with contextlib.suppress(json.JSONDecodeError):
            found["context"] = json.loads(row["context"])
    if row.get("id"):
        found["id"] = row["id"]
    if row.get("candidates"):
        try:
            found["candidates"] = json.loads(row["candidates"])
        except json.JSONDecodeError:
            return "candidates: expected a JSON list of texts"
    return found


def _example(row: object, number: int) -> Example:
    """The example of an object, or InputError."""
    if not isinstance(row, Mapping):
        raise InputError(f"expected an object with a context and a label, got {type(row).__name__}")
    unknown = [str(key) for key in row if key not in KEYS]
    for name in REQUIRED:
        if name not in row:
            instead = f"; there is an unknown key {unknown[0]!r}" if unknown else ""
            raise InputError(f"no {name!r}{instead}")
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}; expected {', '.join(KEYS)}")
    context = row["context"]
    turns = (context,) if isinstance(context, str) else context
    if not isinstance(turns, list | tuple) or not turns:
        raise InputError(f"context: expected a text or a list of turns, got {_shown(context)}")
    texts = [_text(f"context[{i}]", turn) for i, turn in enumerate(turns)]
    label = _text("label", row["label"])
    candidates = row.get("candidates", [label])
    if not isinstance(candidates, list):
        raise InputError(f"candidates: expected a list of texts, got {_shown(candidates)}")
    listed = [_text(f"candidates[{i}]", candidate) for i, candidate in enumerate(candidates)]
    if label not in listed:
        raise InputError(f"the label {label[:40]!r} is not among the {len(listed)} candidates")
    name = row.get("id", f"line-{number}")
    if not isinstance(name, str | int) or not str(name).strip():
        raise InputError(f"id: expected a text or a number, got {_shown(name)}")
    return Example(str(name), tuple(texts), tuple(listed), listed.index(label), str(name))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: expected a text, got {_shown(value)}")
    if not value.strip():
        raise InputError(f"{name}: the text is empty")
    if any(ord(letter) in _HALF for letter in value):
        raise InputError(f"{name}: {value[:40]!r} holds half a character (a lone surrogate)")
    return value


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:60]
