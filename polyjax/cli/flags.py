"""Shared by all commands: flags from dataclasses, and errors as one line with exit status 2."""

import codecs
import contextlib
import difflib
import errno
import io
import itertools
import json
import os
import re
import signal
import sys
import types
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import jax
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from polyjax.errors import OUT_OF_MEMORY, InputError, Preempted, as_flag, first_line, named_by, shown
from polyjax.runtime.progress import errors

RENAMED = {
    "corpus.files": "--corpus",
    "task.source": "--data-dir",
    "task.data_dir": "--prepared-dir",
    "task.unverified": "--unverified",
    "top_k": "--top",
}
"""Flags whose name differs from the argument's."""


def flag_of(argument: str) -> str:
    """The flag for an argument.

    >>> flag_of("task.source"), flag_of("rank.n")
    ('--data-dir', '--rank.n')
    """
    return RENAMED.get(argument) or as_flag(argument)


_OPEN_CHOICES = ConstructorRegistry()
"""Rules for the flags of fields whose value is a name or, for Python callers, an object."""


@_OPEN_CHOICES.primitive_rule
def _names_of(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """For a union of names and a protocol: the flag takes one of the names; the default may be an object."""
    members = get_args(info.type) if get_origin(info.type) in (Union, types.UnionType) else ()
    if not any(getattr(member, "_is_protocol", False) for member in members):
        return None
    names = [name for member in members if get_origin(member) is Literal for name in get_args(member)]
    if not names:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(names)}}}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value in names if isinstance(value, str) else True,
        str_from_instance=lambda value: [value if isinstance(value, str) else type(value).__name__],
        choices=tuple(names),
    )


def parse_flags(
    settings: Any,
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    default: Any = None,
    description: str | None = None,
) -> Any:
    """Parse a command line.

    Args:
        settings: a dataclass, whose fields are flags, or a union of dataclasses (subcommands).
        arguments: the arguments; those of the process by default.
        prog: name of the command in help and errors.
        default: values of flags that are not given.
        description: first line of the help; by default the dataclass's docstring.

    Raises:
        InputError: a flag or a value is invalid; the message is one line.
    """
    printed, help_text = io.StringIO(), _Help()
    given_default = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(help_text):
            with _OPEN_CHOICES, named_by(flag_of):
                return tyro.cli(settings, args=arguments, prog=prog, description=description, **given_default)
    except SystemExit as stop:
        if stop.code != 2:
            print(without_markup(help_text.getvalue()), end="")
            raise
        given = [word.split("=")[0] for word in (sys.argv[1:] if arguments is None else arguments)]
        raise command_line_error(printed.getvalue(), prog, given) from None


class _Help(io.StringIO):
    """Help to be printed on the standard output, which says whether it may have colours and boxes."""

    def __init__(self):
        super().__init__()
        self._terminal = sys.stdout

    def isatty(self) -> bool:
        return self._terminal.isatty()

    @property
    def encoding(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]  # it is read-only
        return self._terminal.encoding


def without_markup(text: str) -> str:
    """Help without the double backticks of docstrings; the boxes around it keep their width.

    >>> print(without_markup("│ with ``init``, see ││ a box │"))
    │ with init, see     ││ a box │
    """

    def bare(line: str) -> str:
        *cells, end = line.split("│")
        padded = [cell.replace("``", "") + " " * 2 * cell.count("``") for cell in cells]
        return "│".join([*padded, end.replace("``", "")])

    return "".join(map(bare, text.splitlines(keepends=True)))


