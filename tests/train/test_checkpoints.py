"""Checkpoints: readable without this package, of any trees of arrays, in a process that is left alone."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import jax
import numpy as np
import pytest

import toy
from polyjax import InputError
from polyjax.runs import Checkpoints, MetricsLog
from polyjax.runs import quiet as quiet_module
from polyjax.runs.quiet import ArrayError, attempt, quiet
from runs import parameters

ORBAX_ALONE = """
import json, sys
from pathlib import Path
import numpy as np
import orbax.checkpoint as ocp

run_dir, out = Path(sys.argv[1]), sys.argv[2]
folder = (run_dir / "checkpoints").absolute()
manager = ocp.CheckpointManager(folder, item_names=("model", "training", "progress"))
step = manager.best_step() or manager.latest_step()
found = manager.restore(step, args=ocp.args.Composite(
    model=ocp.args.StandardRestore(), training=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
))
np.savez(out, **found["model"])
print(json.dumps({
    "step": step,
    "counted": int(found["training"]["step"]),
    "progress": found["progress"],
    "polyjax": [name for name in sys.modules if name.split(".")[0] == "polyjax"],
}))
"""


def test_orbax_alone_opens_a_runs_checkpoint(tmp_path):
    """A process that imports orbax and numpy only reads parameters, state and progress."""
    run_dir, out = tmp_path / "run", tmp_path / "model.npz"
    toy.run(run_dir, "poly", steps=7, validate_every_steps=7)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ORBAX_ALONE, str(run_dir), str(out)],
        env=environment | {"XLA_FLAGS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["polyjax"] == []
    assert said["step"] == said["counted"] == 7
    assert said["progress"]["finished"] == "all steps made"
    valid = next(row for row in MetricsLog.read(run_dir) if row["kind"] == "valid")
    assert said["progress"]["best"] == valid["recall@1/8"]
    expected = parameters(run_dir, "poly", 7)
    with np.load(out) as found:
        assert set(found.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_trees_of_any_arrays_are_saved_and_restored(tmp_path):
    trees = {"model": {"a.b": np.arange(3.0)}, "training": {"counts": {"x": np.arange(4)}}}
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(
            step, {**trees, "model": {"a.b": np.arange(3.0) * step}}, {"n": step}, best_by=-float(step)
        )
    again = Checkpoints(tmp_path)
    assert (again.steps, again.latest_step, again.best_step) == ([1, 2], 2, 1)
    found, progress = again.restore(trees)
    assert progress == {"n": 2}
    np.testing.assert_array_equal(found["model"]["a.b"], [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(found["training"]["counts"]["x"], np.arange(4))


@pytest.mark.parametrize("module", ["polyjax.runs", "polyjax.train.state"])
def test_importing_them_brings_no_orbax(module):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('orbax.checkpoint' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_opening_for_reading_says_nothing(tmp_path):
    """In a process of its own: orbax speaks through absl, whose logger pytest has already taken."""
    Checkpoints(tmp_path).save(1, TREES, {}, best_by=None)
    program = (
        "import logging, pathlib, sys; logging.getLogger('absl')\n"  # before absl is imported, as a user may
        "import polyjax.data.batches\n"  # grain imports orbax
        "from polyjax.runs.checkpoints import Checkpoints\n"
        "print(Checkpoints(pathlib.Path(sys.argv[1]), read_only=True).latest_step, logging.root.handlers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    # A handler that stayed would make the user's own logging.basicConfig do nothing.
    assert (done.stdout, done.stderr) == ("1 []\n", "")


def process_state() -> dict[str, object]:
    """What a library must leave as it found it."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "jax", "orbax")]
    return {
        "unraisablehook": sys.unraisablehook,
        "levels": [logger.level for logger in loggers],
        "filters": [list(logger.filters) for logger in loggers],
        "disabled": logging.root.manager.disable,
        "signals": {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)},
        "jax": dict(jax.config.values),
        "warnings": list(warnings.filters),
    }


