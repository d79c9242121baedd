"""MPNet: BERT with a learnt attention bias for the distance of two tokens (arXiv 2004.09297)."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from polyjax.nn.encoders.bert import bert_entries, bert_tables
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import Classifier, ConfigJson, Family, Stored, linear, norm, table
from polyjax.nn.encoders.layers import (
    Block,
    Embeddings,
    attended_by,
    check_length,
    layer_keys,
    place_after_padding,
    run_blocks,
    scaled,
)
from polyjax.nn.heads import CrossConfig
from polyjax.nn.linear import apply_dropout
from polyjax.types import Tokens

N_BUCKETS = 32
"""Number of buckets of distances; half of them are for keys after the query."""
_EXACT = 8
"""Distances below this have their own bucket; up to 128, bucket sizes then grow geometrically."""
_PAD_ID = 1
"""Row of padding in the position table, whatever the padding token of the vocabulary is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MPNetConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig."""

    gates_texts: ClassVar[bool] = True

    norm_eps: float = 1e-5

    def build(self, *, rngs: nnx.Rngs) -> "MPNetEncoder":
        """The transformer, with newly initialised parameters."""
        return MPNetEncoder(self, rngs=rngs)


def distance_buckets(t: int) -> Int[np.ndarray, "t t"]:
    """The bucket for each query (row) and key (column), int32 [t, t].

    With d = key - query, it is (16 if d > 0) plus |d| if that is below 8, else plus
    min(15, 8 + floor(2 log2(|d| / 8))). Integer arithmetic avoids rounding errors at the edges, |d| of 16, 32
    and 64.

    >>> distance_buckets(20)[0, [0, 1, 7, 8, 16]].tolist(), distance_buckets(20)[16, 0].item()
    ([0, 17, 23, 24, 26], 10)
    """
    half = N_BUCKETS // 2
    of = [n if n < _EXACT else min(half - 1, _EXACT + (n * n // 64).bit_length() - 1) for n in range(t)]
    d = np.arange(t)[None, :] - np.arange(t)[:, None]
    return (np.array(of)[np.abs(d)] + half * (d > 0)).astype(np.int32)


class MPNetEncoder(nnx.Module):
    """Embeddings, the table of distance biases that all blocks share, and post-norm blocks.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: MPNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.dim,
            n_positions=config.n_positions + _PAD_ID + 1,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        draw = nnx.initializers.normal(0.02)
        self.distances = nnx.Param(draw(rngs.params(), (N_BUCKETS, config.n_heads), jnp.float32))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])

    def __call__(
        self, tokens: Tokens, *, key: Array | None = None, gates: Float[Array, "l h"] | None = None
    ) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config = self.config
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        x = self.embeddings(tokens.ids, places=place_after_padding(tokens, _PAD_ID), dtype=config.dtype)
        x = apply_dropout(x, config.dropout, keys[-1])
        # Within a sequence, differences of array indices equal differences of positions.
        buckets = distance_buckets(tokens.ids.shape[-1])
        bias = jnp.take(self.distances[...].T.astype(jnp.float32), buckets, axis=1)[None]
        attended = [{**attended_by(tokens, gates), "bias": bias}] * config.n_layers
        x = run_blocks(self.blocks, x, attended, keys[:-1], config, gates=gates)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> MPNetConfig:
    return MPNetConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("hidden_size"),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings") - _PAD_ID - 1,
        activation=entries.activation("hidden_act", "gelu"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
    )


def _layer(i: int) -> list[Stored]:
    theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
    return [
        *linear(f"{ours}.attention.qkv", *(f"{theirs}.attention.attn.{name}" for name in "qkv")),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.attn.o"),
        *norm(f"{ours}.attention_norm", f"{theirs}.attention.LayerNorm"),
        *linear(f"{ours}.mlp_in", f"{theirs}.intermediate.dense"),
        *linear(f"{ours}.mlp_out", f"{theirs}.output.dense"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
    ]


def _stored(config: MPNetConfig) -> list[Stored]:
    return [
        *bert_tables(segments=False),
        *table("distances", "encoder.relative_attention_bias"),
        *itertools.chain.from_iterable(_layer(i) for i in range(config.n_layers)),
    ]


def _entries(config: MPNetConfig) -> dict[str, Any]:
    return bert_entries(
        config,
        "mpnet",
        max_position_embeddings=config.n_positions + _PAD_ID + 1,
        pad_token_id=_PAD_ID,
        relative_attention_num_buckets=N_BUCKETS,
    )


def _classifier(entries: ConfigJson) -> Classifier:
    return Classifier(head=CrossConfig(dense="tanh"), dense="classifier.dense", linear="classifier.out_proj")


MPNET = Family(
    architectures={"mpnet": "MPNet"},
    prefixes=("mpnet.",),
    settings=MPNetConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
)
