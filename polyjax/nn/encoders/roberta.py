"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT whose positions begin after the padding row (arXiv 1907.11692)."""

import dataclasses
import itertools
from typing import Any, ClassVar, Literal

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.encoders.bert import bert_entries, bert_layer, bert_tables
from polyjax.nn.encoders.contract import FamilyConfig
from polyjax.nn.encoders.family import Classifier, ConfigJson, Family, Stored
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobertaConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig and these.

    Attributes:
        pad_id: padding token, and its row in the position table; positions begin after that row.
        n_segments: rows of the segment table; all tokens use the first row.
        model_type: the ``model_type`` in config.json.
    """

    gates_texts: ClassVar[bool] = True

    norm_eps: float = 1e-5
    pad_id: int = 1
    n_segments: int = 1
    model_type: Literal["roberta", "xlm-roberta", "camembert"] = "roberta"

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        super().__post_init__()
        for name, least in (("pad_id", 0), ("n_segments", 0)):
            if getattr(self, name) < least:
                raise InputError(f"encoder.{name}", expected=f"{least} or more", got=getattr(self, name))

    def build(self, *, rngs: nnx.Rngs) -> "RobertaEncoder":
        """The transformer, with newly initialised parameters."""
        return RobertaEncoder(self, rngs=rngs)


class RobertaEncoder(nnx.Module):
    """Embeddings and post-norm blocks.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.dim,
            n_positions=config.n_positions + config.pad_id + 1,
            n_segments=config.n_segments,
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
        x = self.embeddings(tokens.ids, places=place_after_padding(tokens, config.pad_id), dtype=config.dtype)
        x = apply_dropout(x, config.dropout, keys[-1])
        attended = [attended_by(tokens, gates)] * config.n_layers
        x = run_blocks(self.blocks, x, attended, keys[:-1], config, gates=gates)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> RobertaConfig:
    entries.expect("position_embedding_type", "absolute")
    entries.expect("is_decoder", False)
    pad_id = entries.number("pad_token_id", 1)
    return RobertaConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("hidden_size"),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings") - pad_id - 1,
        activation=entries.activation("hidden_act", "gelu"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
        pad_id=pad_id,
        n_segments=entries.number("type_vocab_size", 2),
        model_type=entries.text("model_type"),  # pyright: ignore[reportArgumentType]  # the family's
    )


def _stored(config: RobertaConfig) -> list[Stored]:
    layers = (bert_layer(f"encoder.layer.{i}", f"blocks.{i}") for i in range(config.n_layers))
    return [*bert_tables(segments=config.n_segments > 0), *itertools.chain.from_iterable(layers)]


def _entries(config: RobertaConfig) -> dict[str, Any]:
    return bert_entries(
        config,
        config.model_type,
        max_position_embeddings=config.n_positions + config.pad_id + 1,
        pad_token_id=config.pad_id,
        type_vocab_size=config.n_segments,
    )


def _classifier(entries: ConfigJson) -> Classifier:
    return Classifier(head=CrossConfig(dense="tanh"), dense="classifier.dense", linear="classifier.out_proj")


ROBERTA = Family(
    architectures={"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"},
    prefixes=("roberta.",),
    settings=RobertaConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
)
