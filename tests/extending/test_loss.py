"""A loss of one's own that learns a teacher's scores, in this file alone."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from problem import recall, rows, trained

import polyjax
from polyjax import InputError
from polyjax.config import recorded
from polyjax.data.batches import BatchConfig


@polyjax.part("soft-ranks", version=2)
def soft_ranks(scores, batch):
    """Every pair of candidates in the teacher's order: -log sigmoid of their scores' difference."""
    taught, real = batch.teacher.scores, batch.teacher.where & batch.where
    before = (taught[:, :, None] > taught[:, None, :]) & real[:, :, None] & real[:, None, :]
    wrong = jax.nn.softplus(scores[:, None, :] - scores[:, :, None])
    return jnp.where(before, wrong, 0.0).sum((1, 2)) / jnp.maximum(before.sum((1, 2)), 1).astype(jnp.float32)


soft_ranks.needs_teacher = True


def test_it_learns_from_the_teacher_whatever_the_labels_say(tmp_path):
    wrong = [dataclasses.replace(row, label=3) for row in rows(60, 5, 0)]
    taught = [dataclasses.replace(row, scores=(2.0, 0.5, 0.5, 0.0, 0.0)) for row in wrong]
    batch = BatchConfig(batch_size=12, candidates="inline")
    lines = trained(tmp_path / "run", examples=taught, loss=soft_ranks, batch=batch)
    assert recall(lines) > 0.5, "chance is 1/6, and what the labels say is wrong"
    with pytest.raises(InputError) as error:
        trained(tmp_path / "none", examples=wrong, loss=soft_ranks, batch=batch)
    assert error.value.argument == "loss"


def test_a_run_records_it():
    found = recorded(soft_ranks)
    assert (found.name, found.version) == ("soft-ranks", 2)
