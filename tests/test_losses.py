"""Cross-entropy over candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import random_tokens, tiny
from polyjax import Batch, BiConfig, DualInputs, make_scorer
from polyjax.train.losses import cross_entropy, in_batch_where, ranking_loss


@pytest.mark.parametrize("masked", [True, False])
def test_copies_of_a_label_count_only_where_they_are_not_masked(masked, rng, rngs):
    """What the loss of a batch makes of the switch."""
    scorer = make_scorer(tiny(), BiConfig(), rngs=rngs)
    inputs = DualInputs(random_tokens(rng, [4, 5, 6], width=6), random_tokens(rng, [3, 3, 3], width=4))
    keys = np.array([7, 8, 7], np.int32) if masked else None
    batch = Batch(inputs, np.arange(3, dtype=np.int32), np.ones((1, 3), bool), keys)
    loss, _ = ranking_loss(scorer, batch, None)
    scores = np.asarray(scorer(inputs), np.float64)
    kept = [[0, 1], [0, 1, 2], [1, 2]] if masked else [[0, 1, 2]] * 3
    expected = [np.log(np.exp(scores[i, kept[i]]).sum()) - scores[i, i] for i in range(3)]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


@pytest.fixture
def problem(rng):
    scores = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    return scores, jnp.array([1, 0, 4])


def test_equals_log_softmax(problem):
    scores, label = problem
    expected = -jax.nn.log_softmax(scores)[jnp.arange(3), label]
    np.testing.assert_allclose(cross_entropy(scores, label, jnp.ones((1, 5), bool)), expected, rtol=1e-6)


def test_masked_candidates_are_removed_candidates(problem):
    scores, label = problem
    where = jnp.array([[True, True, False, False, True]])
    kept = cross_entropy(scores[:, [0, 1, 4]], jnp.array([1, 0, 2]), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(cross_entropy(scores, label, where), kept, rtol=1e-6)
    wild = scores.at[:, 2:4].set(1e30)
    gradient = jax.grad(lambda s: cross_entropy(s, label, where).sum())(wild)
    assert np.isfinite(gradient).all()
    assert (gradient[:, 2:4] == 0).all()


def test_copies_of_the_label_are_left_out_and_nothing_else():
    where = in_batch_where(jnp.array([7, 8, 7, 9]), jnp.arange(4))
    assert where.tolist() == [
        [True, True, False, True],
        [True, True, True, True],
        [False, True, True, True],
        [True, True, True, True],
    ]


def test_extra_candidates_may_be_copies_too():
    where = in_batch_where(jnp.array([7, 8, 7]), jnp.array([0]))
    assert where.tolist() == [[True, True, False]]