TREES = {
    tree: {f"a{i}": np.random.default_rng(i).random((64, 64), np.float32) for i in range(12)}
    for tree in ("model", "training")
}


@contextlib.contextmanager
def small_files():
    """Writing more than some bytes into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_failed_save_leaves_the_process_as_it_was(tmp_path, capfd):
    before, mine = process_state(), []
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, TREES, {}, best_by=None)
    assert process_state() == before
    handler = logging.Handler()
    handler.emit = mine.append
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    try:
        with small_files(), pytest.raises(InputError) as error:
            checkpoints.save(2, TREES, {}, best_by=None)
    finally:
        for name in ("absl", "asyncio"):
            logging.getLogger(name).removeHandler(handler)
    gc.collect()
    assert process_state() == before
    assert error.value.argument.endswith("checkpoints") and "step 1 is kept" in error.value.problem
    assert error.value.fix == "make room, then resume"
    assert not mine and not capfd.readouterr().err, "orbax itself says nothing, late or early"
    Checkpoints(tmp_path).save(2, TREES, {}, best_by=None)
    assert Checkpoints(tmp_path, read_only=True).steps == [1, 2]


def test_a_damaged_checkpoint_leaves_the_process_as_it_was(tmp_path, capfd):
    before = process_state()
    Checkpoints(tmp_path).save(1, TREES, {}, best_by=None)
    for file in (tmp_path / "checkpoints" / "1" / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    shutil.rmtree(tmp_path / "checksums")  # so that orbax is what finds it
    with pytest.raises(InputError) as error:
        Checkpoints(tmp_path, read_only=True).restore(TREES)
    gc.collect()
    assert process_state() == before
    assert "cannot be restored" in error.value.problem and "\n" not in str(error.value)
    assert not capfd.readouterr().err


LATE = """
async def part():
    raise ValueError("disk full")

async def save(held, asyncio):
    held += [asyncio.gather(part(), part()) for _ in range(3)]
    await asyncio.sleep(0)
    held.append(part())  # never begun
    await asyncio.gather(part(), part())
"""


@pytest.mark.parametrize("at_most", [10.0, 0.5])
def test_tasks_that_outlive_a_failed_save_are_not_logged(monkeypatch, caplog, recwarn, at_most):
    """On a slow disk, writes that are still in progress keep tasks alive after the first one has failed."""
    names, held = {}, []
    exec(compile(LATE, "/somewhere/orbax/checkpoint.py", "exec"), names)

    def work():
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(names["save"](held, asyncio))
        finally:
            loop.close()

    monkeypatch.setattr(quiet_module, "AT_MOST_S", at_most)
    timer = threading.Timer(1.0, held.clear)
    if at_most > 1:
        timer.start()
    with pytest.raises(ArrayError, match="disk full"):
        attempt(work)
    if at_most < 1:
        assert len(held) == 4, "still alive, and reported once"
        held.pop().close()
        held.clear()
    gc.collect()
    assert not held and not caplog.records and not recwarn.list


def test_threads_that_are_quiet_at_once_leave_the_process_as_it_was():
    before = process_state()
    entered, leave = threading.Event(), threading.Event()

    def first():
        with quiet():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(30)
    with quiet():
        leave.set()
        thread.join()
        assert sys.unraisablehook is not before["unraisablehook"], "the second still needs it"
    assert process_state() == before


def test_a_hook_that_is_set_meanwhile_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back after the test
    mine = lambda late: None  # noqa: E731
    with quiet():
        sys.unraisablehook = mine
    assert sys.unraisablehook is mine


def test_training_and_loading_leave_the_process_as_it_was(tmp_path):
    before = process_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "enable_compilation_cache", lambda: None)  # the toy run is a command
        toy.run(tmp_path, "bi", steps=7, validate_every_steps=7)
    assert parameters(tmp_path, "bi", 7)
    assert process_state() == before
