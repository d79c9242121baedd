"""Errors as data: what was wrong with which argument, worded once for Python callers and command lines.

The texts of an error name arguments in backticks, as a Python caller writes them. ``InputError.worded``
turns those names into what the reader typed.
"""

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""What jax's errors of exhausted device memory begin with."""

_NOT_GIVEN: Any = object()
_NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
_LONGEST = 200
_NAMES_LOOKED_AT = 1000
_naming: ContextVar[Callable[[str], str]] = ContextVar("naming", default=str)


class InputError(ValueError):
    """Invalid input. The message is one line; the commands print it and exit with status 2.

    Args:
        argument: its name as a Python caller writes it (``batch.batch_size``), or whatever else is at fault,
            such as a file (see ``in_file``).
        expected: what would have worked.
        got: what was given; shown by ``repr``, unless it is a text that ``shown`` made.
        problem: what is wrong, if that is more than an unexpected value.
        fix: what to do.
        is_argument: whether ``argument`` is a caller's, which a command line writes as a flag.

    Attributes:
        argument: as given, like the others; those not given are None.
        has_value: whether ``got`` was given.

    Raises:
        TypeError: none of ``expected``, ``got`` and ``problem`` is given.

    >>> error = InputError("batch.batch_size", expected="at least 2", got=1, fix="lower `mesh.data`")
    >>> print(error)
    batch.batch_size: expected at least 2, got 1; lower mesh.data
    >>> print(error.worded(as_flag))
    --batch.batch-size: expected at least 2, got 1; lower --mesh.data
    """

    def __init__(
        self,
        argument: str,
        *,
        expected: str | None = None,
        got: object = _NOT_GIVEN,
        problem: str | None = None,
        fix: str | None = None,
        is_argument: bool = True,
    ):
        self.argument, self.expected, self.problem, self.fix = argument, expected, problem, fix
        self.has_value = got is not _NOT_GIVEN
        self.got = got if self.has_value else None
        self.is_argument = is_argument
        if expected is None and problem is None and not self.has_value:
            raise TypeError("InputError needs expected, got or problem: a message is built from them")
        super().__init__(self.worded(_naming.get()))

    def __reduce__(self) -> tuple:
        """Pickle the fields, ``got`` as it is shown: a worker process may raise the error."""
        fields = self._fields() | ({"got": shown(_shown(self.got))} if self.has_value else {})
        return _rebuilt, (type(self), self.argument, fields, self.is_argument)

    def _fields(self) -> dict[str, Any]:
        value = {"got": self.got} if self.has_value else {}
        return {"expected": self.expected, "problem": self.problem, "fix": self.fix} | value

    def renamed(self, argument: str) -> "InputError":
        """The same error of another argument: one that the caller knows.

        >>> print(InputError("train.steps", expected="0 or more", got=-1).renamed("steps"))
        steps: expected 0 or more, got -1
        """
        return InputError(argument, **self._fields())

    def in_names(self, name: Callable[[str], str]) -> "InputError":
        """The same error with all arguments named by ``name``, in the fields too.

        >>> error = InputError("train.steps", expected="0 or more", fix="leave `train.steps` out")
        >>> error.in_names(lambda name: name.removeprefix("train.")).fix
        'leave `steps` out'
        """
        fields = {
            key: _NAME.sub(lambda found: f"`{name(found[1])}`", value) if key != "got" and value else value
            for key, value in self._fields().items()
        }
        argument = name(self.argument) if self.is_argument else self.argument
        return type(self)(argument, **fields, is_argument=self.is_argument)

    @classmethod
    def in_file(
        cls,
        path: str | Path,
        line: int | None = None,
        *,
        expected: str | None = None,
        got: object = _NOT_GIVEN,
        problem: str | None = None,
        fix: str | None = None,
    ) -> "InputError":
        """An error in a file, at a line of it (from 1) where one is at fault.

        >>> print(InputError.in_file("a.jsonl", 3, expected="a JSON object", got=[1], fix="write one a line"))
        a.jsonl:3: expected a JSON object, got [1]; write one a line
        """
        place = str(path) if line is None else f"{path}:{line}"
        return cls(place, expected=expected, got=got, problem=problem, fix=fix, is_argument=False)

    @classmethod
    def missing_file(cls, path: Path, expected: str) -> "InputError":
        """The error of a file that is not there; it names one beside it whose name is nearly the same.

        >>> print(InputError.missing_file(Path("no-such-folder/a.jsonl"), "rows"))
        no-such-folder/a.jsonl: the file is missing, expected rows; there is no folder no-such-folder either
        """
        fix = None
        if not path.parent.is_dir():
            fix = f"there is no folder {path.parent} either"
        with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, _NAMES_LOOKED_AT)]
            near = difflib.get_close_matches(path.name, names, n=1)
            fix = f"is {path.with_name(near[0])} meant?" if near else None
        return cls.in_file(path, problem="the file is missing", expected=expected, fix=fix)

    @classmethod
    def in_row(
        cls,
        *,
        expected: str | None = None,
        got: object = _NOT_GIVEN,
        problem: str | None = None,
        fix: str | None = None,
    ) -> "InputError":
        """An error in a row, made where neither the file nor the line is known; ``at`` adds them."""
        return cls("", expected=expected, got=got, problem=problem, fix=fix, is_argument=False)

    def at(self, place: str) -> "InputError":
        """The same error with the place where it is.

        >>> print(InputError.in_row(expected="3 columns", got=shown("2")).at("a.csv:7"))
        a.csv:7: expected 3 columns, got 2
        """
        whole = f"{place}: {self.argument}" if self.argument else place
        return type(self)(whole, **self._fields(), is_argument=False)

    def worded(self, name: Callable[[str], str] = str) -> str:
        """The message.

        Args:
            name: turns an argument's Python name into what the reader typed.
        """

        def text(words: str) -> str:
            return _NAME.sub(lambda found: name(found[1]), words)

        parts = [] if self.problem is None else [text(self.problem)]
        if self.expected is not None:
            parts.append(f"expected {text(self.expected)}")
        if self.has_value:
            parts.append(f"got {_shown(self.got)}")
        argument = name(self.argument) if self.is_argument else text(self.argument)
        message = f"{argument}: {', '.join(parts)}" if argument else ", ".join(parts)
        return message if self.fix is None else f"{message}; {text(self.fix)}"


