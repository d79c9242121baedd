"""DistilBERT: BERT with half the layers and without segments (arXiv 1910.01108)."""

import dataclasses
import itertools
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from polyjax.nn.encoders.bert import bert_tables
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import (
    Classifier,
    ConfigJson,
    Family,
    Stored,
    linear,
    norm,
    their_activation,
)
from polyjax.nn.encoders.layers import (
    Block,
    Embeddings,
    attended_by,
    check_length,
    layer_keys,
    place_in_sequence,
    run_blocks,
    scaled,
)
from polyjax.nn.heads import CrossConfig
from polyjax.nn.linear import apply_dropout
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilBertConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig."""

    gates_texts: ClassVar[bool] = True

    def build(self, *, rngs: nnx.Rngs) -> "DistilBertEncoder":
        """The transformer, with newly initialised parameters."""
        return DistilBertEncoder(self, rngs=rngs)


class DistilBertEncoder(nnx.Module):
    """Embeddings and post-norm blocks.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: DistilBertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.dim,
            n_positions=config.n_positions,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])

    def __call__(
        self, tokens: Tokens, *, key: Array | None = None, gates: Float[Array, "l h"] | None = None
    ) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config = self.config
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        x = self.embeddings(tokens.ids, places=place_in_sequence(tokens), dtype=config.dtype)
        x = apply_dropout(x, config.dropout, keys[-1])
        attended = [attended_by(tokens, gates)] * config.n_layers
        x = run_blocks(self.blocks, x, attended, keys[:-1], config, gates=gates)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> DistilBertConfig:
    # The file has a table of positions even if they are sinusoidal.
    return DistilBertConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("dim"),
        n_layers=entries.number("n_layers"),
        n_heads=entries.number("n_heads"),
        mlp_dim=entries.number("hidden_dim"),
        n_positions=entries.number("max_position_embeddings"),
        activation=entries.activation("activation", "gelu"),
    )


def _layer(i: int) -> list[Stored]:
    theirs, ours = f"transformer.layer.{i}", f"blocks.{i}"
    return [
        *linear(f"{ours}.attention.qkv", *(f"{theirs}.attention.{name}_lin" for name in "qkv")),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.out_lin"),
        *norm(f"{ours}.attention_norm", f"{theirs}.sa_layer_norm"),
        *linear(f"{ours}.mlp_in", f"{theirs}.ffn.lin1"),
        *linear(f"{ours}.mlp_out", f"{theirs}.ffn.lin2"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.output_layer_norm"),
    ]


def _stored(config: DistilBertConfig) -> list[Stored]:
    layers = (_layer(i) for i in range(config.n_layers))
    return [*bert_tables(segments=False), *itertools.chain.from_iterable(layers)]


def _entries(config: DistilBertConfig) -> dict[str, Any]:
    return {
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.mlp_dim,
        "max_position_embeddings": config.n_positions,
        "activation": their_activation(config.activation),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "sinusoidal_pos_embds": False,
    }


def _classifier(entries: ConfigJson) -> Classifier:
    return Classifier(head=CrossConfig(dense="relu"), dense="pre_classifier", linear="classifier")


DISTILBERT = Family(
    architectures={"distilbert": "DistilBert"},
    prefixes=("distilbert.",),
    settings=DistilBertConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
)
