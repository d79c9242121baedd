"""ModernBERT: pre-norm, gated MLP, rotary positions, mostly local attention (arXiv 2412.13663)."""

import dataclasses
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.attention import SelfAttention, rotary_table
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import (
    Classifier,
    ConfigJson,
    Family,
    Stored,
    linear,
    norm,
    table,
    their_activation,
)
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
from polyjax.nn.heads import CrossConfig
from polyjax.nn.linear import LayerNorm, apply_dropout
from polyjax.types import Tokens

LayerKind = Literal["full_attention", "sliding_attention"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernBertConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig and these.

    Attributes:
        global_every: layers 0, n, 2n, ... are global, for this n: they attend to all tokens. The others are
            local.
        window: largest distance, in tokens, at which local layers attend.
        global_theta: base of the rotary angles in global layers.
        local_theta: base of the rotary angles in local layers.
        attention_bias: whether the linear layers of the attention have biases.
        mlp_bias: whether the linear layers of the feed-forward part have biases.
        norm_bias: whether the norms have biases.
    """

    n_positions: int = 8192
    norm_eps: float = 1e-5
    global_every: int = 3
    window: int = 64
    global_theta: float = 160_000.0
    local_theta: float = 10_000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        super().__post_init__()
        for name in ("global_every", "window", "global_theta", "local_theta"):
            if not getattr(self, name) > 0:
                raise InputError(f"encoder.{name}", expected="a positive number", got=getattr(self, name))
        check_head_width(self)

    @property
    def layer_weights(self) -> int:
        """Number of weights in a layer's matrices; operations per token are counted from it."""
        return 4 * self.dim**2 + 3 * self.dim * self.mlp_dim

    def is_global(self, layer: int) -> bool:
        """Whether a layer (from 0) attends to all tokens."""
        return layer % self.global_every == 0

    def build(self, *, rngs: nnx.Rngs) -> "ModernBertEncoder":
        """The transformer, with newly initialised parameters."""
        return ModernBertEncoder(self, rngs=rngs)


def check_head_width(config: FamilyConfig) -> None:
    """Raise InputError if the width of a head is odd: rotary positions rotate pairs of coordinates."""
    if config.dim // config.n_heads % 2:
        raise InputError(
            "encoder.n_heads",
            expected="heads of an even width, for rotary positions",
            got=config.n_heads,
            fix=f"the width is {config.dim}",
        )


class ModernBertEncoder(nnx.Module):
    """Embeddings without positions, pre-norm blocks, and a final norm.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: ModernBertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size, config.dim, norm_eps=config.norm_eps, norm_bias=config.norm_bias, rngs=rngs
        )
        self.blocks = nnx.List([self._block(i, rngs) for i in range(config.n_layers)])
        self.final_norm = LayerNorm(config.dim, eps=config.norm_eps, bias=config.norm_bias)

    def _block(self, i: int, rngs: nnx.Rngs) -> Block:
        config = self.config
        attention = SelfAttention(
            config.dim,
            config.n_heads,
            bias=config.attention_bias,
            dropout=config.attention_dropout,
            rngs=rngs,
        )
        return Block(
            config,
            attention=attention,
            norm="pre",
            gated="first",
            mlp_bias=(config.mlp_bias, config.mlp_bias),
            norm_bias=config.norm_bias,
            attention_norm=i > 0,  # the embeddings are normalised already
            rngs=rngs,
        )

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config, t = self.config, tokens.ids.shape[-1]
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        x = apply_dropout(self.embeddings(tokens.ids, dtype=config.dtype), config.dropout, keys[-1])
        width = config.dim // config.n_heads
        # Products of rotated states depend only on differences of positions: indices in the array will do.
        everywhere: Attended = {
            "mask": attention_mask(tokens),
            "rotary": rotary_table(t, width, config.global_theta),
        }
        near: Attended = {
            "mask": attention_mask(tokens, window=config.window),
            "rotary": rotary_table(t, width, config.local_theta),
        }
        attended = [everywhere if config.is_global(i) else near for i in range(config.n_layers)]
        x = run_blocks(self.blocks, x, attended, keys[:-1], config, first=1, group=config.global_every)
        return scaled(self.final_norm(x), config.output_scaling)


def rotary_theta(entries: ConfigJson, default: float) -> float:
    """The base of the rotary angles, from an object of ``rope_parameters``.

    Raises:
        InputError: it asks for another kind of rotary positions than the plain one.
    """
    entries.expect("rope_type", "default")
    entries.expect("partial_rotary_factor", 1.0)
    return entries.real("rope_theta", default)


def _global_every(entries: ConfigJson) -> int:
    """The n for which every n-th layer is global, layer 0 first."""
    every = entries.number("global_attn_every_n_layers", 3)
    if not entries.has("layer_types"):
        return every
    kinds = entries.entries["layer_types"]
    for n in (every, *range(1, len(kinds) + 1)):
        if kinds == ["sliding_attention" if i % n else "full_attention" for i in range(len(kinds))]:
            return n
    raise InputError.in_file(
        entries.path, expected="full_attention in every n-th of 'layer_types', layer 0 first", got=kinds
    )


def _read(entries: ConfigJson) -> ModernBertConfig:
    if entries.has("rope_scaling"):
        entries.expect("rope_scaling", None)
    rope = entries.section("rope_parameters")
    theta = {
        kind: rotary_theta(rope.section(kind), entries.real(older, default))
        for kind, older, default in (
            ("full_attention", "global_rope_theta", 160_000.0),
            ("sliding_attention", "local_rope_theta", 10_000.0),
        )
    }
    return ModernBertConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("hidden_size"),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings"),
        activation=entries.activation("hidden_activation", "gelu"),
        norm_eps=entries.real("norm_eps", 1e-5),
        global_every=_global_every(entries),
        window=entries.number("local_attention", 128) // 2,
        global_theta=theta["full_attention"],
        local_theta=theta["sliding_attention"],
        attention_bias=entries.flag("attention_bias", False),
        mlp_bias=entries.flag("mlp_bias", False),
        norm_bias=entries.flag("norm_bias", False),
    )


def _stored(config: ModernBertConfig) -> list[Stored]:
    bias = config.norm_bias
    found = [
        *table("embeddings.tokens", "embeddings.tok_embeddings"),
        *norm("embeddings.norm", "embeddings.norm", bias=bias),
        *norm("final_norm", "final_norm", bias=bias),
    ]
    for i in range(config.n_layers):
        theirs, ours = f"layers.{i}", f"blocks.{i}"
        found += [
            *linear(f"{ours}.attention.qkv", f"{theirs}.attn.Wqkv", bias=config.attention_bias),
            *linear(f"{ours}.attention.out", f"{theirs}.attn.Wo", bias=config.attention_bias),
            *(norm(f"{ours}.attention_norm", f"{theirs}.attn_norm", bias=bias) if i else []),
            *linear(f"{ours}.mlp_in", f"{theirs}.mlp.Wi", bias=config.mlp_bias),
            *linear(f"{ours}.mlp_out", f"{theirs}.mlp.Wo", bias=config.mlp_bias),
            *norm(f"{ours}.mlp_norm", f"{theirs}.mlp_norm", bias=bias),
        ]
    return found


def _entries(config: ModernBertConfig) -> dict[str, Any]:
    kinds: list[LayerKind] = [
        "full_attention" if config.is_global(i) else "sliding_attention" for i in range(config.n_layers)
    ]
    return {
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.n_positions,
        "hidden_activation": their_activation(config.activation),
        "norm_eps": config.norm_eps,
        "global_attn_every_n_layers": config.global_every,
        "layer_types": kinds,
        "local_attention": 2 * config.window,
        "global_rope_theta": config.global_theta,
        "local_rope_theta": config.local_theta,
        "rope_parameters": {
            "full_attention": {"rope_theta": config.global_theta, "rope_type": "default"},
            "sliding_attention": {"rope_theta": config.local_theta, "rope_type": "default"},
        },
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "norm_bias": config.norm_bias,
        "embedding_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
    }


def _classifier(entries: ConfigJson) -> Classifier:
    entries.expect("classifier_pooling", "cls", "mean")
    return Classifier(
        head=CrossConfig(
            reduction="mean" if entries.text("classifier_pooling", "cls") == "mean" else "first",
            dense=entries.activation("classifier_activation", "gelu"),
            dense_bias=entries.flag("classifier_bias", False),
            norm="scale-and-bias" if entries.flag("norm_bias", False) else "scale",
            norm_eps=entries.real("norm_eps", 1e-5),
        ),
        dense="head.dense",
        norm="head.norm",
        linear="classifier",
    )


def _classifier_entries(head: CrossConfig) -> dict[str, Any]:
    return {
        "classifier_pooling": "mean" if head.reduction == "mean" else "cls",
        "classifier_activation": "none" if head.dense == "none" else their_activation(head.dense),
        "classifier_bias": head.dense_bias,
    }


MODERNBERT = Family(
    architectures={"modernbert": "ModernBert"},
    prefixes=("model.",),
    settings=ModernBertConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
    classifier_entries=_classifier_entries,
)
