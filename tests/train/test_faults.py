"""What befalls a run: signals, damage, a full disk, other devices. With real processes."""

import errno
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
from polyjax.cli.flags import user_errors
from polyjax.errors import Preempted
from polyjax.mesh.placement import make_mesh
from polyjax.runs import Checkpoints, MetricsLog
from polyjax.runs.checkpoints import BEST_BY_FILE
from polyjax.train import Trainer
from polyjax.train.interrupt import Notice
from polyjax.train.losses import ranking_loss
from runs import SCRIPT, assert_same, finish, parameters, saved_steps, start, wait_for_steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final parameters of an uninterrupted run on one device."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run_dir))
    return parameters(run_dir, "poly", 60)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, whole):
    """Here at a step that is not to be validated."""
    process = start(tmp_path, "save_every_steps=0", "validate_every_steps=60")
    while not (tmp_path / "metrics.jsonl").exists() or not MetricsLog.read(tmp_path):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = finish(process, status=143)
    (step,) = saved_steps(tmp_path)
    assert f"stopped by SIGTERM after step {step}, which is saved" in said and "Traceback" not in said
    assert 10 <= int(step) < 60
    finish(start(tmp_path, "save_every_steps=0", "validate_every_steps=60"))
    assert_same(parameters(tmp_path, "poly", 60), whole)


def test_sigterm_when_a_validation_is_due_or_at_the_end(tmp_path, monkeypatch):
    """The validation is made, and the plateau rule and the choice of the best have it."""
    toy.run(tmp_path / "whole", "bi")
    for stops in ([20], [60]):
        run_dir = tmp_path / str(stops[0])
        monkeypatch.setattr(Notice, "given", lambda self, step, stops=stops: step in stops)
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
    with pytest.raises(InputError) as error:
        parameters(tmp_path, "bi", 7)
    assert error.value.argument == str(largest.absolute()) and "sha256" in error.value.problem
    assert error.value.fix == "no other step is saved"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError) as error:
        log.write(1, "train", {"loss": 1.0})
    assert error.value.argument == str(tmp_path / "metrics.jsonl")
    assert "cannot be written" in error.value.problem and error.value.fix == "make room, then resume"


def test_a_full_disk_anywhere_is_one_line(tmp_path, monkeypatch, capsys):
    """Here where a run that goes on rewrites its log."""

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("polyjax.runs.log.write_text", full)
    with pytest.raises(SystemExit) as stopped, user_errors():
        MetricsLog(tmp_path, resume_step=0)
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and "No space left" in said and "Make room and run the same" in said


def test_training_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError) as error:
        toy.run(tmp_path, "bi", trainable=0)
    assert (error.value.argument, error.value.got) == ("train.trainable", 0)
    assert error.value.fix == "train at least one layer"


def test_a_trace_of_updates_that_were_made_already_is_an_error(tmp_path):
    toy.run(tmp_path, "bi", steps=7, validate_every_steps=7)
    with pytest.raises(InputError) as error:
        toy.run(tmp_path, "bi", steps=14, validate_every_steps=7, profile_steps="3-4")
    assert (error.value.argument, error.value.expected) == ("profile_steps", "some of the steps 8-14")


OUT_OF_MEMORY = """
import resource, sys
import jax, jax.numpy as jnp
import toy
from polyjax.cli.flags import user_errors
from polyjax.train import trainer
step = trainer.make_train_step

def limited(*arguments, **settings):
    # Compiled first, then without room for what it computes.
    run = step(*arguments, **settings)
    def once(state, batch):
        program = run.lower(state, batch).compile()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
        return program(state, batch)
    return once

trainer.make_train_step = limited
with user_errors():
    toy.run(__import__("pathlib").Path(sys.argv[1]), "bi", batch_size=8192, train_examples=toy.examples(8192))
"""


def test_memory_that_is_really_exhausted_names_the_flag(tmp_path):
    """A limit of the process's address space, in place of a device's."""
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILATION, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path)],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, done.stderr
    assert "exhausted with 8192 contexts per step (nothing was saved yet; no batch was skipped)" in said
    assert "resume with 4096 as" in said and "Traceback" not in said


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed after some saves."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    process = start(run_dir)
    wait_for_steps(process, run_dir, after=21)
    latest = saved_steps(run_dir)[-1]
    while not (run_dir / "checksums" / f"{latest}.txt").exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return run_dir


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, tmp_path, killed, whole):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
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
    said = finish(start(tmp_path))
    assert str(largest) in said.replace("\n", "") and "put aside" in said
    assert f"after step {before} of 60" in said
    assert (tmp_path / "damaged" / latest).is_dir()
    assert_same(parameters(tmp_path, "poly", 60), whole)


