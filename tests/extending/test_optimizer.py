"""An optimiser of one's own, from optax, in this file alone."""

import optax
import pytest
from problem import CHANCE, fitted

import polyjax
from polyjax import InputError


# An optimiser
@polyjax.part("lion", version=1)
def lion(optim, n_steps):
    rate = optax.linear_schedule(optim.learning_rate / 3, 0.0, n_steps)
    return optax.chain(optax.clip_by_global_norm(optim.clip), optax.lion(rate))


# The end of it


def test_it_trains_and_a_run_keeps_to_it(tmp_path):
    run = fitted(tmp_path / "run", optimizer=lion)
    assert run.test.recall_at_1 > 2 * CHANCE
    assert (run.config["own_optimizer"]["name"], run.config["own_optimizer"]["version"]) == ("lion", 1)
    with pytest.raises(InputError) as error:
        fitted(run.folder)
    assert "`optimizer` was" in error.value.problem
