"""Run-directory locking: one process at a time; settings and data are fixed once training has begun."""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from polyjax.config import Foreign, from_json, to_json
from polyjax.errors import InputError, shown
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.runs.layout import CONFIG, DATA, LOCK, TOKENIZER, read_json, saved_steps, write_json
from polyjax.runtime.files import PARTIAL, exclusive_lock

ELSEWHERE = "choose another `run_dir`"
ANEW = f"{ELSEWHERE}, or remove that directory to start again"
_SHOWN = 3


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Keep other runs from training in a run directory; the system frees it if this process is killed.

    Of the processes of one run the primary one holds it.

    Raises:
        InputError: another process holds it.
    """
    if not is_primary():
        yield
        return
    problem, fix = "another process is training there", f"wait for it, or {ELSEWHERE}"
    with exclusive_lock(run_dir / LOCK, problem, fix=fix):
        yield


@contextlib.contextmanager
def owned_run(
    run_dir: Path,
    config: Any,
    *,
    incidental: Sequence[str] = (),
    foreign: Foreign = Foreign(),  # noqa: B008  # frozen
) -> Iterator[None]:
    """``run_lock`` and, under it, ``open_run``, so that a run in progress is left alone.

    Args:
        run_dir: as ``open_run``; the others as well.
        config: the run's settings.
        incidental: names of settings that may differ.
        foreign: parts that config.json may record.

    Raises:
        InputError: as for both.
    """
    with contextlib.ExitStack() as lock:
        with primary_first("run directory"):
            if is_primary():
                _make_folder(run_dir)
                lock.enter_context(run_lock(run_dir))
            open_run(run_dir, config, incidental=incidental, foreign=foreign)
        try:
            yield
        except InputError:
            # After an error before anything was made, no folder that looks like a run is left.
            if is_primary() and _nothing_made(run_dir):
                shutil.rmtree(run_dir)
            raise


def _make_folder(run_dir: Path) -> None:
    """Make a run directory; an existing folder must be one, or empty."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / CONFIG).exists() and not _nothing_made(run_dir):
            problem = f"is not empty and has no {CONFIG}"
            raise InputError.in_file(run_dir, problem=problem, fix=ELSEWHERE)
    except OSError as error:
        raise _not_written(run_dir, error) from None


def _not_written(run_dir: Path, error: OSError) -> InputError:
    return InputError.in_file(run_dir, problem=f"cannot be written ({error})", fix=ELSEWHERE)


def _nothing_made(run_dir: Path) -> bool:
    """Whether a folder holds nothing but what a run begins with."""
    # A killed process may have left the unfinished file of settings.
    return all(entry.name in (CONFIG, CONFIG + PARTIAL, LOCK) for entry in run_dir.iterdir())


def open_run(
    run_dir: Path,
    config: Any,
    *,
    incidental: Sequence[str] = (),
    foreign: Foreign = Foreign(),  # noqa: B008  # frozen
) -> None:
    """Create a run directory for these settings, or check that the one there belongs to the same.

    Until something was trained there, other settings replace the earlier ones: nothing is lost.

    Args:
        run_dir: the run directory.
        config: the run's settings.
        incidental: dotted names of settings that change no result, and may differ.
        foreign: parts that config.json may record, see ``polyjax.config.from_json``.

    Raises:
        InputError: the directory belongs to other settings, is not a run directory, or cannot be written.
    """
    path = run_dir / CONFIG
    wanted = json.loads(json.dumps(to_json(config)))
    if path.exists():
        differing = _differences(_completed(read_json(path), type(config), foreign), wanted)
        differing = {name: pair for name, pair in differing.items() if name not in incidental}
        if differing and not saved_steps(run_dir):
            shutil.rmtree(run_dir / TOKENIZER, ignore_errors=True)
            write_json(path, wanted)
        elif differing:
            raise InputError.in_file(
                run_dir,
                problem="belongs to a run with other settings",
                expected=_listed(f"`{name}` = {old!r}" for name, (old, _) in differing.items()),
                got=shown(_listed(repr(new) for _, new in differing.values())),
                fix=ANEW,
            )
        return
    _make_folder(run_dir)
    try:
        write_json(path, wanted)
    except OSError as error:
        raise _not_written(run_dir, error) from None


def open_data(run_dir: Path, digests: dict[str, str]) -> None:
    """Record which rows a run has, or check that they are the recorded ones.

    Settings name files, and files change. Other rows would be split differently, and the run would be tested
    on rows that it was trained on. Until something was trained, other rows replace the earlier ones.

    Args:
        run_dir: of ``open_run``.
        digests: of each split's rows.

    Raises:
        InputError: the run was trained on other rows.
    """
    path = run_dir / DATA
    if path.exists():
        before = read_json(path)
        changed = {name: now for name, now in digests.items() if before.get(name) != now}
        if not changed:
            return
        if saved_steps(run_dir):
            raise InputError.in_file(
                run_dir,
                problem="belongs to a run with other data",
                expected=_listed(f"{name} rows of digest {before.get(name)}" for name in changed),
                got=shown(_listed(changed.values())),
                fix=ANEW,
            )
        shutil.rmtree(run_dir / TOKENIZER, ignore_errors=True)
    write_json(path, digests)


def _listed(items: Iterable[str]) -> str:
    """The first few."""
    items = list(items)
    more = f" (and {len(items) - _SHOWN} more)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _completed(old: Any, kind: type, foreign: Foreign) -> Any:
    """A configuration's JSON with entries added that did not exist when it was written."""
    try:
        return json.loads(json.dumps(to_json(from_json(kind, old, source=CONFIG, foreign=foreign))))
    except InputError:
        return old


def _differences(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Entries of two JSON values that differ, by dotted name."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*old, *new}):
            found |= _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return {} if old == new else {name: (old, new)}