def _rebuilt(kind: type[InputError], argument: str, fields: dict[str, Any], is_argument: bool) -> InputError:
    return kind(argument, **fields, is_argument=is_argument)


@contextlib.contextmanager
def named_by(name: Callable[[str], str]) -> Iterator[None]:
    """Errors created inside name their arguments by ``name``.

    >>> with named_by(as_flag):
    ...     print(InputError("top_k", expected="at least 1", got=0))
    --top-k: expected at least 1, got 0
    """
    token = _naming.set(name)
    try:
        yield
    finally:
        _naming.reset(token)


@contextlib.contextmanager
def called_with(names: Mapping[str, str]) -> Iterator[None]:
    """Errors raised inside name arguments as a function of Python has them; also a decorator of it.

    Args:
        names: the function's arguments, by the names of settings, or of groups of them.

    >>> with called_with({"train.steps": "steps"}):
    ...     raise InputError("train.steps", expected="0 or more", got=-1, fix="leave `train.steps` out")
    Traceback (most recent call last):
    polyjax.errors.InputError: steps: expected 0 or more, got -1; leave steps out
    """

    def name(setting: str) -> str:
        parts = setting.split(".")
        for n in range(len(parts), 0, -1):
            if (known := names.get(".".join(parts[:n]))) is not None:
                return ".".join([known, *parts[n:]])
        return setting

    try:
        yield
    except InputError as error:
        raise error.in_names(name).with_traceback(error.__traceback__) from None


class shown(str):
    """A description of what was given, put into a message as it is."""

    __slots__ = ()


def _shown(value: object) -> str:
    text = value if isinstance(value, shown) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def as_flag(argument: str) -> str:
    """An argument's name as the command line writes it.

    >>> as_flag("rank.n_candidates")
    '--rank.n-candidates'
    """
    return f"--{argument.replace('_', '-')}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters, to quote in an InputError."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class Preempted(Exception):
    """A run received SIGTERM and saved its state. The commands exit with status 143.

    Args:
        step: the step that was saved.
    """

    def __init__(self, step: int):
        super().__init__(
            f"stopped by SIGTERM after step {step}, which is saved; the same command resumes from there"
        )
