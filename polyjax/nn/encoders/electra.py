"""ELECTRA's discriminator: BERT whose embedding tables may be narrower than its blocks (arXiv 2003.10555)."""

import dataclasses
import itertools
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.encoders.bert import bert_entries, bert_layer, bert_tables
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import Classifier, ConfigJson, Family, Stored, linear
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
from polyjax.nn.linear import Linear, apply_dropout
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig and these.

    Attributes:
        embedding_dim: width of the embedding tables; if it is not ``dim``, a projection maps it to ``dim``.
        n_segments: rows of the segment table.
    """

    gates_texts: ClassVar[bool] = True

    embedding_dim: int
    n_segments: int = 2

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        super().__post_init__()
        if self.embedding_dim < 1:
            raise InputError("encoder.embedding_dim", expected="at least 1", got=self.embedding_dim)

    @property
    def table_dim(self) -> int:
        """Width of the token table."""
        return self.embedding_dim

    def check_pairs(self) -> None:
        """Raise InputError if the encoder cannot distinguish the two texts of a pair."""
        if self.n_segments < 2:
            raise InputError("encoder.n_segments", expected="2, for a cross-encoder", got=self.n_segments)

    def build(self, *, rngs: nnx.Rngs) -> "ElectraEncoder":
        """The transformer, with newly initialised parameters."""
        return ElectraEncoder(self, rngs=rngs)


class ElectraEncoder(nnx.Module):
    """Embeddings, their projection, and post-norm blocks.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: ElectraConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.embedding_dim,
            n_positions=config.n_positions,
            n_segments=config.n_segments,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        differ = config.embedding_dim != config.dim
        self.project = Linear(config.embedding_dim, config.dim, rngs=rngs) if differ else None
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])

    def __call__(
        self, tokens: Tokens, *, key: Array | None = None, gates: Float[Array, "l h"] | None = None
    ) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config = self.config
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        x = self.embeddings(
            tokens.ids, places=place_in_sequence(tokens), segments=tokens.segments, dtype=config.dtype
        )
        x = apply_dropout(x, config.dropout, keys[-1])
        x = x if self.project is None else self.project(x)
        attended = [attended_by(tokens, gates)] * config.n_layers
        x = run_blocks(self.blocks, x, attended, keys[:-1], config, gates=gates)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> ElectraConfig:
    entries.expect("position_embedding_type", "absolute")
    entries.expect("is_decoder", False)
    dim = entries.number("hidden_size")
    return ElectraConfig(
        vocab_size=entries.number("vocab_size"),
        dim=dim,
        embedding_dim=entries.number("embedding_size", dim),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings"),
        n_segments=entries.number("type_vocab_size", 2),
        activation=entries.activation("hidden_act", "gelu"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
    )


def _stored(config: ElectraConfig) -> list[Stored]:
    layers = (bert_layer(f"encoder.layer.{i}", f"blocks.{i}") for i in range(config.n_layers))
    project = linear("project", "embeddings_project") if config.embedding_dim != config.dim else []
    tables = bert_tables(segments=config.n_segments > 0)
    return [*tables, *project, *itertools.chain.from_iterable(layers)]


def _entries(config: ElectraConfig) -> dict[str, Any]:
    return bert_entries(
        config,
        "electra",
        embedding_size=config.embedding_dim,
        max_position_embeddings=config.n_positions,
        type_vocab_size=config.n_segments,
    )


def _classifier(entries: ConfigJson) -> Classifier:
    return Classifier(head=CrossConfig(dense="gelu"), dense="classifier.dense", linear="classifier.out_proj")


ELECTRA = Family(
    architectures={"electra": "Electra"},
    prefixes=("electra.",),
    settings=ElectraConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
)
