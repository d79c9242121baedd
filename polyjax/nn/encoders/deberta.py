"""DeBERTa v2 and v3: attention with terms of content and relative position (arXiv 2006.03654, 2111.09543)."""

import dataclasses
import itertools
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from polyjax.errors import InputError, shown
from polyjax.nn.attention import multi_head
from polyjax.nn.encoders.bert import bert_entries, bert_layer, bert_tables
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
    place_in_sequence,
    run_blocks,
    scaled,
)
from polyjax.nn.encoders.relative import relative_rows, shifted
from polyjax.nn.heads import CrossConfig
from polyjax.nn.linear import LayerNorm, Linear, affine, apply_dropout
from polyjax.types import Tokens

RelativeTerm = Literal["c2p", "p2c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebertaConfig(FamilyConfig):
    """Settings of the encoder: the fields of FamilyConfig and these.

    Attributes:
        n_segments: rows of the segment table; 0 for none.
        absolute_positions: also add a table of absolute positions to the embeddings.
        n_buckets: number of buckets of relative positions in each direction.
        max_distance: distance, in tokens, from which all positions share the last bucket.
        terms: terms of the relative attention: content to position (c2p), position to content (p2c).
        shared_projections: project relative positions with the weights of queries and keys, instead of
            separate weights.
        normalized_positions: apply a layer norm to the table of relative positions.
    """

    norm_eps: float = 1e-7
    n_segments: int = 0
    absolute_positions: bool = False
    n_buckets: int = 256
    max_distance: int = 512
    terms: tuple[RelativeTerm, ...] = ("c2p", "p2c")
    shared_projections: bool = True
    normalized_positions: bool = True

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        super().__post_init__()
        if self.n_buckets < 2 or self.n_buckets % 2:
            raise InputError("encoder.n_buckets", expected="an even number of at least 2", got=self.n_buckets)
        if self.max_distance - 1 <= self.n_buckets // 2:
            raise InputError(
                "encoder.max_distance", expected=f"more than {self.n_buckets // 2 + 1}", got=self.max_distance
            )
        if not self.terms or len(set(self.terms)) != len(self.terms):
            raise InputError("encoder.terms", expected="c2p, p2c or both", got=self.terms)

    def build(self, *, rngs: nnx.Rngs) -> "DebertaEncoder":
        """The transformer, with newly initialised parameters."""
        return DebertaEncoder(self, rngs=rngs)


class DisentangledAttention(nnx.Module):
    """Multi-head self-attention whose logits have content and relative-position terms (2006.03654 §3.1).

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: DebertaConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.config = config
        self.qkv = Linear(dim, 3 * dim, rngs=rngs)
        self.out = Linear(dim, dim, rngs=rngs)
        own = not config.shared_projections
        self.position_key = Linear(dim, dim, rngs=rngs) if own and "c2p" in config.terms else None
        self.position_query = Linear(dim, dim, rngs=rngs) if own and "p2c" in config.terms else None

    def _projected(self, relative: Array, part: int, own: Linear | None) -> Float[Array, "r h k"]:
        """Relative positions projected to queries (part 0) or keys (part 1)."""
        config = self.config
        if own is not None:
            found = own(relative)
        else:
            columns = slice(part * config.dim, (part + 1) * config.dim)
            bias = self.qkv.bias
            assert bias is not None
            found = affine(relative, self.qkv.kernel[:, columns], bias[columns])
        return found.reshape(len(relative), config.n_heads, -1)

    def __call__(
        self,
        x: Float[Array, "n t d"],
        mask: Bool[Array, "n *q t"],
        *,
        relative: Float[Array, "b d"],
        rows: Int[np.ndarray | Array, " r"],
        key: Array | None = None,
    ) -> Float[Array, "n t d"]:
        """[n, t, d] -> [n, t, d]

        Args:
            x: hidden states.
            mask: True where a state is attended to: [n, t] by all states, or [n, t, t] by each.
            relative: the table of relative positions, one row per bucket.
            rows: its row for each difference query - key, from -(t - 1) to t - 1.
            key: random key for dropout; None for no dropout.
        """
        config = self.config
        n, t, d = x.shape
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        scale = (d // config.n_heads * (1 + len(config.terms))) ** -0.5
        few = len(rows) < len(relative)  # project the differences or the buckets, whichever are fewer
        table = jnp.take(relative, rows, axis=0) if few else relative

        def by_difference(part: int, own: Linear | None) -> Float[Array, "r h k"]:
            projected = self._projected(table, part, own)
            return projected if few else jnp.take(projected, rows, axis=0)

        def heads(states: Array) -> Float[Array, "n t h k"]:
            return states.reshape(n, t, config.n_heads, -1)

        bias = jnp.zeros((), jnp.float32)
        if "c2p" in config.terms:  # of query i and difference i - j, whose rows run from j = t - 1 down to 0
            keys = by_difference(1, self.position_key)[::-1]
            bias = bias + shifted(jnp.einsum("nthk,rhk->nhtr", heads(q) * scale, keys)).astype(jnp.float32)
        if "p2c" in config.terms:  # of key j and difference i - j
            queries = by_difference(0, self.position_query)
            terms = shifted(jnp.einsum("nthk,rhk->nhtr", heads(k) * scale, queries)).astype(jnp.float32)
            bias = bias + terms.swapaxes(2, 3)
        mixed = multi_head(
            q,
            k,
            v,
            mask,
            n_heads=config.n_heads,
            bias=bias,
            scale=scale,
            dropout=config.attention_dropout,
            key=key,
        )
        return self.out(mixed)


class DebertaEncoder(nnx.Module):
    """Embeddings, the table of relative positions, and post-norm blocks.

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: DebertaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.dim,
            n_positions=config.n_positions if config.absolute_positions else 0,
            n_segments=config.n_segments,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        draw = nnx.initializers.normal(0.02)
        self.relative = nnx.Param(draw(rngs.params(), (2 * config.n_buckets, config.dim), jnp.float32))
        normalized = config.normalized_positions
        self.relative_norm = LayerNorm(config.dim, eps=config.norm_eps) if normalized else None
        self.blocks = nnx.List(
            [
                Block(config, attention=DisentangledAttention(config, rngs=rngs), rngs=rngs)
                for _ in range(config.n_layers)
            ]
        )

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype; see ``TokenEncoder``."""
        config = self.config
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        x = self.embeddings(
            tokens.ids, places=place_in_sequence(tokens), segments=tokens.segments, dtype=config.dtype
        )
        x = apply_dropout(x, config.dropout, keys[-1])
        relative = self.relative[...].astype(config.dtype)
        relative = relative if self.relative_norm is None else self.relative_norm(relative)
        t = tokens.ids.shape[-1]
        given: Attended = {
            "mask": attention_mask(tokens),
            "relative": relative,
            "rows": relative_rows(t, config.n_buckets, config.max_distance),
        }
        x = run_blocks(self.blocks, x, [given] * config.n_layers, keys[:-1], config)
        return scaled(x, config.output_scaling)


def _terms(entries: ConfigJson) -> tuple[RelativeTerm, ...]:
    value = entries.entries.get("pos_att_type")
    names = value.split("|") if isinstance(value, str) else value  # older folders: "p2c|c2p"
    if not isinstance(names, list) or not names or not set(names) <= {"c2p", "p2c"}:
        raise InputError.in_file(entries.path, expected="c2p, p2c or both for 'pos_att_type'", got=value)
    return tuple(term for term in get_args(RelativeTerm) if term in names)


def _read(entries: ConfigJson) -> DebertaConfig:
    entries.expect("relative_attention", True)
    entries.expect("embedding_size", entries.number("hidden_size"))
    entries.expect("conv_kernel_size", 0)
    dim, n_heads = entries.number("hidden_size"), entries.number("num_attention_heads")
    entries.expect("attention_head_size", dim // n_heads)
    n_positions = entries.number("max_position_embeddings")
    farthest = entries.number("max_relative_positions", -1)
    n_buckets = entries.number("position_buckets", -1)
    if not entries.flag("relative_attention", False) or n_buckets < 1:
        raise InputError.in_file(
            entries.path,
            expected="'relative_attention' with 'position_buckets', as DeBERTa v2 and v3 have",
            got=shown("a model without"),
        )
    normalized = "layer_norm" in entries.text("norm_rel_ebd", "none").split("|")
    if not normalized:
        entries.expect("norm_rel_ebd", "none")
    return DebertaConfig(
        vocab_size=entries.number("vocab_size"),
        dim=dim,
        n_layers=entries.number("num_hidden_layers"),
        n_heads=n_heads,
        mlp_dim=entries.number("intermediate_size"),
        n_positions=n_positions,
        activation=entries.activation("hidden_act", "gelu"),
        norm_eps=entries.real("layer_norm_eps", 1e-7),
        n_segments=entries.number("type_vocab_size", 0),
        absolute_positions=entries.flag("position_biased_input", True),
        n_buckets=n_buckets,
        max_distance=farthest if farthest >= 1 else n_positions,
        terms=_terms(entries),
        shared_projections=entries.flag("share_att_key", False),
        normalized_positions=normalized,
    )


def _layer(i: int, config: DebertaConfig) -> list[Stored]:
    theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
    found = bert_layer(theirs, ours, names=("query_proj", "key_proj", "value_proj"))
    if not config.shared_projections:
        for term, name, their_name in (
            ("c2p", "position_key", "pos_key_proj"),
            ("p2c", "position_query", "pos_query_proj"),
        ):
            if term in config.terms:
                found += linear(f"{ours}.attention.{name}", f"{theirs}.attention.self.{their_name}")
    return found


def _stored(config: DebertaConfig) -> list[Stored]:
    return [
        *bert_tables(positions=config.absolute_positions, segments=config.n_segments > 0),
        *table("relative", "encoder.rel_embeddings"),
        *(norm("relative_norm", "encoder.LayerNorm") if config.normalized_positions else []),
        *itertools.chain.from_iterable(_layer(i, config) for i in range(config.n_layers)),
    ]


def _entries(config: DebertaConfig) -> dict[str, Any]:
    return bert_entries(
        config,
        "deberta-v2",
        max_position_embeddings=config.n_positions,
        max_relative_positions=config.max_distance,
        type_vocab_size=config.n_segments,
        position_biased_input=config.absolute_positions,
        relative_attention=True,
        position_buckets=config.n_buckets,
        pos_att_type=list(config.terms),
        share_att_key=config.shared_projections,
        norm_rel_ebd="layer_norm" if config.normalized_positions else "none",
        pooler_hidden_size=config.dim,
        pooler_hidden_act="gelu",
    )


def _classifier(entries: ConfigJson) -> Classifier:
    head = CrossConfig(dense=entries.activation("pooler_hidden_act", "gelu"))
    return Classifier(head=head, dense="pooler.dense", linear="classifier")


def _classifier_entries(head: CrossConfig) -> dict[str, Any]:
    return {"pooler_hidden_act": "none" if head.dense == "none" else their_activation(head.dense)}


DEBERTA = Family(
    architectures={"deberta-v2": "DebertaV2"},
    prefixes=("deberta.",),
    settings=DebertaConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
    classifier_entries=_classifier_entries,
)
