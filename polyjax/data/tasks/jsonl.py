"""Anyone's own data: JSON lines, CSV or TSV.

A row has ``context`` (a text, or a list of turns, oldest first) and ``label``. Optional are ``candidates``
(texts to rank, including the label), ``id``, ``answers`` (further right ones), ``negatives`` (wrong ones to
train with), ``scores`` (a teacher's, of the candidates and then of the negatives) and ``group`` (shared by
rows of one source, such as a conversation: intervals are drawn over groups). CSV and TSV have a header line
with these names; there, turns are the lines of a cell, and lists are JSON. All lines are checked before any
is used.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from polyjax.data.candidates import add_candidates
from polyjax.data.identity import digests, text_key, with_answers
from polyjax.data.rows import Rows
from polyjax.data.tasks.own_files import rows_of
from polyjax.data.tasks.own_rows import example_of
from polyjax.data.tasks.protocol import KS, Split, Task
from polyjax.data.tasks.source import check_fractions
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.types import Example

SHOWN = 20
"""Errors of bad lines that a message shows; the others are counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDataConfig:
    """The task's settings.

    Attributes:
        train: file to train on.
        valid: file to validate on; by default a fraction of the training file.
        test: file to test on; by default a fraction of the training file.
        valid_fraction: share of the training file's rows to validate on, without a validation file.
        test_fraction: share of the training file's rows to test on, without a test file.
        n_candidates: candidates of a validation or test row that lists none: its label and others' labels.
        candidate_seed: seed of the draw of candidates.
        single_label: only a row's own label is right. By default all right answers that rows of one context
            name are, and the best placed one counts.
    """

    train: Path
    valid: Path | None = None
    test: Path | None = None
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    n_candidates: int = 20
    candidate_seed: int = 0
    single_label: bool = False

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
        """The training file's name, without its ending."""
        return self.train.stem

    def read(self, split: Split) -> Rows:
        """The examples of a split: its file's, or its share of the training file.

        Validation and test rows that list no candidates get some: labels of all the file's rows,
        none of them right for their context. Rows of one context are in one split.

        Raises:
            InputError: a file is missing or has bad lines (all are reported), the split is empty, or its rows
                list different numbers of candidates.
        """
        rows = self.read_listed(split)
        if split == "train":
            return rows
        file = self._file(split)
        if check_counts(self._path(split), file.rows, self.n_candidates) > 1:
            return rows
        drawn = add_candidates(
            rows.examples,
            n_candidates=self.n_candidates,
            seed=self.candidate_seed,
            pool=file.rows,
            what=f"{split} candidates",
        )
        return dataclasses.replace(rows, examples=drawn)

    def read_listed(self, split: Split) -> Rows:
        """The examples of a split as the file has them.

        Raises:
            InputError: a file is missing or has bad lines, or the split is empty.
        """
        file = self._file(split)
        shares = {
            "valid": self.valid_fraction if self.valid is None else 0.0,
            "test": self.test_fraction if self.test is None else 0.0,
        }
        chosen = file.rows
        if split == "train" or self._own(split) is None:
            chosen = [row for row, leader in zip(*file, strict=True) if split_of(leader, **shares) == split]
        if not chosen:
            others = "`task.valid` and `task.test`, files to validate and test on"
            raise InputError.in_file(
                self._path(split),
                problem=f"no example falls into the split {split!r}",
                fix=f"give {others if split == 'train' else f'a file for it, `task.{split}`'}",
            )
        if split == "train":
            return Rows(chosen)
        if self.single_label:
            ranked = [dataclasses.replace(row, answers=()) for row in chosen]
        else:
            ranked = with_answers(chosen, self._known(split, file))
        return Rows(ranked, copies_note(ranked, split))

    def _known(self, split: Split, file: "OwnFile") -> list[Example]:
        """The rows of a split's file and of the task's other files that are there: all may name answers."""
        own = self._path(split)
        others = {path: one for one in get_args(Split) if (path := self._path(one)) != own and path.is_file()}
        return [*file.rows, *(row for one in others.values() for row in self._file(one).rows)]

    def read_all(self) -> Sequence[Example]:
        """All rows of the training file, those that are validated and tested on among them.

        Raises:
            InputError: the file is missing or has bad lines.
        """
        return self._file("train").rows

    def describe(self, split: Split, n: int) -> str:
        """A line about n rows of a split."""
        return f"{n:,} {split} rows of {self._path(split).name}"

    def beside(self, trained: Task | None) -> "OwnDataConfig":
        """The settings to test a model on this file: all rows, unless the model was trained on this file."""
        if isinstance(trained, OwnDataConfig) and trained.train.resolve() == self.train.resolve():
            return self
        return dataclasses.replace(self, valid=self.valid or self.train, test=self.test or self.train)

    def _own(self, split: Split) -> Path | None:
        """A split's own file."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def _path(self, split: Split) -> Path:
        """The file that a split's rows are in."""
        return self._own(split) or self.train

    def _file(self, split: Split) -> "OwnFile":
        return _files.read(self._path(split))


class OwnFile(NamedTuple):
    """What a file holds.

    Attributes:
        rows: all examples.
        leaders: for each the first example that has its context (by the rule of ``data.identity``), whose
            split it shares.
    """

    rows: list[Example]
    leaders: list[Example]


