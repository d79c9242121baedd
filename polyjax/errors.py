"""Errors as data: what was wrong with which argument, worded once, for Python callers and command lines.

Texts of an error name arguments between backticks, as a Python caller writes them; ``InputError.worded``
turns those names into whatever the reader typed.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""What jax's errors of exhausted device memory begin with."""

_NOT_GIVEN: Any = object()
_NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
_LONGEST = 200
_naming: ContextVar[Callable[[str], str]] = ContextVar("naming", default=str)


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line; the commands print it and exit with 2.

    Args:
        argument: its name as a Python caller writes it (``batch.batch_size``), or what is at fault, such as
            a file (see ``in_file``); the whole message where nothing else is given.
        expected: what would have worked.
        got: what came; shown by ``repr``, unless it is a text that ``shown`` made.
        problem: what is wrong, where that is not a value other than expected.
        fix: what to do.

    Attributes:
        argument: as given; the others as well, None where there is none.
        is_argument: whether ``argument`` is a caller's, which a command line writes as a flag.

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
        is_text = expected is None and problem is None and not self.has_value
        self.is_argument = is_argument and not is_text
        super().__init__(self.worded(_naming.get()))

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
        message = f"{argument}: {', '.join(parts)}" if parts else argument
        return message if self.fix is None else f"{message}; {text(self.fix)}"


@contextlib.contextmanager
def named_by(name: Callable[[str], str]) -> Iterator[None]:
    """Word the errors that are made within with other names for arguments.

    >>> with named_by(as_flag):
    ...     print(InputError("top_k", expected="at least 1", got=0))
    --top-k: expected at least 1, got 0
    """
    token = _naming.set(name)
    try:
        yield
    finally:
        _naming.reset(token)


class shown(str):
    """A description of what came, put into a message as it is."""

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
    """The beginning of an error that may be long, as a part of an InputError."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class Preempted(Exception):
    """A run was told to stop (SIGTERM), and has saved its state. The commands exit with status 143.

    Args:
        step: steps made.
    """

    def __init__(self, step: int):
        super().__init__(
            f"stopped by SIGTERM after step {step}, which is saved; the same command resumes from there"
        )
