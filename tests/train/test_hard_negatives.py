"""Rows with negatives of their own: learnt beside in-batch ones, resumed exactly, on any mesh."""

import dataclasses

import numpy as np
import pytest

import toy
from polyjax import InputError
from polyjax.data.batches import BatchConfig
from polyjax.mesh.placement import BatchPlacer
from polyjax.runs import MetricsLog
from runs import assert_same, parameters, saved_steps

ROWS = toy.examples(60, hard=3)
SETTINGS = {"train_examples": ROWS, "steps": 21, "save_every_steps": 7, "validate_every_steps": 21}


def test_a_run_that_stops_in_between_resumes_exactly(tmp_path, monkeypatch):
    whole = toy.run(tmp_path / "whole", "poly", **SETTINGS)
    placed, calls = BatchPlacer.__call__, []

    def fails_at_the_tenth(self, batch):
        calls.append(batch.inputs.listed.tokens.ids.shape)
        if len(calls) == 10:
            raise RuntimeError("no more")
        return placed(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(BatchPlacer, "__call__", fails_at_the_tenth)
        with pytest.raises(RuntimeError, match="no more"):
            toy.run(tmp_path / "parts", "poly", **SETTINGS)
    assert {shape[1] for shape in calls} == {3} and saved_steps(tmp_path / "parts") == ["7"]
    again = toy.run(tmp_path / "parts", "poly", **SETTINGS)
    assert again.steps == whole.steps == 21
    assert_same(parameters(tmp_path / "parts", "poly", 21), parameters(tmp_path / "whole", "poly", 21))


def test_devices_and_chunks_share_both_kinds(tmp_path):
    """Eight devices, or chunks of a batch, end where one device does, but for rounding."""
    settings = SETTINGS | {"batch_size": 16, "dropout": 0.0}
    losses = []
    for name, changes in {
        "one": {},
        "eight": {"mesh": "data=8"},
        "chunks": {"batch": BatchConfig(batch_size=16, chunk=8)},
    }.items():
        toy.run(tmp_path / name, "bi", **settings, **changes)
        losses.append([row["loss"] for row in MetricsLog.read(tmp_path / name) if row["kind"] == "train"])
    assert losses[0][-1] < losses[0][0]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=2e-3)


def test_they_are_harder_than_others(tmp_path):
    """The loss counts them: with near negatives it is higher than without, from the same start."""
    first = {}
    for name, hard in {"with": 8, "without": 0}.items():
        batch = BatchConfig(batch_size=10, hard_negatives=hard)
        toy.run(tmp_path / name, "bi", **SETTINGS | {"steps": 1, "validate_every_steps": 1}, batch=batch)
        first[name] = next(row["loss"] for row in MetricsLog.read(tmp_path / name) if row["kind"] == "train")
    assert first["with"] > first["without"] + 0.05


def test_a_student_learns_from_its_teacher_and_not_from_the_labels(tmp_path):
    """Every label is wrong and the teacher knows better: the student ranks as it does."""
    rows = [dataclasses.replace(row, label=3) for row in toy.examples(80, candidates=6)]
    taught = [dataclasses.replace(row, scores=(8.0, 0.0, 0.0, 0.0, 0.0, 0.0)) for row in rows]
    batch = BatchConfig(batch_size=10, candidates="inline")
    found = {}
    for loss in ("kl", "softmax"):
        toy.run(
            tmp_path / loss,
            "poly",
            train_examples=taught,
            batch=batch,
            loss=loss,
            steps=80,
            validate_every_steps=80,
        )
        valid = [row for row in MetricsLog.read(tmp_path / loss) if row["kind"] == "valid"]
        found[loss] = valid[-1]["recall@1/8"]
    assert found["kl"] > 0.9 > 0.5 > found["softmax"]
    with pytest.raises(InputError) as error:
        toy.run(tmp_path / "none", "poly", train_examples=rows, batch=batch, loss="kl", steps=1)
    assert error.value.argument == "loss"