class FileCache:
    """Caches the rows of files until these change, since all splits may come from one file.

    Args:
        limit: bytes of the files whose rows are kept; a larger file is not kept.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: dict[tuple[Path, int, tuple[int, ...]], OwnFile] = {}

    def read(self, path: Path) -> OwnFile:
        """A file's content.

        Raises:
            InputError: as ``parse``.
        """
        if not path.is_file():
            parse(path)
        state = path.stat()
        # Copying tools restore the time of the last change of the content, but not that of the state.
        key = (path.absolute(), state.st_size, (state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
        if key in self._kept:
            return self._kept[key]
        rows = parse(path)
        first: dict[int, Example] = {}
        contexts = digests(rows).contexts.tolist()
        found = OwnFile(rows, [first.setdefault(c, row) for c, row in zip(contexts, rows, strict=True)])
        if state.st_size <= self._limit:
            self._kept[key] = found
            while sum(size for _, size, _ in self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
        return found


_files = FileCache(limit=64_000_000)
"""A file's rows as Python objects take several times its bytes."""


def check_counts(path: Path, rows: Sequence[Example], n_drawn: int) -> int:
    """The number of candidates that each row of a file lists, whatever its split.

    Args:
        path: of the file.
        rows: all of them, so that whether a file is refused does not depend on the split.
        n_drawn: candidates of rows that list none.

    Raises:
        InputError: they list different numbers.
    """
    counts = Counter(len(row.candidates) for row in rows)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(row for row in rows if len(row.candidates) != usual)
        most, other = (f"{n} candidates" if n > 1 else "none" for n in (usual, len(odd.candidates)))
        raise InputError.in_file(
            path,
            problem="rows to rank must list as many candidates each",
            expected=f"{most}, as most rows",
            got=shown(f"{other} in example {odd.id!r}"),
            fix=f"make them equal, or leave them all out: then {n_drawn} labels are drawn",
        )
    return next(iter(counts))


def copies_note(examples: Sequence[Example], split: str) -> str:
    """What a report says of rows that list a candidate more than once; "" where none does."""
    labels = wrong = 0
    for example in examples:
        counts = Counter(map(text_key, example.candidates if len(example.candidates) > 1 else ()))
        labels += counts.pop(text_key(example.label_text), 0) > 1
        wrong += max(counts.values(), default=0) > 1
    of = f"of {len(examples):,} {split} rows list copies of"
    notes = [f"warning: {wrong:,} {of} a wrong candidate, each of which counts"] if wrong else []
    notes += [f"{labels:,} {of} their label, which do not count against it"] if labels else []
    return "; ".join(notes)


def split_of(example: Example, *, valid: float, test: float) -> Split:
    """The split of an example by a stable hash of its context."""
    digest = hashlib.sha1("\n".join(example.context).encode()).hexdigest()
    place = int(digest[:8], 16) / 2**32
    return "test" if place < test else "valid" if place < test + valid else "train"


def parse(path: Path) -> list[Example]:
    """All examples of a file; see ``own_files`` for its kinds and ``own_rows`` for its rows.

    Raises:
        InputError: the file is missing, of another kind, empty, or has bad lines. All of these are found, and
            the message shows the first 20 errors, one per line.
    """
    examples: list[Example] = []
    bad: dict[str, list[int]] = {}
    faults: dict[str, InputError] = {}
    lines: dict[str, int] = {}  # of the ids that rows have
    unnamed: list[int] = []  # places of the others
    in_line: Counter[int] = Counter()
    for number, row in rows_of(path):
        try:
            if isinstance(row, InputError):
                raise row
            in_line[number] += 1  # several, if a list is written on one line
            nth = f"-{in_line[number]}" if in_line[number] > 1 else ""
            example = example_of(row, f"line-{number}{nth}")
            if row.get("id") is None:
                unnamed.append(len(examples))
            elif example.id in lines:
                problem = f"the id {example.id!r} is also that of line {lines[example.id]}"
                raise InputError.in_row(problem=problem)
            else:
                lines[example.id] = number
            examples.append(example)
        except InputError as error:
            bad.setdefault(str(faults.setdefault(str(error), error)), []).append(number)
    if len(faults) == 1 and len(numbers := bad[next(iter(faults))]) == 1:
        raise next(iter(faults.values())).at(f"{path}:{numbers[0]}")
    if bad:
        raise _bad_lines(path, bad)
    if not examples:
        raise InputError.in_file(path, problem="the file is empty", expected="an example a line")
    for i in unnamed:
        examples[i] = _with_free_id(examples[i], lines)
    return examples


def _with_free_id(example: Example, taken: Container[str]) -> Example:
    """The example under an id that no row has, such as one that a file made of this one has kept."""
    name = example.id
    while name in taken:
        name += "+"
    group = name if example.group == example.id else example.group
    return example if name == example.id else dataclasses.replace(example, id=name, group=group)


def _bad_lines(path: Path, bad: Mapping[str, Sequence[int]]) -> InputError:
    n = sum(map(len, bad.values()))
    mistakes = [f"{_lines(numbers)}: {what}" for what, numbers in list(bad.items())[:SHOWN]]
    more = f"\n  and {len(bad) - SHOWN:,} other errors" if len(bad) > SHOWN else ""
    return InputError.in_file(path, problem=f"{n:,} bad lines\n  " + "\n  ".join(mistakes) + more)


def _lines(numbers: Sequence[int]) -> str:
    """The numbers of lines with the same error.

    >>> _lines([4]), _lines([4, 7]), _lines([4, 7, 9, 12, 15])
    ('line 4', 'lines 4, 7', 'lines 4, 7, 9 and 2 more')
    """
    first = ", ".join(f"{number:,}" for number in numbers[:3])
    more = f" and {len(numbers) - 3:,} more" if len(numbers) > 3 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {first}{more}"
