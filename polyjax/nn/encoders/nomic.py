"""nomic_bert: post-norm, gated MLP, rotary positions, biases only in the norms (arXiv 2402.01613)."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.activations import Activation
from polyjax.nn.attention import SelfAttention, rotary_table
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import ConfigJson, Family, Stored, linear, norm, table, their_activation
from polyjax.nn.encoders.layers import (
    Attended,
    Block,
    Embeddings,
    attention_mask,
    check_length,
    layer_keys,
    run_blocks,
    scaled,
)
from polyjax.nn.encoders.modernbert import check_head_width, rotary_theta
from polyjax.nn.linear import apply_dropout
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class NomicBertConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig and these.

    Attributes:
        n_segments: rows of the segment table; 0 for none.
        theta: base of the rotary angles.
    """

    n_positions: int = 2048
    activation: Activation = "silu"
    n_segments: int = 2
    theta: float = 1000.0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        super().__post_init__()
        check_head_width(self)
        if not self.theta > 0:
            raise InputError("encoder.theta", expected="a positive number", got=self.theta)
        if self.n_segments < 0:
            raise InputError("encoder.n_segments", expected="0 or more", got=self.n_segments)

    @property
    def layer_weights(self) -> int:
        """Number of weights in a layer's matrices; operations per token are counted from it."""
        return 4 * self.dim**2 + 3 * self.dim * self.mlp_dim

    def block(self, *, rngs: nnx.Rngs) -> Block:
        """One block, with newly initialised parameters."""
        attention = SelfAttention(
            self.dim, self.n_heads, bias=False, dropout=self.attention_dropout, rngs=rngs
        )
        return Block(self, attention=attention, gated="first", mlp_bias=(False, False), rngs=rngs)

    def build(self, *, rngs: nnx.Rngs) -> "RotaryEncoder":
        """The transformer, with newly initialised parameters."""
        return RotaryEncoder(self, rngs=rngs)


class RotaryEncoder(nnx.Module):
    """Embeddings without positions, and post-norm blocks with rotary positions in the attention.

    Args:
        config: settings of the encoder; its ``block`` builds the blocks.
        rngs: source of the initial values.
    """

    def __init__(self, config: NomicBertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.dim,
            n_segments=config.n_segments,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        self.blocks = nnx.List([config.block(rngs=rngs) for _ in range(config.n_layers)])

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config = self.config
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        # If the segment table has one row, both texts of a pair use it.
        segments = jnp.minimum(jnp.asarray(tokens.segments), max(config.n_segments - 1, 0))
        x = self.embeddings(tokens.ids, segments=segments, dtype=config.dtype)
        x = apply_dropout(x, config.dropout, keys[-1])
        given: Attended = {
            "mask": attention_mask(tokens),
            "rotary": rotary_table(tokens.ids.shape[-1], config.dim // config.n_heads, config.theta),
        }
        x = run_blocks(self.blocks, x, [given] * config.n_layers, keys[:-1], config)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> NomicBertConfig:
    if entries.has("n_embd"):
        return _read_original(entries)
    if entries.has("rope_scaling"):
        entries.expect("rope_scaling", None)
    n_heads, dim = entries.number("num_attention_heads"), entries.number("hidden_size")
    entries.expect("head_dim", dim // n_heads)
    return NomicBertConfig(
        vocab_size=entries.number("vocab_size"),
        dim=dim,
        n_layers=entries.number("num_hidden_layers"),
        n_heads=n_heads,
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings"),
        n_segments=entries.number("type_vocab_size", 2),
        activation=entries.activation("hidden_act", "silu"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
        theta=rotary_theta(entries.section("rope_parameters"), entries.real("rope_theta", 1000.0)),
    )


def _read_original(entries: ConfigJson) -> NomicBertConfig:
    """Read a config.json as the original repository writes it; its tensors have the same names."""
    entries.expect("activation_function", "swiglu")
    entries.expect("rotary_emb_fraction", 1.0)
    for name in ("prenorm", "use_rms_norm", "rotary_emb_interleaved", "parallel_block", "qkv_proj_bias"):
        entries.expect(name, False)
    for name in ("mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_scale_base"):
        entries.expect(name, False)
    n_positions = entries.number("n_positions")
    if entries.has("rotary_scaling_factor"):  # beyond this length, the angles would depend on the length
        n_positions = min(n_positions, entries.number("max_trained_positions", 2048))
    dim = entries.number("n_embd")
    return NomicBertConfig(
        vocab_size=entries.number("vocab_size"),
        dim=dim,
        n_layers=entries.number("n_layer"),
        n_heads=entries.number("n_head"),
        mlp_dim=entries.number("n_inner", 4 * dim),
        n_positions=n_positions,
        n_segments=entries.number("type_vocab_size", 2),
        norm_eps=entries.real("layer_norm_epsilon", 1e-5),
        theta=entries.real("rotary_emb_base", 10_000.0),
    )


def _layer(i: int) -> list[Stored]:
    theirs, ours = f"encoder.layers.{i}", f"blocks.{i}"
    return [
        *linear(f"{ours}.attention.qkv", f"{theirs}.attn.Wqkv", bias=False),
        *linear(f"{ours}.attention.out", f"{theirs}.attn.out_proj", bias=False),
        *norm(f"{ours}.attention_norm", f"{theirs}.norm1"),
        *linear(f"{ours}.mlp_in", f"{theirs}.mlp.fc12", f"{theirs}.mlp.fc11", bias=False),
        *linear(f"{ours}.mlp_out", f"{theirs}.mlp.fc2", bias=False),
        *norm(f"{ours}.mlp_norm", f"{theirs}.norm2"),
    ]


def _stored(config: NomicBertConfig) -> list[Stored]:
    segments = config.n_segments > 0
    return [
        *table("embeddings.tokens", "embeddings.word_embeddings"),
        *(table("embeddings.segments", "embeddings.token_type_embeddings") if segments else []),
        *norm("embeddings.norm", "emb_ln"),
        *itertools.chain.from_iterable(_layer(i) for i in range(config.n_layers)),
    ]


def rotary_entries(config: NomicBertConfig, model_type: str) -> dict[str, Any]:
    """Entries of config.json that this family and gte have in common."""
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.n_positions,
        "type_vocab_size": config.n_segments,
        "hidden_act": their_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.theta, "rope_type": "default"},
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }


def _entries(config: NomicBertConfig) -> dict[str, Any]:
    return {**rotary_entries(config, "nomic_bert"), "head_dim": config.dim // config.n_heads}


NOMIC_BERT = Family(
    architectures={"nomic_bert": "NomicBert"},
    prefixes=("nomic_bert.",),
    settings=NomicBertConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
)