def _emptied(step: Path, run_dir: Path) -> None:
    (step / BEST_BY_FILE).write_text("")


def _unfinished(step: Path, run_dir: Path) -> None:
    """As a kill between a checkpoint and its checksums leaves it, on a disk that had not all of it yet."""
    (run_dir / "checksums" / f"{step.name}.txt").unlink()
    largest = max((p for p in (step / "training").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:50])


def _no_checksums(step: Path, run_dir: Path) -> None:
    (run_dir / "checksums" / f"{step.name}.txt").write_text("")


@pytest.mark.parametrize("damage", [_emptied, _unfinished, _no_checksums])
def test_damage_beside_the_arrays_is_named_as_well(damage, tmp_path, capsys):
    settings = {"steps": 21, "validate_every_steps": 21}
    toy.run(tmp_path / "whole", "bi", **settings)
    run_dir = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run_dir)
    damage(run_dir / "checkpoints" / "21", run_dir)
    if damage is _emptied:
        step = (run_dir / "checkpoints" / "21").absolute()
        with pytest.raises(InputError) as error:
            Checkpoints(run_dir, read_only=True)
        assert (error.value.argument, error.value.problem) == (str(step / BEST_BY_FILE), "damaged")
        assert error.value.fix == f"remove {step} to use another step"
    capsys.readouterr()
    toy.run(run_dir, "bi", **settings)
    said = " ".join(capsys.readouterr().out.split())
    assert "put aside" in said and "after step 14 of 21" in said and len(said) < 1000
    assert (run_dir / "damaged" / "21").is_dir()
    assert_same(parameters(run_dir, "bi", 21), parameters(tmp_path / "whole", "bi", 21))


def test_where_all_checkpoints_are_damaged_it_says_so(tmp_path):
    toy.run(tmp_path, "bi", steps=14, validate_every_steps=14)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError) as error:
        toy.run(tmp_path, "bi", steps=14, validate_every_steps=14)
    assert "bytes" in error.value.problem and "to start again" in error.value.fix
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_is_not_put_aside(tmp_path):
    toy.run(tmp_path, "bi", steps=7, validate_every_steps=7)
    with pytest.raises(InputError) as error:
        toy.run(tmp_path, "poly", steps=7, validate_every_steps=7)
    assert error.value.argument.endswith("7") and "cannot be restored" in error.value.problem
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


def test_a_save_that_does_not_fit_leaves_the_one_before(tmp_path, killed, whole):
    """A limit of file sizes, which the second checkpoint cannot keep to, stands for a full disk."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
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
    finish(start(tmp_path))
    assert_same(parameters(tmp_path, "poly", 60), whole)


def restored_on(mesh: str, run_dir: Path) -> dict[str, np.ndarray]:
    """All arrays of the latest checkpoint, restored onto a mesh."""
    scorer = make_scorer(toy.SHAPE, toy.HEADS["poly"], rngs=nnx.Rngs(5))
    optim = toy.OPTIM["poly"]
    devices = make_mesh(mesh, jax.devices()[: 8 if mesh == "data=4,fsdp=2" else int(mesh[-1])])
    trainer = Trainer(scorer, ranking_loss, encoder=toy.SHAPE, n_steps=60, optim=optim, mesh=devices)
    trainer.restore(Checkpoints(run_dir, read_only=True))
    assert jax.tree.map(lambda leaf: leaf.sharding, trainer.state) == trainer.shardings
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(trainer.state))
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


def test_exhausted_memory_names_the_argument(tmp_path):
    from polyjax.data.batches import BatchConfig
    from polyjax.train.faults import errors_named
    from polyjax.train.ranking import too_much

    def exhausted(devices=1, saved=None, **batch) -> InputError:
        advice = too_much(BatchConfig(**batch), devices=devices)
        with pytest.raises(InputError) as error, errors_named(lambda: saved, lambda: advice):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return error.value

    error = exhausted(batch_size=32)
    assert "32 contexts" in error.problem and "nothing was saved" in error.problem
    assert "resume with 16 as `batch.chunk`" in error.fix
    assert "step 5 is saved" in exhausted(batch_size=32, saved=5).problem
    error = exhausted(batch_size=32, chunk=4)
    assert "4 contexts" in error.problem and "2 as `batch.chunk`" in error.fix
    assert "8 as `batch.chunk`" in exhausted(batch_size=32, chunk=12, devices=8).fix
    for settings in ({"chunk": 1}, {"chunk": 8, "devices": 8}):
        fix = exhausted(batch_size=32, **settings).fix
        assert "`encoder.remat`" in fix and "chunk" not in fix
    other = errors_named(lambda: None, lambda: ("", ""))
    with pytest.raises(jax.errors.JaxRuntimeError), other:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
