"""gte: like nomic_bert, but with biases, and with the MLP's activated half second (arXiv 2407.19669)."""

import dataclasses
import itertools
from typing import Any

from flax import nnx

from polyjax.nn.activations import Activation
from polyjax.nn.attention import SelfAttention
from polyjax.nn.encoders.bert import bert_tables
from polyjax.nn.encoders.family import ConfigJson, Family, Stored, linear, norm
from polyjax.nn.encoders.layers import Block
from polyjax.nn.encoders.modernbert import rotary_theta
from polyjax.nn.encoders.nomic import NomicBertConfig, rotary_entries


@dataclasses.dataclass(frozen=True, kw_only=True)
class GteConfig(NomicBertConfig):
    """Settings of the encoder: the fields of NomicBertConfig."""

    n_positions: int = 8192
    activation: Activation = "gelu"
    n_segments: int = 0
    theta: float = 160_000.0

    def block(self, *, rngs: nnx.Rngs) -> Block:
        """One block, with newly initialised parameters."""
        attention = SelfAttention(self.dim, self.n_heads, dropout=self.attention_dropout, rngs=rngs)
        return Block(self, attention=attention, gated="second", mlp_bias=(False, True), rngs=rngs)


def _read(entries: ConfigJson) -> GteConfig:
    if entries.has("rope_scaling"):
        entries.expect("rope_scaling", None)
    entries.expect("position_embedding_type", "rope")
    entries.expect("layer_norm_type", "layer_norm")
    entries.expect("logn_attention_scale", False)
    entries.expect("pack_qkv", True)
    theta = entries.real("rope_theta", 160_000.0)
    return GteConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("hidden_size"),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings"),
        n_segments=entries.number("type_vocab_size", 0),
        activation=entries.activation("hidden_act", "gelu"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
        theta=rotary_theta(entries.section("rope_parameters"), theta),
    )


def _layer(i: int) -> list[Stored]:
    theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
    return [
        *linear(f"{ours}.attention.qkv", f"{theirs}.attention.qkv_proj"),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.o_proj"),
        *norm(f"{ours}.attention_norm", f"{theirs}.attn_ln"),
        *linear(f"{ours}.mlp_in", f"{theirs}.mlp.up_gate_proj", bias=False),
        *linear(f"{ours}.mlp_out", f"{theirs}.mlp.down_proj"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.mlp_ln"),
    ]


def _stored(config: GteConfig) -> list[Stored]:
    return [
        *bert_tables(positions=False, segments=config.n_segments > 0),
        *itertools.chain.from_iterable(_layer(i) for i in range(config.n_layers)),
    ]


def _entries(config: GteConfig) -> dict[str, Any]:
    return rotary_entries(config, "gte")


GTE = Family(
    architectures={"gte": "Gte", "new": "New"},
    prefixes=("gte.", "new."),
    settings=GteConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
)
