"""A loss of one's own that learns a teacher's scores, in this file alone."""

import jax
import jax.numpy as jnp
import pytest
from problem import CHANCE, ROWS, fitted

import polyjax
from polyjax import InputError


# A loss
@polyjax.part("soft-ranks", version=2)
def soft_ranks(scores, batch):
    taught, real = batch.teacher.scores, batch.teacher.where & batch.where
    before = (taught[:, :, None] > taught[:, None, :]) & real[:, :, None] & real[:, None, :]
    wrong = jax.nn.softplus(scores[:, None, :] - scores[:, :, None])  # -log sigmoid of the difference
    return jnp.where(before, wrong, 0.0).sum((1, 2)) / jnp.maximum(before.sum((1, 2)), 1).astype(jnp.float32)


soft_ranks.needs_teacher = True  # rows without `scores` are refused


# The end of it


def test_it_learns_from_the_teacher_whatever_the_labels_say(tmp_path):
    """What the rows to learn from call right is the second candidate; the teacher prefers the first."""
    labels = [row["label"] for row in ROWS]
    wrong = [
        {"context": row["context"], "candidates": [row["label"], labels[i - 9], labels[i - 30]]}
        | {"label": labels[i - 9]}
        for i, row in enumerate(ROWS)
    ]
    taught = [row | {"scores": [2.0, 0.5, 0.0]} for row in wrong]
    given = {
        "loss": soft_ranks,
        "valid": ROWS,
        "test": ROWS,
        "batch": {"batch_size": 16, "candidates": "inline"},
    }
    run = fitted(tmp_path / "run", taught, **given)
    assert run.test.recall_at_1 > 2 * CHANCE
    assert run.config["loss"] | {"settings": {}} == {
        "type": "custom",
        "name": "soft-ranks",
        "version": 2,
        "settings": {},
    }
    with pytest.raises(InputError) as error:
        fitted(tmp_path / "none", wrong, **given)
    assert error.value.argument == "loss"
