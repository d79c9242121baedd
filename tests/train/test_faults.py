"""What befalls a run: signals, damage, a full disk, other devices. With real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import toy
from conftest import FAST_COMPILATION
from polyjax import InputError, make_scorer
from polyjax.train.checkpoint import Checkpoints
from polyjax.train.metrics_log import MetricsLog
from polyjax.train.optim import make_optimizer, plateau, trainable_filter
from polyjax.train.sharding import make_mesh, placed, shardings_of
from polyjax.train.step import init_state
from polyjax.types import Preempted
from runs import SCRIPT, assert_same, finish, parameters, saved_steps, start, wait_for_steps


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The final parameters of an uninterrupted run on one device."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run_dir, cache))
    return parameters(run_dir, "poly", 60)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, cache, whole):
    """Here at a step that is not to be validated."""
    process = start(tmp_path, cache, "save_every_steps=0", "validate_every_steps=60")
    while not (tmp_path / "metrics.jsonl").exists() or not MetricsLog.read(tmp_path):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = finish(process, status=143)
    (step,) = saved_steps(tmp_path)
    assert f"stopped by SIGTERM after step {step}, which is saved" in said and "Traceback" not in said
    assert 10 <= int(step) < 60
    finish(start(tmp_path, cache, "save_every_steps=0", "validate_every_steps=60"))
    assert_same(parameters(tmp_path, "poly", 60), whole)


def test_sigterm_when_a_validation_is_due_or_at_the_end(tmp_path, monkeypatch):
    """The validation is made, and the plateau rule and the choice of the best have it."""
    import polyjax.train.loop as loop

    toy.run(tmp_path / "whole", "bi")
    for stops in ([20], [60]):
        run_dir = tmp_path / str(stops[0])
        monkeypatch.setattr(loop.Notice, "given", lambda self, step, stops=stops: step in stops)
        with pytest.raises(Preempted, match=f"after step {stops[0]}"):
            toy.run(run_dir, "bi")
        stops.clear()
        toy.run(run_dir, "bi")
        rows, expected = (
            [row for row in MetricsLog.read(folder) if row["kind"] == "valid"]
            for folder in (run_dir, tmp_path / "whole")
        )
        assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
        assert_same(parameters(run_dir, "bi", 60), parameters(tmp_path / "whole", "bi", 60))


def test_a_model_that_was_changed_is_not_used(tmp_path):
    toy.run(tmp_path, "bi", steps=7, validate_every_steps=7)
    files = [p for p in (tmp_path / "checkpoints" / "7" / "model").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        parameters(tmp_path, "bi", 7)


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be written .*make room"):
        log.write(1, "train", {"loss": 1.0})


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, tmp_path, cache, whole):
    process = start(tmp_path, cache)
    wait_for_steps(process, tmp_path, after=21)
    latest = saved_steps(tmp_path)[-1]
    while not (tmp_path / "checksums" / f"{latest}.txt").exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    before, latest = saved_steps(tmp_path)[-2:]
    files = [p for p in (tmp_path / "checkpoints" / latest / "training").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    if damage == "removed":
        largest.unlink()
    elif damage == "cut":
        largest.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    said = finish(start(tmp_path, cache))
    assert str(largest) in said.replace("\n", "") and "put aside" in said
    assert f"after step {before} of 60" in said
    assert (tmp_path / "damaged" / latest).is_dir()
    assert_same(parameters(tmp_path, "poly", 60), whole)


def test_where_all_checkpoints_are_damaged_it_says_so(tmp_path):
    toy.run(tmp_path, "bi", steps=14, validate_every_steps=14)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"is damaged.*to begin anew") as caught:
        toy.run(tmp_path, "bi", steps=14, validate_every_steps=14)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_not_put_aside(tmp_path):
    toy.run(tmp_path, "bi", steps=7, validate_every_steps=7)
    with pytest.raises(InputError, match="cannot be restored"):
        toy.run(tmp_path, "poly", steps=7, validate_every_steps=7)
    assert saved_steps(tmp_path) == ["7"]


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_save_that_does_not_fit_leaves_the_one_before(tmp_path, cache, whole):
    """A limit of file sizes, which the second checkpoint cannot keep to, stands for a full disk."""
    process = start(tmp_path, cache)
    wait_for_steps(process, tmp_path)
    process.kill()
    process.communicate()
    kept = saved_steps(tmp_path)
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILATION, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    full = subprocess.run(
        [sys.executable, "-c", FULL, "20000", str(SCRIPT), str(tmp_path), "poly", "batch_size=8"],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert full.returncode == 2, full.stderr
    assert "cannot be saved" in full.stderr and f"step {kept[-1]} is kept" in full.stderr
    assert "Traceback" not in full.stderr
    assert saved_steps(tmp_path) == kept
    finish(start(tmp_path, cache))
    assert_same(parameters(tmp_path, "poly", 60), whole)


def restored_on(mesh: str, run_dir: Path) -> dict[str, np.ndarray]:
    """All arrays of the latest checkpoint, restored onto a mesh."""
    scorer = make_scorer(toy.SHAPE, toy.HEADS["poly"], rngs=nnx.Rngs(5))
    optim = toy.OPTIM["poly"]
    _, state = init_state(
        scorer, make_optimizer(optim, 60), plateau(optim), trainable_filter("all", 2), seed=0
    )
    devices = make_mesh(mesh, jax.devices()[: 8 if mesh == "data=4,fsdp=2" else int(mesh[-1])])
    shardings = shardings_of(state, devices)
    state, _ = Checkpoints(run_dir, read_only=True).restore(placed(state, shardings))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_saved_on_eight_devices_resumed_on_fewer(tmp_path):
    """With ``fsdp`` each device has a part of each matrix; any other mesh puts the parts together."""
    settings = {"batch_size": 8, "steps": 9, "validate_every_steps": 9}
    toy.run(tmp_path, "poly", mesh="data=4,fsdp=2", **settings)
    final = parameters(tmp_path, "poly", 9)
    shutil.rmtree(tmp_path / "checkpoints" / "9")
    saved = restored_on("data=4,fsdp=2", tmp_path)
    for mesh in ("data=1", "data=2", "data=4", "model=2"):
        assert_same(restored_on(mesh, tmp_path), saved)
    for mesh in ("data=1", "fsdp=4"):
        copy = tmp_path.with_name(tmp_path.name + mesh)
        shutil.copytree(tmp_path, copy)
        assert toy.run(copy, "poly", mesh=mesh, **settings).steps == 9
        for name, value in parameters(copy, "poly", 9).items():
            np.testing.assert_allclose(value, final[name], atol=2e-4, err_msg=name)


def test_exhausted_memory_names_the_flag(tmp_path):
    from polyjax.data.pipeline import BatchConfig
    from polyjax.train.failures import errors_named
    from polyjax.train.ranking import too_much

    def exhausted(devices=1, **batch):
        with errors_named(Checkpoints(tmp_path), lambda: too_much(BatchConfig(**batch), devices=devices)):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    with pytest.raises(InputError, match=r"for 32 contexts .*nothing was saved.*--batch.chunk 16 goes on"):
        exhausted(batch_size=32)
    with pytest.raises(InputError, match=r"for 4 contexts .*--batch.chunk 2 goes on"):
        exhausted(batch_size=32, chunk=4)
    with pytest.raises(InputError, match="smaller encoder"):
        exhausted(batch_size=32, chunk=1)
    with pytest.raises(InputError, match="--batch.chunk 8 goes on"):
        exhausted(batch_size=32, chunk=12, devices=8)
    with pytest.raises(InputError, match="smaller encoder"):
        exhausted(batch_size=32, chunk=8, devices=8)
    other = errors_named(Checkpoints(tmp_path), lambda: ("", ""))
    with pytest.raises(jax.errors.JaxRuntimeError), other:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
