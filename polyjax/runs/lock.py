"""Run-directory locking: one process at a time; settings and data are fixed once training has begun."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.config import Foreign, from_json, to_json
from polyjax.data.known import changed_rows, load_known
from polyjax.errors import InputError
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.runs.layout import CONFIG, DATA, LOCK, TOKENIZER, read_json, saved_steps, write_json
from polyjax.runtime.files import PARTIAL, exclusive_lock

ELSEWHERE = "choose another `run_dir`"
ANEW = f"{ELSEWHERE}, or remove that directory to start again"
_SHOWN, _LONGEST = 8, 60
"""Settings that an error names, and characters of a value."""
_DIGEST = re.compile(r"\b[0-9a-f]{32,}\b")


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
        made: list[Path] = []
        ours = False
        try:
            with primary_first("run directory"):
                if is_primary():
                    made = [folder for folder in run_dir.parents if not folder.exists()]
                    _make_folder(run_dir)
                    lock.enter_context(run_lock(run_dir))
                    ours = not (run_dir / CONFIG).exists()
                open_run(run_dir, config, incidental=incidental, foreign=foreign)
                ours = is_primary()
            yield
        except InputError:
            # After an error before anything was made, no folder that looks like a run is left,
            # and no empty one around it.
            if ours and _nothing_made(run_dir):
                shutil.rmtree(run_dir)
                for folder in made:  # innermost first
                    with contextlib.suppress(OSError):  # another run is in it
                        folder.rmdir()
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
            problem = f"belongs to a run with other settings: {_in_words(differing)}"
            raise InputError.in_file(run_dir, problem=problem, fix=ANEW)
        return
    _make_folder(run_dir)
    try:
        write_json(path, wanted)
    except OSError as error:
        raise _not_written(run_dir, error) from None


def open_data(run_dir: Path, digests: Mapping[str, str], *, trained_on: np.ndarray | None = None) -> None:
    """Record which rows a run has, or check that they are the recorded ones.

    Settings name files, and files change. Other rows would be split differently, and the run would be tested
    on rows that it was trained on. Until something was trained, other rows replace the earlier ones.

    Args:
        run_dir: of ``open_run``.
        digests: of each split's rows, as ``rows_digest`` gives them.
        trained_on: digests of the training rows, as ``Digests.rows``.

    Raises:
        InputError: the run was trained on other rows; the message counts them.
    """
    path = run_dir / DATA
    if path.exists():
        before = read_json(path)
        changed = {name: now for name, now in digests.items() if before.get(name) != now}
        if not changed:
            return
        if saved_steps(run_dir):
            known = load_known(run_dir) if trained_on is not None else None
            counted = [_other_rows(name, before.get(name), now) for name, now in changed.items()]
            if "train" in changed and known is not None and trained_on is not None:
                counted[list(changed).index("train")] = _other_training_rows(np.unique(trained_on), known)
            problem = f"belongs to a run with other data: {'; '.join(counted)}"
            raise InputError.in_file(run_dir, problem=problem, fix=ANEW)
        shutil.rmtree(run_dir / TOKENIZER, ignore_errors=True)
    write_json(path, digests)


def _in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Settings with their former and their present values; the first few."""
    said = [f"`{name}` was {_value(old)}, now {_value(new)}" for name, (old, new) in differing.items()]
    more = f" (and {len(said) - _SHOWN} more)" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more


def _value(value: Any) -> str:
    text = _DIGEST.sub(lambda found: f"{found[0][:8]}...", json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _other_rows(split: str, before: str | None, now: str) -> str:
    """How the rows of a split differ, as far as ``rows_digest`` tells."""
    old, new = ((text or "no rows").split(" rows")[0] for text in (before, now))
    if old == new:
        return f"the {new} {split} rows are others, or have another order or other candidates"
    return f"{new} {split} rows, {old} before"


def _other_training_rows(now: np.ndarray, before: np.ndarray) -> str:
    """How training rows differ, by their digests."""
    new, missing = len(np.setdiff1d(now, before)), len(np.setdiff1d(before, now))
    if not new and not missing:
        return "the training rows are the same, in another order or with other candidates or answers"
    return changed_rows(new, len(now), missing, len(before), rows="train rows")


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