def command_line_error(box: str, prog: str, given: Sequence[str] = ()) -> InputError:
    """The error in the box that tyro prints.

    Args:
        box: the printed text.
        prog: name of the command.
        given: the words of the command line, to find a misspelt flag.

    >>> print(command_line_error("╭─ Title ─╮\\n│ invalid choice 'x' for │\\n│ '--a'. │\\n╰────╯", "run"))
    run: invalid choice 'x' for '--a'; see run --help
    >>> print(command_line_error(" Title\\n ----------\\n  invalid choice 'x' for\\n  '--a'.\\n", "run"))
    run: invalid choice 'x' for '--a'; see run --help
    """
    bare = re.sub(r"^[╭╰].*$", "", box, flags=re.MULTILINE)
    parts = re.split(r"^│?\s*(?:─+|-{3,})\s*│?$", bare, flags=re.MULTILINE)
    if bare == box:  # without box-drawing characters the title is a separate part
        parts = parts[1:]
    texts = [" ".join(part.replace("│", " ").split()).rstrip(".") for part in parts]
    problem = next((text for text in texts if text), "the command line cannot be parsed")
    problem = re.sub(r"^Error parsing (?!-)\S+: ", "", problem)  # a group's own check names the flag
    meant = (text for text in texts if text.startswith("Perhaps you meant"))
    near = re.findall(r"(?<!\S)--[\w.-]+", next(meant, ""))
    if unknown := re.fullmatch(r"Unrecognized options: (.*)", problem):
        # tyro lists the values that follow unknown flags as well.
        words = unknown[1].split(", ")
        flags = [word for word in words if word.startswith("-")]
        problem = f"unrecognized options: {', '.join(flags or words)}"
        given_flag = (flags or words)[0]
        near.sort(key=lambda flag: -difflib.SequenceMatcher(None, flag, given_flag).ratio())
    advice = f"did you mean {' or '.join(near[:3])}? " if near else ""
    if missing := _missing(box):
        problem = f"missing: {', '.join(missing)}"
        flag = missing[0].split()[0]
        close = difflib.get_close_matches(flag, [w for w in given if w != flag], n=1, cutoff=0.8)
        advice = f"is {close[0]} meant to be {flag}? " if close and flag.startswith("--") else ""
    help_ = f"{'See' if advice else 'see'} {prog} --help"
    return InputError(prog, problem=problem, fix=advice + help_, is_argument=False)


def _missing(box: str) -> list[str]:
    """The required arguments in tyro's box that were not given; their descriptions are indented further.

    >>> _missing("│ Missing from run:   │\\n│     --a STR │\\n│         a file. │\\n│     FILE │\\n│ ─── │")
    ['--a STR', 'FILE']
    """
    lines = iter(re.sub(r"^│|│$", "", line.rstrip()) for line in box.splitlines())
    start = next((line for line in lines if line.strip().startswith("Missing from")), None)
    if start is None:
        return []
    indent = len(start) - len(start.lstrip()) + 4
    part = itertools.takewhile(lambda line: not re.fullmatch(r"\s*(─+|-{3,})\s*", line), lines)
    return [line.strip() for line in part if re.match(rf" {{{indent}}}\S", line)]


def as_text(given: str) -> str:
    r"""A text that was typed; what the locale could not decode is read as UTF-8, or else is U+FFFD.

    Python turns such bytes into lone surrogates, which no tokenizer accepts.

    >>> as_text("h\udcc3\udca9"), as_text("\udce9")
    ('hé', '\ufffd')
    """
    try:
        return given.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half a pair
        return given.encode("utf-8", "replace").decode("utf-8")


def as_json_line(value: Any) -> str:
    """A value as one line of JSON that standard output can encode."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8")


def command_of(arguments: Sequence[str], commands: Collection[str], prog: str) -> tuple[str, Sequence[str]]:
    """The command at the beginning of a command line, and the remaining arguments; ``--help`` lists them.

    Raises:
        InputError: the command does not exist; the message suggests a similar one.
    """
    name, *rest = arguments or [""]
    if name in ("--help", "-h"):
        print(f"{prog} COMMAND: {', '.join(commands)}\n\n{prog} COMMAND --help shows its flags.")
        raise SystemExit(0)
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        raise InputError(
            prog,
            expected=f"a command ({', '.join(commands)})",
            got=name if name else shown("none"),
            fix=f"did you mean {near[0]}? See polyjax --help" if near else "see polyjax --help",
            is_argument=False,
        )
    return name, rest


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A context that prints invalid input as one line with exit status 2; interruptions end quietly."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that it cannot encode
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):  # see ``as_text``
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        encoding = "utf-8" if is_ascii else sys.stdin.encoding
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")
    try:
        yield
    except InputError as error:
        errors.print(f"error: {error.worded(flag_of)}", style="red", markup=False)
        sys.exit(2)
    except Preempted as stopped:
        errors.print(str(stopped), markup=False)
        sys.exit(128 + signal.SIGTERM)  # not 0: a scheduler would consider the run finished
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        errors.print(
            f"error: out of device memory ({first_line(error)}); what was saved is kept. Resume "
            "with --mesh over more devices, a smaller encoder or shorter texts",
            style="red",
            markup=False,
        )
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        errors.print(
            f"error: {error}; what was saved is kept. Make room and run the same command again",
            style="red",
            markup=False,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted; what was saved is kept")
        sys.exit(130)
