"""ALBERT: narrow embedding tables, and layers that share the weights of a few blocks (arXiv 1909.11942)."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.activations import Activation
from polyjax.nn.encoders.bert import bert_entries, bert_tables
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import Classifier, ConfigJson, Family, Stored, linear, norm
from polyjax.nn.encoders.layers import (
    Block,
    Embeddings,
    attention_mask,
    check_length,
    layer_keys,
    place_in_sequence,
    run_blocks,
    scaled,
)
from polyjax.nn.heads import CrossConfig
from polyjax.nn.linear import Linear, apply_dropout
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlbertConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig and these.

    Attributes:
        embedding_dim: width of the embedding tables; a linear projection maps it to ``dim``.
        n_segments: rows of the segment table.
        n_groups: number of groups of layers; the layers of a group share their weights.
        blocks_per_layer: number of blocks that a layer applies one after the other.
    """

    embedding_dim: int
    n_segments: int = 2
    activation: Activation = "gelu_tanh"
    n_groups: int = 1
    blocks_per_layer: int = 1

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        super().__post_init__()
        for name in ("embedding_dim", "n_groups", "blocks_per_layer"):
            if getattr(self, name) < 1:
                raise InputError(f"encoder.{name}", expected="at least 1", got=getattr(self, name))

    @property
    def table_dim(self) -> int:
        """Width of the token table."""
        return self.embedding_dim

    @property
    def n_blocks(self) -> int:
        """Number of blocks that have their own weights."""
        return self.n_groups * self.blocks_per_layer

    def group(self, layer: int) -> int:
        """The group of layer i, from 0: int(i / (n_layers / n_groups)); groups may differ in size."""
        return int(layer / (self.n_layers / self.n_groups))

    def last_layer(self, block: int) -> int:
        """The last layer, from 0, that uses a block's weights; -1 if no layer does.

        >>> shape = {"vocab_size": 9, "dim": 4, "n_heads": 1, "mlp_dim": 4, "embedding_dim": 4}
        >>> AlbertConfig(**shape, n_layers=6, n_groups=2, blocks_per_layer=2).last_layer(1)
        2
        """
        group = block // self.blocks_per_layer
        return max((i for i in range(self.n_layers) if self.group(i) == group), default=-1)

    @property
    def layer_weights(self) -> int:
        """Number of weights in a layer's matrices; operations per token are counted from it."""
        return super().layer_weights * self.blocks_per_layer

    def check_pairs(self) -> None:
        """Raise InputError if the encoder cannot distinguish the two texts of a pair."""
        if self.n_segments < 2:
            raise InputError("encoder.n_segments", expected="2, for a cross-encoder", got=self.n_segments)

    def build(self, *, rngs: nnx.Rngs) -> "AlbertEncoder":
        """The transformer, with newly initialised parameters."""
        return AlbertEncoder(self, rngs=rngs)


class AlbertEncoder(nnx.Module):
    """Embeddings, their projection, and post-norm blocks that several layers share.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: AlbertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.embedding_dim,
            n_positions=config.n_positions,
            n_segments=config.n_segments,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        self.project = Linear(config.embedding_dim, config.dim, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_blocks)])

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config = self.config
        check_length(tokens, config.n_positions)
        inner = config.blocks_per_layer
        groups = map(config.group, range(config.n_layers))
        blocks = [self.blocks[group * inner + j] for group in groups for j in range(inner)]
        keys = layer_keys(key, len(blocks))
        x = self.embeddings(
            tokens.ids, places=place_in_sequence(tokens), segments=tokens.segments, dtype=config.dtype
        )
        x = self.project(apply_dropout(x, config.dropout, keys[-1]))
        attended = [{"mask": attention_mask(tokens)}] * len(blocks)
        # Blocks of different groups differ only in their weights, so a layer compiles like the one before.
        x = run_blocks(blocks, x, attended, keys[:-1], config, group=inner)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> AlbertConfig:
    entries.expect("position_embedding_type", "absolute")
    return AlbertConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("hidden_size"),
        embedding_dim=entries.number("embedding_size", 128),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings"),
        n_segments=entries.number("type_vocab_size", 2),
        n_groups=entries.number("num_hidden_groups", 1),
        blocks_per_layer=entries.number("inner_group_num", 1),
        activation=entries.activation("hidden_act", "gelu_new"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
    )


def _block(theirs: str, ours: str) -> list[Stored]:
    projections = (f"{theirs}.attention.{name}" for name in ("query", "key", "value"))
    return [
        *linear(f"{ours}.attention.qkv", *projections),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.dense"),
        *norm(f"{ours}.attention_norm", f"{theirs}.attention.LayerNorm"),
        *linear(f"{ours}.mlp_in", f"{theirs}.ffn"),
        *linear(f"{ours}.mlp_out", f"{theirs}.ffn_output"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.full_layer_layer_norm"),
    ]


def _stored(config: AlbertConfig) -> list[Stored]:
    found = [
        *bert_tables(segments=config.n_segments > 0),
        *linear("project", "encoder.embedding_hidden_mapping_in"),
    ]
    for i in range(config.n_blocks):
        group, inner = divmod(i, config.blocks_per_layer)
        found += _block(f"encoder.albert_layer_groups.{group}.albert_layers.{inner}", f"blocks.{i}")
    return found


def _entries(config: AlbertConfig) -> dict[str, Any]:
    return bert_entries(
        config,
        "albert",
        embedding_size=config.embedding_dim,
        max_position_embeddings=config.n_positions,
        type_vocab_size=config.n_segments,
        num_hidden_groups=config.n_groups,
        inner_group_num=config.blocks_per_layer,
    )


def _classifier(entries: ConfigJson) -> Classifier:
    return Classifier(head=CrossConfig(dense="tanh"), dense="albert.pooler", linear="classifier")


ALBERT = Family(
    architectures={"albert": "Albert"},
    prefixes=("albert.",),
    settings=AlbertConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
)
