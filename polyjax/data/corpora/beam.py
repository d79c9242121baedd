"""Apache Beam: its runner and its flags, checked before anything is prepared."""

import contextlib
import io
import logging
import shlex
from collections.abc import Iterator
from typing import Any

from polyjax.errors import InputError, first_line


def check_runner(name: str) -> None:
    """Raise InputError where Beam is not installed or has no such runner."""
    logging.getLogger().addFilter(_no_apitools)
    try:
        from apache_beam.runners.runner import create_runner
    except ModuleNotFoundError:
        raise InputError(
            "corpus", problem="preparing a corpus needs Apache Beam", fix="run: pip install 'polyjax[beam]'"
        ) from None
    finally:
        logging.getLogger().removeFilter(_no_apitools)
    try:
        create_runner(name)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise InputError("corpus.beam_runner", problem=first_line(error), got=name) from None


def beam_options(given: str) -> Any:
    """Beam's PipelineOptions of flags in one text.

    Raises:
        InputError: they cannot be parsed, or Beam knows no such flag and would leave it out.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        flags = shlex.split(given)
    except ValueError as error:
        raise InputError("corpus.beam_options", problem=str(error), got=given) from None
    beam_log, printed = logging.getLogger("apache_beam"), io.StringIO()
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(printed):
            options = PipelineOptions(flags)
            known = set(options.get_all_options())
            unknown = set(options.get_all_options(retain_unknown_options=True)) - known
    except SystemExit:  # of Beam's own parser
        said = (printed.getvalue().strip().splitlines() or ["not understood"])[-1]
        raise InputError("corpus.beam_options", problem=said, got=given) from None
    finally:
        beam_log.setLevel(level)
    if unknown or any(not flag.startswith("-") for flag in flags[:1]):
        what = ", ".join(f"--{name}" for name in sorted(unknown)) or flags[0]
        raise InputError("corpus.beam_options", problem=f"Beam knows no flag {what}", got=given)
    return options


def _no_apitools(record: logging.LogRecord) -> bool:
    """False for what Beam says of Google's cloud, at its import, where that is not installed."""
    return "apitools not found" not in record.getMessage()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
