"""BERT, and the transformers of the paper's code: tokens in, hidden states out.

One configuration covers BERT (post-norm), two variants of the paper's code (``xlm``: BERT with output
scaling; ``aiayn``: without embedding norm) and pre-norm transformers.
"""

import dataclasses
import itertools
import math
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError, shown
from polyjax.nn.activations import Activation
from polyjax.nn.encoders.contract import Dtype, RematKeeps, check_stack
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
    Block,
    Embeddings,
    attended_by,
    check_length,
    layer_keys,
    place_in_sequence,
    run_blocks,
    scaled,
    sinusoidal_positions,
)
from polyjax.nn.heads import CrossConfig
from polyjax.nn.linear import LayerNorm, apply_dropout
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and computation settings of the transformer.

    Attributes:
        vocab_size: rows of the token table.
        dim: width d.
        n_layers: number of transformer blocks.
        n_heads: attention heads of a block; divides dim.
        mlp_dim: inner width of a block's feed-forward part.
        n_positions: maximum length of an input, in tokens.
        n_segments: rows of the segment table; 0 for none.
        norm: ``post`` normalises each sub-layer's output (BERT, XLM), ``pre`` its input.
        embedding_norm: normalise the sum of the embeddings (BERT, XLM). With ``pre``, a final norm always
            follows the last block.
        positions: ``learnt`` table, or ``sinusoidal`` (fixed, interleaved sine and cosine).
        activation: activation of the feed-forward part; ``gelu`` is the exact one, with erf.
        norm_eps: added to the variance in every layer norm.
        embedding_scale: multiply token embeddings by sqrt(dim).
        output_scaling: multiplies the hidden states (the paper's recipes use 0.06).
        zero_padding: set the hidden states of padding to zero before the final norm and the scaling, as in
            XLM. It only matters to a reduction of your own that reads padding.
        dropout: dropout rate of embeddings and sub-layer outputs in training.
        attention_dropout: dropout rate of attention weights in training.
        dtype: dtype of the computation; parameters and scores stay float32.
        remat: recompute a block in the backward pass instead of keeping its activations. On a CPU it needs
            ``scan`` too: XLA's CPU compiler undoes it for unrolled blocks.
        remat_keeps: what to keep of a recomputed block besides its input: ``nothing``, or the results of its
            matrix ``products``, so that only cheap operations are repeated.
        scan: compile one block and loop over it. It compiles faster and runs up to 11% slower.

    >>> EncoderConfig(vocab_size=30522, dim=384, n_layers=6, n_heads=12, mlp_dim=1536).n_positions
    512
    """

    gates_texts: ClassVar[bool] = True

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    mlp_dim: int
    n_positions: int = 512
    n_segments: int = 2
    norm: Literal["post", "pre"] = "post"
    embedding_norm: bool = True
    positions: Literal["learnt", "sinusoidal"] = "learnt"
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    embedding_scale: bool = False
    output_scaling: float = 1.0
    zero_padding: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: Dtype = "float32"
    remat: bool = False
    remat_keeps: RematKeeps = "nothing"
    scan: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid shape."""
        check_stack(self)
        if self.positions == "sinusoidal" and self.dim % 2:
            raise InputError("encoder.dim", expected="an even width for sinusoidal positions", got=self.dim)
        if self.n_segments < 0:
            raise InputError("encoder.n_segments", expected="0 or more", got=self.n_segments)

    @property
    def table_dim(self) -> int:
        """Width of the token table."""
        return self.dim

    @property
    def n_blocks(self) -> int:
        """Number of blocks that have their own weights."""
        return self.n_layers

    @property
    def layer_weights(self) -> int:
        """Number of weights in a layer's matrices; operations per token are counted from it."""
        return 4 * self.dim**2 + 2 * self.dim * self.mlp_dim

    def check_pairs(self) -> None:
        """Raise InputError if the encoder cannot distinguish the two texts of a pair."""
        if self.n_segments < 2:
            raise InputError("encoder.n_segments", expected="2, for a cross-encoder", got=self.n_segments)

    def build(self, *, rngs: nnx.Rngs) -> "Encoder":
        """The transformer, with newly initialised parameters."""
        return Encoder(self, rngs=rngs)

    @classmethod
    def small(cls, vocab_size: int) -> "EncoderConfig":
        """4 layers x 256, small enough to train from scratch on a CPU."""
        return cls(vocab_size=vocab_size, dim=256, n_layers=4, n_heads=4, mlp_dim=1024, norm_eps=1e-5)

    @classmethod
    def tiny(cls, vocab_size: int) -> "EncoderConfig":
        """2 layers x 32, for tests."""
        return cls(
            vocab_size=vocab_size, dim=32, n_layers=2, n_heads=2, mlp_dim=64, n_positions=128, norm_eps=1e-5
        )

    @classmethod
    def paper(cls, vocab_size: int) -> "EncoderConfig":
        """12 layers x 768, the paper's own transformers (ParlAI's variant ``xlm``)."""
        return cls(
            vocab_size=vocab_size,
            dim=768,
            n_layers=12,
            n_heads=12,
            mlp_dim=3072,
            n_positions=1024,
            norm_eps=1e-5,
        )

    @classmethod
    def bert_base(cls, vocab_size: int = 30522) -> "EncoderConfig":
        """12 layers x 768, the paper's BERT."""
        return cls(vocab_size=vocab_size, dim=768, n_layers=12, n_heads=12, mlp_dim=3072)


class Encoder(nnx.Module):
    """Embeddings and blocks: tokens -> hidden states (arXiv 1905.01969 §4.1).

    Args:
        config: settings of the encoder.
        rngs: source of the initial values.

    >>> import numpy as np
    >>> config = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32)
    >>> ids = np.ones((3, 8), np.int32)
    >>> Encoder(config, rngs=nnx.Rngs(0))(Tokens(ids, ids > 0, 0 * ids)).shape
    (3, 8, 16)
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        fixed = config.positions == "sinusoidal"
        self.config = config
        self.embeddings = Embeddings(
            config.vocab_size,
            config.dim,
            n_positions=config.n_positions,
            fixed_positions=sinusoidal_positions(config.n_positions, config.dim) if fixed else None,
            n_segments=config.n_segments,
            scale=math.sqrt(config.dim) if config.embedding_scale else 1.0,
            norm_eps=config.norm_eps if config.embedding_norm else None,
            rngs=rngs,
        )
        self.blocks = nnx.List([Block(config, norm=config.norm, rngs=rngs) for _ in range(config.n_layers)])
        if config.norm == "pre":
            self.final_norm = LayerNorm(config.dim, eps=config.norm_eps)

    def __call__(
        self, tokens: Tokens, *, key: Array | None = None, gates: Float[Array, "l h"] | None = None
    ) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype.

        Args:
            tokens: t is at most n_positions; packed sequences do not attend to each other.
            key: random key for dropout; with None the encoder is deterministic.
            gates: gates [l, h] through which packed sequences attend to each other, see ``GatesTexts``.

        Raises:
            InputError: t is larger than n_positions.
        """
        config = self.config
        check_length(tokens, config.n_positions)
        keys = layer_keys(key, config.n_layers)
        x = self.embeddings(
            tokens.ids, places=place_in_sequence(tokens), segments=tokens.segments, dtype=config.dtype
        )
        x = apply_dropout(x, config.dropout, keys[-1])
        attended = [attended_by(tokens, gates)] * config.n_layers
        x = run_blocks(self.blocks, x, attended, keys[:-1], config, gates=gates)
        if config.zero_padding:
            x = jnp.where(jnp.asarray(tokens.mask)[..., None], x, jnp.zeros((), x.dtype))
        if config.norm == "pre":
            x = self.final_norm(x)
        return scaled(x, config.output_scaling)


def _read(entries: ConfigJson) -> EncoderConfig:
    entries.expect("position_embedding_type", "absolute")
    entries.expect("is_decoder", False)
    return EncoderConfig(
        vocab_size=entries.number("vocab_size"),
        dim=entries.number("hidden_size"),
        n_layers=entries.number("num_hidden_layers"),
        n_heads=entries.number("num_attention_heads"),
        mlp_dim=entries.number("intermediate_size"),
        n_positions=entries.number("max_position_embeddings"),
        n_segments=entries.number("type_vocab_size", 2),
        activation=entries.activation("hidden_act", "gelu"),
        norm_eps=entries.real("layer_norm_eps", 1e-12),
    )


def bert_layer(
    theirs: str, ours: str, *, names: tuple[str, str, str] = ("query", "key", "value")
) -> list[Stored]:
    """Where the parameters of a block are stored, in BERT and families with the same tensor names.

    Args:
        theirs: beginning of the tensors' names.
        ours: beginning of the parameters' paths.
        names: names of the query, key and value projections.
    """
    return [
        *linear(f"{ours}.attention.qkv", *(f"{theirs}.attention.self.{name}" for name in names)),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.output.dense"),
        *norm(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        *linear(f"{ours}.mlp_in", f"{theirs}.intermediate.dense"),
        *linear(f"{ours}.mlp_out", f"{theirs}.output.dense"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
    ]


def bert_tables(*, positions: bool = True, segments: bool = True) -> list[Stored]:
    """Where the embedding tables are stored, in BERT and families with the same tensor names."""
    return [
        *table("embeddings.tokens", "embeddings.word_embeddings"),
        *(table("embeddings.positions", "embeddings.position_embeddings") if positions else []),
        *(table("embeddings.segments", "embeddings.token_type_embeddings") if segments else []),
        *norm("embeddings.norm", "embeddings.LayerNorm"),
    ]


def bert_entries(config: Any, model_type: str, **more: Any) -> dict[str, Any]:
    """Entries of config.json that BERT and similar families have in common; ``more`` is added."""
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": their_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        **more,
    }


def _stored(config: EncoderConfig) -> list[Stored]:
    layers = (bert_layer(f"encoder.layer.{i}", f"blocks.{i}") for i in range(config.n_layers))
    return [*bert_tables(segments=config.n_segments > 0), *itertools.chain.from_iterable(layers)]


def _entries(config: EncoderConfig) -> dict[str, Any]:
    plain = dataclasses.replace(
        config,
        norm="post",
        embedding_norm=True,
        positions="learnt",
        embedding_scale=False,
        zero_padding=False,
    )
    if config != plain or not config.n_segments:
        raise InputError(
            "encoder",
            expected="the shape of a BERT, which transformers has a model for",
            got=shown("a transformer with another norm, scaling, positions or segments"),
        )
    return bert_entries(
        config,
        "bert",
        max_position_embeddings=config.n_positions,
        type_vocab_size=config.n_segments,
        position_embedding_type="absolute",
    )


def _classifier(entries: ConfigJson) -> Classifier:
    return Classifier(head=CrossConfig(dense="tanh"), dense="bert.pooler.dense", linear="classifier")


BERT = Family(
    architectures={"bert": "Bert"},
    prefixes=("bert.",),
    settings=EncoderConfig,
    read=_read,
    stored=_stored,
    entries=_entries,
    classifier=_classifier,
)
