"""Whose a run directory is: one process's at a time, and one run's settings for good."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polyjax.config import from_json, to_json
from polyjax.errors import InputError
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.runs.layout import CONFIG, DATA, LOCK, read_json, saved_steps, write_json
from polyjax.runtime.files import PARTIAL, exclusive_lock


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
    message = f"{run_dir}: another process trains there; wait for it, or choose another --run-dir"
    with exclusive_lock(run_dir / LOCK, message):
        yield


@contextlib.contextmanager
def owned_run(run_dir: Path, config: Any, *, incidental: Sequence[str] = ()) -> Iterator[None]:
    """``run_lock``, and under it ``open_run``, so that nothing is taken over from a run that goes on.

    Args:
        run_dir: as ``open_run``; the others as well.
        config: the run's settings.
        incidental: names of settings that may differ.

    Raises:
        InputError: as both.
    """
    with contextlib.ExitStack() as lock:
        with primary_first("run directory"):
            if is_primary():
                _make_folder(run_dir)
                lock.enter_context(run_lock(run_dir))
            open_run(run_dir, config, incidental=incidental)
        try:
            yield
        except InputError:
            # A mistake that came to light before anything was made leaves no folder that looks like a run.
            if is_primary() and _nothing_made(run_dir):
                shutil.rmtree(run_dir)
            raise


def _make_folder(run_dir: Path) -> None:
    """Make a run directory; one that is there is one, or empty."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / CONFIG).exists() and not _nothing_made(run_dir):
            raise InputError(f"{run_dir} is not empty and holds no {CONFIG}; choose another --run-dir")
    except OSError as error:
        raise InputError(f"--run-dir {str(run_dir)!r} cannot be written: {error}") from None


def _nothing_made(run_dir: Path) -> bool:
    """Whether a folder holds nothing but what a run begins with."""
    # A kill may have left the settings' first, unfinished writing.
    return all(entry.name in (CONFIG, CONFIG + PARTIAL, LOCK) for entry in run_dir.iterdir())


def open_run(run_dir: Path, config: Any, *, incidental: Sequence[str] = ()) -> None:
    """Create a run directory for these settings, or check that the one there belongs to the same.

    As long as nothing was trained there, other settings take a directory over: there is nothing to lose.

    Args:
        run_dir: the run directory.
        config: the run's settings.
        incidental: dotted names of settings that change no result, and may differ.

    Raises:
        InputError: the directory belongs to other settings, is not a run directory, or cannot be written.
    """
    path = run_dir / CONFIG
    wanted = json.loads(json.dumps(to_json(config)))
    if path.exists():
        differing = _differences(_completed(read_json(path), type(config)), wanted)
        differing = {name: pair for name, pair in differing.items() if name not in incidental}
        if differing and not saved_steps(run_dir):
            shutil.rmtree(run_dir / "tokenizer", ignore_errors=True)
            write_json(path, wanted)
        elif differing:
            shown = [
                f"{name.replace('_', '-')} = {old!r}, this one has {new!r}"
                for name, (old, new) in differing.items()
            ]
            more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
            raise InputError(
                f"{run_dir} belongs to a run with {'; '.join(shown[:3])}{more}; "
                "choose another --run-dir, or remove that directory"
            )
        return
    _make_folder(run_dir)
    try:
        write_json(path, wanted)
    except OSError as error:
        raise InputError(f"--run-dir {str(run_dir)!r} cannot be written: {error}") from None


def open_data(run_dir: Path, digests: dict[str, str]) -> None:
    """Note which rows a run has, or check that they are those that it had.

    Settings name files, and files change. Other rows would be split anew, so that some that a run has learnt
    from would be among those that it is tested on. As long as nothing was trained, they are taken over.

    Args:
        run_dir: of ``open_run``.
        digests: of each split's rows.

    Raises:
        InputError: the run was trained with other rows.
    """
    path = run_dir / DATA
    if path.exists():
        before = read_json(path)
        changed = [
            f"{name} ({before.get(name)}; now {now})"
            for name, now in digests.items()
            if before.get(name) != now
        ]
        if not changed:
            return
        if saved_steps(run_dir):
            raise InputError(
                f"{run_dir} belongs to a run with other rows to {', '.join(changed)}: its data have changed; "
                "choose another --run-dir, or remove that directory"
            )
        shutil.rmtree(run_dir / "tokenizer", ignore_errors=True)
    write_json(path, digests)


def _completed(old: Any, kind: type) -> Any:
    """A configuration's JSON with the entries that it did not have yet when it was written."""
    try:
        return json.loads(json.dumps(to_json(from_json(kind, old, source=CONFIG))))
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
