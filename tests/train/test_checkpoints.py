"""Checkpoints as files: readable without this package, and of any trees of arrays."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import toy
from polyjax.runs import Checkpoints, MetricsLog
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
