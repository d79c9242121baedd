"""Several processes as one run, with real processes: what they train, and what befalls them."""

import os
import signal
import subprocess

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import toy
from polyjax import InputError, make_scorer
from polyjax.runs import Checkpoints, MetricsLog, flat_parameters
from polyjax.train import Trainer
from polyjax.train.losses import ranking_loss
from runs import SHORTER, assert_same, finish, joined, pair, parameters, python, start, wait_for_steps


@pytest.fixture(scope="module")
def pair_whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    said = [finish(process) for process in pair(run_dir)]
    assert "valid loss" in said[0] and "valid loss" not in said[1], "one of them reports"
    return run_dir


def test_one_update_of_two_processes_is_that_of_one(tmp_path):
    for process in pair(tmp_path / "two", "steps=1"):
        finish(process)
    finish(start(tmp_path / "one", *SHORTER, "steps=1"))
    together, alone = (parameters(tmp_path / name, "poly", 1) for name in ("two", "one"))
    moved = 0.0
    scorer = make_scorer(toy.SHAPE, toy.HEADS["poly"], rngs=nnx.Rngs(0))
    before = {name: np.asarray(value) for name, value in flat_parameters(nnx.state(scorer)).items()}
    for name, value in together.items():
        moved = max(moved, np.abs(value - before[name]).max())
        # Adam moves a parameter by the whole rate, whichever way the rounding of a gradient of 0 points.
        close = np.isclose(value, alone[name], rtol=0, atol=1e-5)
        assert close.mean() > 0.99 or name.endswith("qkv.bias"), name
    assert moved > 1e-4
    losses = [MetricsLog.read(tmp_path / name)[0]["loss"] for name in ("two", "one")]
    assert abs(losses[0] - losses[1]) < 1e-5 * losses[1]
    assert_close_gradients(*(first_gradients(tmp_path / name) for name in ("two", "one")))


def first_gradients(run_dir):
    """Those of the only update made, but for a factor: Adam's first moment."""
    optim = toy.OPTIM["poly"]
    scorer = make_scorer(toy.SHAPE, toy.HEADS["poly"], rngs=nnx.Rngs(0))
    trainer = Trainer(scorer, ranking_loss, encoder=toy.SHAPE, n_steps=1, optim=optim)
    trainer.restore(Checkpoints(run_dir, read_only=True))
    found = [leaf for leaf in jax.tree.leaves(trainer.state.optimizer, is_leaf=_is_adam) if _is_adam(leaf)]
    return jax.tree.leaves(jax.device_get([adam.mu for adam in found]))


def _is_adam(leaf):
    return isinstance(leaf, optax.ScaleByAdamState)


def assert_close_gradients(together, alone):
    assert len(together) == len(alone) > 10
    largest = max(np.abs(value).max() for value in alone)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest)
    assert largest > 1e-3, "gradients of nothing are equal anyway"


def test_two_processes_train_as_one(pair_whole, tmp_path):
    finish(start(tmp_path, *SHORTER))
    whole = parameters(tmp_path, "poly", 30)
    together = parameters(pair_whole, "poly", 30)
    for name, value in together.items():
        np.testing.assert_allclose(value, whole[name], atol=2e-3, err_msg=name)
    rows = MetricsLog.read(pair_whole)
    assert [row["step"] for row in rows if row["kind"] == "valid"] == [10, 20, 30]


@pytest.mark.parametrize("killed", [1, 0])
def test_killing_one_of_two_stops_the_other_and_both_go_on(killed, tmp_path, pair_whole):
    run_dir = tmp_path / "run"
    processes = pair(run_dir)
    wait_for_steps(processes[0], run_dir)
    processes[killed].kill()
    processes[killed].communicate()
    other = processes[1 - killed]
    _, errors = other.communicate(timeout=120)
    if killed == 1:
        assert other.returncode == 2, errors
        assert "lost the others" in errors and "the same command" in errors and "Traceback" not in errors
    else:  # without the first process jax's own service ends the others, which may come before our line
        assert other.returncode != 0
        assert "lost the others" in errors or "another task died" in errors
        return  # what was saved is the same as there
    for process in pair(run_dir):
        finish(process)
    assert_same(parameters(run_dir, "poly", 30), parameters(pair_whole, "poly", 30))


def test_sigterm_to_one_of_two_stops_both_at_the_same_step(tmp_path, pair_whole):
    run_dir = tmp_path / "run"
    processes = pair(run_dir)
    wait_for_steps(processes[0], run_dir)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, status=143)
    for process in pair(run_dir):
        finish(process)
    assert_same(parameters(run_dir, "poly", 30), parameters(pair_whole, "poly", 30))


