"""Scorers: one or two encoders and a head, which compute scores [b, c].

A DualScorer can encode candidates once and store their vectors; a CrossScorer cannot. This difference is the
point of the paper, so they are two types.
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
from polyjax.runtime.fields import check_types
from polyjax.runtime.forks import refuse_forked
from polyjax.types import DualInputs, PairInputs, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of a scorer.

    Attributes:
        encoder: settings of the transformer(s).
        head: settings of the head.

    >>> encoder = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32)
    >>> ModelConfig(encoder=encoder, head=BiConfig()).vector_dim
    16
    """

    encoder: KnownEncoder | EncoderSettings
    head: HeadConfig | HeadSettings

    @property
    def vector_dim(self) -> int:
        """Width of the vectors of contexts and candidates."""
        dim = self.encoder.dim
        return self.head.vector_dim(dim) if isinstance(self.head, SetsWidth) else dim


class DualScorer(nnx.Module):
    """Encodes contexts and candidates separately, as in a bi- or poly-encoder.

    Args:
        encoder: settings of the transformer(s).
        head: settings whose ``inputs`` is ``dual``.
        rngs: source of the initial values.
        context_encoder: an existing encoder with these settings to use instead of a new one.

    Attributes:
        head: the head's module.

    >>> import numpy as np
    >>> encoder = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32)
    >>> scorer = DualScorer(encoder, PolyConfig(n_codes=4), rngs=nnx.Rngs(0))
    >>> ids = np.ones((3, 8), np.int32)
    >>> texts = Tokens(ids, ids > 0, 0 * ids)
    >>> vectors, mask = scorer.encode_context(texts)
    >>> vectors.shape, scorer.encode_candidates(texts).shape, scorer(DualInputs(texts, Shared(texts))).shape
    ((3, 4, 16), (3, 16), (3, 3))
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
        # A shared encoder is stored once: with two names, plain jax.grad would see two sets of parameters.
        self.candidate_encoder = None if head.shared_encoder else encoder.build(rngs=rngs)
        if self.candidate_encoder is not None:
            # Both start with the same weights (§4.2): copies, because a step donates each parameter's memory.
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
        """The context encoder and the candidate encoder; only one if it is shared."""
        both = self.context_encoder, self.candidate_encoder
        return tuple(encoder for encoder in both if encoder is not None)

    def encode_context(
        self, context: Tokens, *, key: Array | None = None
    ) -> tuple[Float[Array, "b m e"], Bool[Array, "b m"]]:
        """Tokens [b, t] -> context vectors [b, m, e] and their mask [b, m], True for real ones."""
        return self.head.context(self.context_encoder(context, key=key), jnp.asarray(context.read))

    def encode_candidates(self, candidates: Tokens, *, key: Array | None = None) -> Float[Array, "n e"]:
        """Tokens [n, t] -> candidate vectors [n, e], as an index stores them."""
        encoder = self.context_encoder if self.candidate_encoder is None else self.candidate_encoder
        return self.head.candidate(encoder(candidates, key=key), jnp.asarray(candidates.read))

    def embed(self, texts: Tokens) -> Float[Array, "n e"]:
        """Tokens [n, t] -> vectors [n, e] of texts that are neither contexts nor candidates.

        Raises:
            InputError: the head cannot embed such texts (``EmbedsTexts``).
        """
        if not isinstance(self.head, EmbedsTexts):
            raise InputError("head", expected="a bi-encoder, to embed texts", got=type(self.head).__name__)
        return self.head.embed(self.context_encoder(texts), jnp.asarray(texts.read))

    def score(
        self, vectors: Float[Array, "b m e"], mask: Bool[Array, "b m"], candidates: Float[Array, "#b c e"]
    ) -> Float[Array, "b c"]:
        """Context vectors [b, m, e] and candidate vectors -> scores [b, c].

        Candidates are [1, c, e] (the same for all contexts) or [b, c, e] (their own for each context).
        """
        return self.head.score(vectors, mask, candidates)

    def __call__(
        self, inputs: DualInputs, *, key: Array | None = None, chunk: int = 0
    ) -> Float[Array, "b c"]:
        """Scores [b, c] of the shared candidates, then of the listed ones.

        Args:
            inputs: contexts and candidates.
            key: random key for dropout; None for no dropout.
            chunk: number of contexts to encode at a time, see ``in_chunks``; 0 for all.
        """
        context_key, key = (None, None) if key is None else jax.random.split(key)
        vectors, mask = in_chunks(self.encode_context, inputs.context, context_key, chunk)
        scores = []
        if inputs.shared is not None:
            candidates = in_chunks(self.encode_candidates, inputs.shared.tokens, key, chunk)
            scores.append(self.score(vectors, mask, candidates[None]))
            key = None if key is None else jax.random.fold_in(key, 1)  # other dropout for listed candidates
        if inputs.listed is not None:
            b, c, t = inputs.listed.tokens.ids.shape
            flat = jax.tree.map(lambda x: x.reshape(b * c, t), inputs.listed.tokens)
            candidates = in_chunks(self.encode_candidates, flat, key, chunk * c)
            scores.append(self.score(vectors, mask, candidates.reshape(b, c, -1)))
        return scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=1)


class CrossScorer(nnx.Module):
    """Encodes each context-candidate pair as one sequence, as in a cross-encoder.

    The segments of a pair say which text a token belongs to. If the head has gates, both texts use the
    encoder's first segment, and each has its own positions.

    Args:
        encoder: settings of the transformer.
        head: settings whose ``inputs`` is ``pairs``.
        rngs: source of the initial values.

    Attributes:
        head: the head's module.

    Raises:
        InputError: the encoder cannot distinguish the texts of a pair, or the head has gates that the encoder
            does not support.

    >>> import numpy as np
    >>> encoder = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32)
    >>> scorer = CrossScorer(encoder, CrossConfig(), rngs=nnx.Rngs(0))
    >>> ids = np.ones((2, 5, 8), np.int32)
    >>> scorer(PairInputs(Tokens(ids, ids > 0, 0 * ids))).shape
    (2, 5)
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
        """Tokens [n, t] of pairs -> scores [n]."""
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
        """Scores [b, c] of the pairs.

        Args:
            inputs: pairs [b, c, t].
            key: random key for dropout; None for no dropout.
            chunk: number of contexts whose pairs to encode at a time, see ``in_chunks``; 0 for all.
        """
        b, c, t = inputs.pairs.ids.shape
        flat = jax.tree.map(lambda x: x.reshape(b * c, t), inputs.pairs)
        return in_chunks(self.score_pairs, flat, key, chunk * c).reshape(b, c)


