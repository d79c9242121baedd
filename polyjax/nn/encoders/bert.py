"""The one transformer: tokens in, hidden states out. It knows tokens, not their roles.

One configuration covers BERT (post-norm), the XLM variant of the paper's code (the same with output
scaling), ParlAI's ``aiayn`` (no embedding norm) and pre-norm stacks.
"""

import dataclasses
import math
from typing import Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from polyjax.errors import InputError
from polyjax.nn.attention import SelfAttention
from polyjax.nn.encoders.contract import Dtype
from polyjax.nn.linear import LayerNorm, Linear, apply_dropout
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and arithmetic of the transformer.

    Attributes:
        vocab_size: rows of the token table.
        dim: width d.
        n_layers: transformer blocks.
        n_heads: attention heads of a block; divides dim.
        mlp_dim: inner width of a block's feed-forward part.
        n_positions: the longest input, in tokens.
        n_segments: rows of the segment table; 0 for none.
        norm: ``post`` normalises each sub-layer's output (BERT, XLM), ``pre`` its input.
        embedding_norm: normalise the embeddings' sum (BERT, XLM); a pre-norm stack ends in a norm anyway.
        positions: ``learnt`` table, or ``sinusoidal`` (fixed, interleaved sine and cosine).
        activation: exact (erf) ``gelu``, or ``relu``.
        norm_eps: added to the variance in every layer norm.
        embedding_scale: multiply token embeddings by sqrt(dim).
        output_scaling: multiplies the hidden states (ParlAI's recipes use 0.06).
        zero_padding: hidden states of padding are zero before the last norm and the scaling, as in ParlAI;
            it matters only where a head reduces over padding.
        dropout: rate on embeddings and sub-layer outputs while training.
        attention_dropout: rate on attention weights while training.
        dtype: of the arithmetic; parameters stay float32, scores are float32.
        remat: recompute a block in the backward pass instead of keeping its activations. XLA's CPU compiler
            undoes it where the blocks are unrolled; there it takes ``scan`` besides.
        remat_keeps: what of a recomputed block is kept after all: ``nothing`` but its input, or the results
            of its matrix ``products``, so that only what is cheap is computed again.
        scan: compile one block and loop over it: faster to compile, up to 11% slower to run.
    """

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
    activation: Literal["gelu", "relu"] = "gelu"
    norm_eps: float = 1e-12
    embedding_scale: bool = False
    output_scaling: float = 1.0
    zero_padding: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: Dtype = "float32"
    remat: bool = False
    remat_keeps: Literal["nothing", "products"] = "nothing"
    scan: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a shape that cannot work."""
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "mlp_dim", "n_positions"):
            if getattr(self, name) < 1:
                raise InputError(f"encoder {name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.n_heads:
            raise InputError(
                f"encoder n_heads must divide dim: {self.n_heads} heads do not divide a width of {self.dim}; "
                f"choose from {[h for h in range(1, self.dim + 1) if self.dim % h == 0][:12]}"
            )
        if self.positions == "sinusoidal" and self.dim % 2:
            raise InputError(f"sinusoidal positions need an even dim, got {self.dim}")
        if not 0 <= self.n_segments:
            raise InputError(f"encoder n_segments must be 0 or more, got {self.n_segments}")
        if not 0.0 < abs(self.output_scaling) < math.inf:
            raise InputError(f"encoder output_scaling must be a finite number, got {self.output_scaling}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"encoder {name} must be in [0, 1), got {getattr(self, name)}")

    def check_pairs(self) -> None:
        """Raise InputError where the two texts of a pair could not be distinguished."""
        if self.n_segments < 2:
            raise InputError("encoder.n_segments", expected="2, for a cross-encoder", got=self.n_segments)

    def build(self, *, rngs: nnx.Rngs) -> "Encoder":
        """The transformer, with its initial parameters."""
        return Encoder(self, rngs=rngs)

    @classmethod
    def small(cls, vocab_size: int) -> "EncoderConfig":
        """4 layers x 256: trains from scratch on a CPU."""
        return cls(vocab_size=vocab_size, dim=256, n_layers=4, n_heads=4, mlp_dim=1024, norm_eps=1e-5)

    @classmethod
    def tiny(cls, vocab_size: int) -> "EncoderConfig":
        """2 layers x 32: for tests."""
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


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x Phi(x), exact, computed in float32.

    Written with erf: XLA's erfc, which ``jax.nn.gelu`` uses, is slower on a CPU. In half precision each
    of its operations would be rounded for itself, which costs more than the operation.

    >>> round(gelu(jnp.array([1.0])).item(), 4)
    0.8413
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def sinusoidal_positions(n_positions: int, dim: int) -> np.ndarray:
    """Fixed table, float32 [n_positions, dim]: [p, 2j] = sin(p / 10000^(2j/dim)), [p, 2j+1] = cos."""
    angle = np.arange(n_positions)[:, None] / 10000.0 ** (2 * np.arange(dim // 2) / dim)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(n_positions, dim).astype(np.float32)


def place_in_sequence(tokens: Tokens) -> Int[Array, "n t"]:
    """The number of each token in its sequence, from 0 on, int32 [n, t].

    Counting real tokens, not places, makes padding on either side change nothing.
    """
    place = jnp.maximum(jnp.cumsum(jnp.asarray(tokens.mask).astype(jnp.int32), axis=-1) - 1, 0)
    if tokens.packs is None:
        return place
    packs = jnp.asarray(tokens.packs)
    begins = jnp.concatenate([jnp.ones_like(packs[:, :1], bool), packs[:, 1:] != packs[:, :-1]], axis=1)
    return place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)


class FixedTable(nnx.Variable):
    """A table that is saved with the parameters and never trained."""


class Embeddings(nnx.Module):
    """Token + position + segment embeddings, normalised where the configuration says so."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (rows, config.dim), jnp.float32))

        self.config = config
        self.tokens = table(config.vocab_size)
        if config.positions == "learnt":
            self.positions = table(config.n_positions)
        else:
            self.positions = FixedTable(jnp.asarray(sinusoidal_positions(config.n_positions, config.dim)))
        if config.n_segments:
            self.segments = table(config.n_segments)
        if config.embedding_norm:
            self.norm = LayerNorm(config.dim, eps=config.norm_eps)

    def __call__(self, tokens: Tokens) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> [n, t, d]"""
        config = self.config
        x = jnp.take(self.tokens[...], tokens.ids, axis=0)
        if config.embedding_scale:
            x = x * math.sqrt(config.dim)
        x = x + jnp.take(self.positions[...], place_in_sequence(tokens), axis=0)
        if config.n_segments:
            x = x + jnp.take(self.segments[...], tokens.segments, axis=0)
        x = x.astype(config.dtype)
        return self.norm(x) if config.embedding_norm else x


class Block(nnx.Module):
    """Self-attention and feed-forward part with residual connections, post-norm or pre-norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = SelfAttention(
            config.dim, config.n_heads, dropout=config.attention_dropout, rngs=rngs
        )
        self.attention_norm = LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp_in = Linear(config.dim, config.mlp_dim, rngs=rngs)
        self.mlp_out = Linear(config.mlp_dim, config.dim, rngs=rngs)
        self.mlp_norm = LayerNorm(config.dim, eps=config.norm_eps)

    def _mlp(self, x: Array) -> Array:
        inner = self.mlp_in(x)
        match self.config.activation:
            case "gelu":
                inner = gelu(inner)
            case "relu":
                inner = jax.nn.relu(inner)
            case other:
                assert_never(other)
        return self.mlp_out(inner)

    def __call__(
        self, x: Float[Array, "n t d"], mask: Bool[Array, "n *q t"], *, key: Array | None = None
    ) -> Float[Array, "n t d"]:
        """[n, t, d] -> [n, t, d]; ``key`` draws the dropout, none without it.

        ``mask`` says which tokens are attended to: [n, t] by all, or [n, t, t] by each.
        """
        rate = self.config.dropout
        attention_key, key_1, key_2 = (None,) * 3 if key is None else jax.random.split(key, 3)
        if self.config.norm == "pre":
            x = x + apply_dropout(
                self.attention(self.attention_norm(x), mask, key=attention_key), rate, key_1
            )
            return x + apply_dropout(self._mlp(self.mlp_norm(x)), rate, key_2)
        x = self.attention_norm(x, apply_dropout(self.attention(x, mask, key=attention_key), rate, key_1))
        return self.mlp_norm(x, apply_dropout(self._mlp(x), rate, key_2))


class Encoder(nnx.Module):
    """Embeddings and blocks: tokens -> hidden states (arXiv 1905.01969 §4.1).

    Args:
        config: shape and arithmetic.
        rngs: source of the initial values.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])
        if config.norm == "pre":
            self.final_norm = LayerNorm(config.dim, eps=config.norm_eps)

    def __call__(self, tokens: Tokens, *, key: Array | None = None) -> Float[Array, "n t d"]:
        """Tokens [n, t] -> hidden states [n, t, d] in the configured dtype.

        Args:
            tokens: t is at most n_positions; packed sequences do not see each other.
            key: draws the dropout; without it the encoder is deterministic.

        Raises:
            InputError: the tokens are longer than the positions.
        """
        if tokens.ids.shape[-1] > self.config.n_positions:
            # jnp.take would fill the missing positions with NaN.
            raise InputError(
                f"tokens are {tokens.ids.shape[-1]} long, the encoder has {self.config.n_positions} positions"
            )
        n_keys = self.config.n_layers + 1
        keys = [None] * n_keys if key is None else list(jax.random.split(key, n_keys))
        x = apply_dropout(self.embeddings(tokens), self.config.dropout, keys[-1])
        mask = jnp.asarray(tokens.mask)
        if tokens.packs is not None:
            packs = jnp.asarray(tokens.packs)
            mask = mask[:, None, :] & (packs[:, :, None] == packs[:, None, :])
        x = self._run_blocks(x, mask, keys[:-1])
        if self.config.zero_padding:
            x = jnp.where(jnp.asarray(tokens.mask)[..., None], x, jnp.zeros((), x.dtype))
        if self.config.norm == "pre":
            x = self.final_norm(x)
        return x * self.config.output_scaling if self.config.output_scaling != 1.0 else x

    def _run_blocks(
        self, x: Float[Array, "n t d"], mask: Bool[Array, "n *q t"], keys: list
    ) -> Float[Array, "n t d"]:
        graphs, states = zip(*(nnx.split(block) for block in self.blocks), strict=True)

        def run(x: Array, block: tuple[nnx.State, Array | None]) -> Array:
            state, key = block
            return nnx.merge(graphs[0], state)(x, mask, key=key)

        if self.config.remat:
            kept = {
                "nothing": None,
                "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            }
            run = jax.checkpoint(run, policy=kept[self.config.remat_keeps])
        if not self.config.scan:
            run = jax.jit(run)  # one trace serves all blocks, and XLA puts it in their places
            for block in zip(states, keys, strict=True):
                x = run(x, block)
            return x
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(states, keys, strict=True))
        return jax.lax.scan(lambda x, block: (run(x, block), None), x, stacked)[0]
