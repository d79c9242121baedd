"""An encoder family of one's own, in this file alone."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from problem import recall, trained

import polyjax
from polyjax import BiConfig, InputError, ModelConfig
from polyjax.config import from_json, to_json
from polyjax.nn.linear import Linear, apply_dropout


@polyjax.part("averages", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class AveragesConfig:
    """Token embeddings and a layer on top, without attention."""

    vocab_size: int = 40
    dim: int = 16
    n_layers: int = 1
    n_positions: int = 32
    dropout: float = 0.0
    dtype: str = "float32"

    def build(self, *, rngs: nnx.Rngs) -> "Averages":
        return Averages(self, rngs=rngs)


class Averages(nnx.Module):
    def __init__(self, config: AveragesConfig, *, rngs: nnx.Rngs):
        draw = jax.random.normal(rngs.params(), (config.vocab_size, config.dim))
        self.config, self.table, self.layer = (
            config,
            nnx.Param(draw),
            Linear(config.dim, config.dim, rngs=rngs),
        )

    def __call__(self, tokens, *, key=None):
        hidden = jnp.take(self.table[...], tokens.ids, axis=0).astype(self.config.dtype)
        return hidden + self.layer(apply_dropout(hidden, self.config.dropout, key))


def test_it_is_trained_like_any_other(tmp_path):
    assert recall(trained(tmp_path / "run", encoder=AveragesConfig(dropout=0.1))) > 0.8


def test_its_card_needs_it():
    card = to_json(ModelConfig(encoder=AveragesConfig(dim=24), head=BiConfig()))
    read = from_json(ModelConfig, card, source="model.json", parts={"encoder": AveragesConfig})
    assert read.encoder == AveragesConfig(dim=24)
    with pytest.raises(InputError, match="'averages', version 1"):
        from_json(ModelConfig, card, source="model.json")