Scorer = DualScorer | CrossScorer


def check_gates(encoder: EncoderSettings) -> None:
    """Raise InputError for an encoder that does not support gates between two texts (``GatesTexts``)."""
    if not isinstance(encoder, GatesTexts):
        raise InputError(
            "encoder",
            expected="one of BERT, RoBERTa, DistilBERT, ELECTRA or MPNet, for gates between two texts",
            got=shown(type(encoder).__name__),
            fix="choose the `head` joint, which has no gates",
        )


def make_scorer(encoder: EncoderSettings, head: HeadSettings, *, rngs: nnx.Rngs) -> Scorer:
    """A new scorer: a DualScorer or a CrossScorer, according to the head's ``inputs``.

    Args:
        encoder: settings of the transformer(s).
        head: settings of the head.
        rngs: source of the initial values.

    Raises:
        InputError: ``head`` does not implement the contract of ``polyjax.nn.heads``, the encoder cannot be
            used with it, or a setting is of another type or not among its choices.

    >>> encoder = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32)
    >>> type(make_scorer(encoder, BiConfig(), rngs=nnx.Rngs(0))).__name__
    'DualScorer'
    """
    refuse_forked()
    for name, settings in {"encoder": encoder, "head": head}.items():
        if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
            check_types(settings, name)
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
    """The result of ``encode(rows, key=key)``, computed one chunk of rows at a time to save memory.

    Only the result of a chunk is kept, and the backward pass encodes the chunk again (cached gradients,
    arXiv 2101.06983). Memory holds the activations of one chunk, whatever the number of rows. Loss and
    gradients are those of the whole batch, at the cost of a second forward pass. Each chunk has its own
    dropout.

    Args:
        encode: rows and a key -> arrays whose first axis is n.
        rows: Tokens [n, t], or other arrays whose first axis is n.
        key: random key for dropout; None for no dropout.
        chunk: number of rows in a chunk; 0 for all.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if not 0 < chunk < n:
        return encode(rows, key=key)

    @jax.checkpoint
    def one(part: tuple[Any, Array | None]) -> Any:
        return encode(part[0], key=part[1])

    chunks = jax.lax.map(one, split_rows(rows, key, chunk))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:n], chunks)


def split_rows(rows: Any, key: Array | None, chunk: int) -> tuple[Any, Array | None]:
    """Rows in chunks, and a key for each; copies of the first row fill the last chunk.

    A chunk takes every p-th row, so that devices that share the rows have a part of each chunk.

    Args:
        rows: arrays whose first axis is n -> [p, chunk, ...].
        key: random key; None for none.
        chunk: number of rows in a chunk.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    pieces = math.ceil(n / chunk)

    def split(x: Array) -> Array:
        x = jnp.concatenate([x, jnp.broadcast_to(x[:1], (pieces * chunk - n, *x.shape[1:]))])
        return x.reshape(chunk, pieces, *x.shape[1:]).swapaxes(0, 1)

    keys = None if key is None else jax.random.split(key, pieces)
    return jax.tree.map(lambda x: split(jnp.asarray(x)), rows), keys
