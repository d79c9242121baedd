"""Scorers: an encoder (or two) and a head. Their common result is scores [b, c].

A DualScorer can encode candidates once and keep the vectors; a CrossScorer cannot. That difference is
the point of the paper, so the types say it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError, shown
from polyjax.nn.encoders import ChecksPairs, EncoderSettings, GatesTexts, KnownEncoder, TokenEncoder
from polyjax.nn.heads import (
    DualHead,
    DualSettings,
    EmbedsTexts,
    GatedPairHead,
    GatedSettings,
    HeadConfig,
    HeadSettings,
    Inputs,
    PairHead,
    SetsWidth,
    TiesEncoders,
)
from polyjax.types import DualInputs, PairInputs, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes a scorer's parameters and arithmetic."""

    encoder: KnownEncoder | EncoderSettings
    head: HeadConfig | HeadSettings

    @property
    def vector_dim(self) -> int:
        """Width of the vectors of contexts and candidates."""
        dim = self.encoder.dim
        return self.head.vector_dim(dim) if isinstance(self.head, SetsWidth) else dim


class DualScorer(nnx.Module):
    """Contexts and candidates are encoded apart, as in a bi- or poly-encoder.

    Args:
        encoder: configuration of the transformer(s).
        head: settings with ``inputs`` of ``dual``.
        rngs: source of the initial values.
        context_encoder: an encoder of that configuration to hold instead of a new one.

    Attributes:
        head: the module that the settings built.
    """

    inputs: ClassVar[Inputs] = "dual"
    head: DualHead

    def __init__(
        self,
        encoder: EncoderSettings,
        head: DualSettings,
        *,
        rngs: nnx.Rngs,
        context_encoder: TokenEncoder | None = None,
    ):
        self.context_encoder = context_encoder or encoder.build(rngs=rngs)
        # A shared encoder is stored once: under two names plain jax.grad would see two parameters.
        self.candidate_encoder = None if head.shared_encoder else encoder.build(rngs=rngs)
        if self.candidate_encoder is not None:
            # Both start alike (§4.2). Copies, because a step gives the memory of each parameter away.
            nnx.update(self.candidate_encoder, jax.tree.map(jnp.copy, nnx.state(self.context_encoder)))
            if isinstance(head, TiesEncoders):
                head.tie(self.context_encoder, self.candidate_encoder)
        self.head = head.build(encoder.dim, rngs=rngs)

    @property
    def settings(self) -> ModelConfig:
        """The configuration of encoder and head."""
        return ModelConfig(encoder=self.context_encoder.config, head=self.head.config)

    @property
    def encoders(self) -> tuple[TokenEncoder, ...]:
        """The transformers, the contexts' first; one where both sides share it."""
        both = self.context_encoder, self.candidate_encoder
        return tuple(encoder for encoder in both if encoder is not None)

    def encode_context(
        self, context: Tokens, *, key: Array | None = None
    ) -> tuple[Float[Array, "b m e"], Bool[Array, "b m"]]:
        """Tokens [b, t] -> context vectors [b, m, e] and which of them are real [b, m]."""
        return self.head.context(self.context_encoder(context, key=key), jnp.asarray(context.read))

    def encode_candidates(self, candidates: Tokens, *, key: Array | None = None) -> Float[Array, "n e"]:
        """Tokens [n, t] -> candidate vectors [n, e]: exactly what an index stores."""
        encoder = self.context_encoder if self.candidate_encoder is None else self.candidate_encoder
        return self.head.candidate(encoder(candidates, key=key), jnp.asarray(candidates.read))

    def embed(self, texts: Tokens) -> Float[Array, "n e"]:
        """Tokens [n, t] -> vectors [n, e] of texts that are neither contexts nor candidates.

        Raises:
            InputError: the head has none.
        """
        if not isinstance(self.head, EmbedsTexts):
            raise InputError("head", expected="a bi-encoder, to embed texts", got=type(self.head).__name__)
        return self.head.embed(self.context_encoder(texts), jnp.asarray(texts.read))

    def score(
        self, vectors: Float[Array, "b m e"], mask: Bool[Array, "b m"], candidates: Float[Array, "#b c e"]
    ) -> Float[Array, "b c"]:
        """Context vectors against candidate vectors, [1, c, e] for all contexts or [b, c, e] for each."""
        return self.head.score(vectors, mask, candidates)

    def __call__(
        self, inputs: DualInputs, *, key: Array | None = None, chunk: int = 0
    ) -> Float[Array, "b c"]:
        """Scores [b, c]: of the shared candidates, then of the listed ones.

        Args:
            inputs: contexts and candidates.
            key: draws the dropout while training.
            chunk: contexts to encode at once, see ``in_chunks``; all where 0.
        """
        context_key, key = (None, None) if key is None else jax.random.split(key)
        vectors, mask = in_chunks(self.encode_context, inputs.context, context_key, chunk)
        scores = []
        if inputs.shared is not None:
            candidates = in_chunks(self.encode_candidates, inputs.shared.tokens, key, chunk)
            scores.append(self.score(vectors, mask, candidates[None]))
            key = None if key is None else jax.random.fold_in(key, 1)  # listed ones drop out otherwise
        if inputs.listed is not None:
            b, c, t = inputs.listed.tokens.ids.shape
            flat = jax.tree.map(lambda x: x.reshape(b * c, t), inputs.listed.tokens)
            candidates = in_chunks(self.encode_candidates, flat, key, chunk * c)
            scores.append(self.score(vectors, mask, candidates.reshape(b, c, -1)))
        return scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=1)


