"""What the commands share: flags from a dataclass, and a user's mistake as one line with status 2."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from polyjax.progress import errors
from polyjax.types import InputError


def parse_flags(
    settings: Any, arguments: Sequence[str] | None = None, *, prog: str, default: Any = None
) -> Any:
    """The settings that a command line asks for.

    Args:
        settings: a dataclass, whose fields are flags, or a union of dataclasses: subcommands.
        arguments: those of the process by default.
        prog: the command, as help and errors show it.
        default: what flags that are not given keep.

    Raises:
        InputError: a flag or a value is wrong; the message is one line.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if default is None:
                return tyro.cli(settings, args=arguments, prog=prog)
            return tyro.cli(settings, args=arguments, prog=prog, default=default)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise InputError(one_line(printed.getvalue(), prog)) from None


def one_line(box: str, prog: str) -> str:
    """tyro's box around a mistake, as one line.

    >>> print(one_line("╭─ Invalid choice ─╮\\n│ invalid choice 'x' for │\\n│ '--a'. │\\n╰────╯", "run"))
    invalid choice 'x' for '--a'; see run --help
    """
    parts = re.split(r"^│?\s*─+\s*│?$", re.sub(r"^[╭╰].*$", "", box, flags=re.MULTILINE), flags=re.MULTILINE)
    texts = [" ".join(part.replace("│", " ").split()).rstrip(".") for part in parts]
    mistake = next((text for text in texts if text), "the command line could not be read")
    mistake = re.sub(r"^Error parsing (?!-)\S+: ", "", mistake)  # a group's own check names the flag
    near = [re.findall(r"(?<!\S)--[\w.-]+", text) for text in texts if text.startswith("Perhaps you meant")]
    advice = f"; did you mean {' or '.join(near[0][:3])}?" if near and near[0] else ""
    return f"{mistake}{advice}; see {prog} --help"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A mistake of the user's becomes one line and exit status 2; an interruption ends quietly."""
    try:
        yield
    except InputError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted; what was saved is kept")
        sys.exit(130)