@pytest.mark.parametrize(
    ("variables", "argument", "problem"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "x",
                "JAX_PROCESS_ID": "0",
            },
            "JAX_NUM_PROCESSES",
            "a whole number",
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "JAX_PROCESS_ID",
            "below JAX_NUM_PROCESSES=2",
        ),
    ],
)
def test_variables_that_cannot_work(variables, argument, problem, monkeypatch):
    from polyjax.mesh.processes import connect

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        connect()
    assert error.value.argument == argument and not error.value.is_argument
    assert problem in (error.value.problem or error.value.expected)


def test_slurm_and_kubernetes_are_found(monkeypatch):
    import polyjax.mesh.processes as distributed

    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: asked.update(settings))
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "JAX_COORDINATOR_ADDRESS", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    distributed.connect()
    assert not asked, "one process is left alone"
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    distributed.connect()
    assert not asked, "an indexed job of single processes too"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    distributed.connect()
    assert (asked["coordinator_address"], asked["num_processes"], asked["process_id"]) == ("host:1", 4, 3)
    asked.clear()
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    distributed.connect()
    assert not asked, "sbatch's own shell is no task of srun's"
    slurm = {"STEP_NODELIST": "node[001-002,7]", "JOB_ID": "4097", "PROCID": "1", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x2)")
    distributed.connect()
    assert (asked["coordinator_address"], asked["num_processes"], asked["process_id"]) == (
        "node001:61441",
        2,
        1,
    )
    assert asked["local_device_ids"] is None, "alone on its node, it has all devices"
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2")
    distributed.connect()
    assert asked["local_device_ids"] == [0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    distributed.connect()
    assert asked["local_device_ids"] is None, "srun shows each task its own device"
    monkeypatch.setenv("SLURM_STEP_NODELIST", "rack[1-2]node[04-6,9],other")
    distributed.connect()
    assert asked["coordinator_address"] == "rack1node04:61441"


def test_a_time_limit_stops_two_processes_at_the_same_step(tmp_path):
    for process in pair(tmp_path, "time_limit=1", "steps=100000", "validate_every_steps=100000"):
        finish(process)
    (last,) = [row for row in MetricsLog.read(tmp_path) if row["kind"] == "valid"]
    assert last["step"] % 10 == 0


def together(script: str) -> list[subprocess.Popen]:
    """A script as two processes that find each other."""
    return [python(["-c", script], {**os.environ, **variables}) for variables in joined(2)]


def test_one_waits_for_what_another_prepares():
    processes = together("""
import time
from polyjax.mesh.processes import connect, primary_first, is_primary
connect()
with primary_first("data"):
    if is_primary():
        time.sleep(3)
    print(time.time())
""")
    first, second = (float(finish(process).split()[0]) for process in processes)
    assert second > first


@pytest.mark.parametrize("failing", [0, 1])
def test_what_stops_one_is_told_by_the_other(failing):
    """A mistake that one process finds: one line in each of them."""
    processes = together(f"""
import jax
from polyjax import InputError
from polyjax.cli.flags import user_errors
from polyjax.mesh.processes import connect, leaving_at_once, losses_named, wait
with leaving_at_once(), user_errors(), losses_named():
    connect()
    if jax.process_index() == {failing}:
        raise InputError("vocabulary", problem="too large")
    wait("vocabulary")
""")
    for i, process in enumerate(processes):
        said = " ".join(finish(process, status=2).split())
        told = "" if i == failing else f"process {failing} of 2 stopped: "
        assert told in said and "vocabulary: too large" in said
        assert "Traceback" not in said and len(said) < 300


def test_sigterm_outside_the_training_ends_a_process():
    processes = together("""
import time
from polyjax.mesh.processes import connect
from polyjax.train.interrupt import Notice
connect()
with Notice() as notice:
    notice.given(1)
print("evaluating", flush=True)
time.sleep(100)
""")
    for process in processes:
        assert process.stdout.readline() == "evaluating\n"
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, status=-signal.SIGTERM)


def test_parameters_that_are_split_over_processes(tmp_path, pair_whole):
    """fsdp over all devices: no process has a whole matrix, and validates and saves all the same."""
    for process in pair(tmp_path, "mesh=fsdp=4"):
        finish(process)
    losses = [
        [row["loss"] for row in MetricsLog.read(folder) if row["kind"] == "valid"]
        for folder in (tmp_path, pair_whole)
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(*losses, rtol=1e-3)