class CrossScorer(nnx.Module):
    """Each context-candidate pair goes through the transformer, as in a cross-encoder.

    The segments of a pair say which text a token is of. Where the head has gates, both texts are in the
    encoder's first segment, with positions of their own.

    Args:
        encoder: configuration of the transformer.
        head: settings with ``inputs`` of ``pairs``.
        rngs: source of the initial values.

    Attributes:
        head: the module that the settings built.
    """

    inputs: ClassVar[Inputs] = "pairs"
    head: PairHead | GatedPairHead

    def __init__(self, encoder: EncoderSettings, head: HeadSettings, *, rngs: nnx.Rngs):
        if isinstance(head, GatedSettings):
            check_gates(encoder)
            assert isinstance(encoder, GatesTexts)
            self.encoder = encoder.build(rngs=rngs)
            blocks = {"n_layers": encoder.n_layers, "n_heads": encoder.n_heads}
            self.head = head.build(encoder.dim, rngs=rngs, **blocks)
            return
        if isinstance(encoder, ChecksPairs):
            encoder.check_pairs()
        self.encoder = encoder.build(rngs=rngs)
        self.head = head.build(encoder.dim, rngs=rngs)

    @property
    def settings(self) -> ModelConfig:
        """The configuration of encoder and head."""
        return ModelConfig(encoder=self.encoder.config, head=self.head.config)

    @property
    def encoders(self) -> tuple[TokenEncoder, ...]:
        """The transformer."""
        return (self.encoder,)

    def score_pairs(self, pairs: Tokens, *, key: Array | None = None) -> Float[Array, " n"]:
        """Pairs, Tokens [n, t] -> scores [n]."""
        read = jnp.asarray(pairs.read)
        if not isinstance(self.head.config, GatedSettings):
            return cast(PairHead, self.head)(self.encoder(pairs, key=key), read)
        second = jnp.asarray(pairs.segments) > 0
        both = dataclasses.replace(pairs, segments=jnp.zeros_like(pairs.segments), packs=pairs.segments)
        head, encode = cast(GatedPairHead, self.head), cast(Any, self.encoder)
        return head(encode(both, key=key, gates=head.gates), read & ~second, read & second)

    def __call__(
        self, inputs: PairInputs, *, key: Array | None = None, chunk: int = 0
    ) -> Float[Array, "b c"]:
        """Scores [b, c].

        Args:
            inputs: pairs.
            key: draws the dropout while training.
            chunk: contexts whose pairs to encode at once, see ``in_chunks``; all where 0.
        """
        b, c, t = inputs.pairs.ids.shape
        flat = jax.tree.map(lambda x: x.reshape(b * c, t), inputs.pairs)
        return in_chunks(self.score_pairs, flat, key, chunk * c).reshape(b, c)


Scorer = DualScorer | CrossScorer


def check_gates(encoder: EncoderSettings) -> None:
    """Raise InputError for an encoder whose attention between two texts cannot be held down."""
    if not isinstance(encoder, GatesTexts):
        raise InputError(
            "encoder",
            expected="one of BERT, RoBERTa, DistilBERT, ELECTRA or MPNet, for gates between two texts",
            got=shown(type(encoder).__name__),
            fix="choose the `head` joint, which needs none",
        )


def make_scorer(encoder: EncoderSettings, head: HeadSettings, *, rngs: nnx.Rngs) -> Scorer:
    """The scorer that a head's settings ask for.

    Raises:
        InputError: the settings do not keep the contract of ``polyjax.nn.heads``.
    """
    inputs = None if isinstance(head, type) else getattr(head, "inputs", None)
    if inputs == "dual" and isinstance(head, DualSettings):
        return DualScorer(encoder, head, rngs=rngs)
    if inputs == "pairs" and isinstance(head, HeadSettings):
        return CrossScorer(encoder, head, rngs=rngs)
    raise InputError(
        "head",
        expected="settings with arch, inputs (dual or pairs), build and, for dual inputs, shared_encoder",
        got=head,
    )


def in_chunks(encode: Callable[..., Any], rows: Any, key: Array | None, chunk: int) -> Any:
    """What ``encode(rows, key=key)`` gives, computed a chunk of the rows at a time.

    Of a chunk only the result is kept: the backward pass encodes it again. So the activations of one chunk
    are in memory, whatever the number of rows, and loss and gradients are those of the whole (cached
    gradients, arXiv 2101.06983), for the price of a second forward pass. Each chunk draws dropout of its own.

    Args:
        encode: rows and a key -> arrays whose first axis is n.
        rows: Tokens [n, t], or other arrays whose first axis is n.
        key: draws the dropout; None for none.
        chunk: rows; all of them where 0.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if not 0 < chunk < n:
        return encode(rows, key=key)
    pieces = math.ceil(n / chunk)

    def split(x: Array) -> Array:
        # Chunks are not full where there are too few rows: copies of the first, whose results are dropped.
        x = jnp.concatenate([x, jnp.broadcast_to(x[:1], (pieces * chunk - n, *x.shape[1:]))])
        # Every pieces-th row makes a chunk: devices among which the rows are split have a part in each.
        return x.reshape(chunk, pieces, *x.shape[1:]).swapaxes(0, 1)

    keys = None if key is None else jax.random.split(key, pieces)

    @jax.checkpoint
    def one(part: tuple[Any, Array | None]) -> Any:
        return encode(part[0], key=part[1])

    chunks = jax.lax.map(one, (jax.tree.map(lambda x: split(jnp.asarray(x)), rows), keys))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:n], chunks)
