"""An encoder family of one's own, in this file alone: trained, loaded, and its card."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problem import CHANCE, fitted

import polyjax
from polyjax import InputError, Ranker
from polyjax.nn.linear import Linear, apply_dropout


# An encoder family
@polyjax.part("averages", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Averages:
    vocab_size: int = 1000
    dim: int = 16
    n_layers: int = 1
    n_positions: int = 32
    dropout: float = 0.1
    dtype: str = "float32"

    def build(self, *, rngs):
        return AveragesEncoder(self, rngs=rngs)


class AveragesEncoder(nnx.Module):
    def __init__(self, config, *, rngs):
        self.config, self.layer = config, Linear(config.dim, config.dim, rngs=rngs)
        self.table = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.dim)))

    def __call__(self, tokens, *, key=None):
        hidden = jnp.take(self.table[...], tokens.ids, axis=0).astype(self.config.dtype)
        return hidden + self.layer(apply_dropout(hidden, self.config.dropout, key))


# The end of it


def test_it_is_trained_loaded_and_named_in_its_card(tmp_path):
    run = fitted(tmp_path / "run", encoder=Averages())
    assert run.test.recall_at_1 > 2 * CHANCE
    ranker = Ranker.load(run.folder, encoder=Averages)
    texts = ["fix the hums lamp", "fix the leaks fan"]
    np.testing.assert_array_equal(
        ranker.score("my lamp hums", texts), run.ranker().score("my lamp hums", texts)
    )
    with pytest.raises(InputError, match="'averages', version 1"):
        Ranker.load(run.folder)
