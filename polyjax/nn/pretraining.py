"""What an encoder is pre-trained with: masked tokens and the next utterance (arXiv 1905.01969 §4.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from polyjax.nn.activations import gelu
from polyjax.nn.encoders import KnownEncoder
from polyjax.nn.linear import LayerNorm, Linear, affine
from polyjax.types import AnyArray, Tokens


class PretrainingHead(nnx.Module):
    """The two classifiers on the hidden states, as in BERT (arXiv 1810.04805 §3.1, appendix A.2).

    Args:
        config: the encoder's.
        rngs: source of the initial values.
    """

    def __init__(self, config: KnownEncoder, *, rngs: nnx.Rngs):
        self.transform = Linear(config.dim, config.table_dim, rngs=rngs)
        self.norm = LayerNorm(config.table_dim, eps=config.norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))
        self.pooler = Linear(config.dim, config.dim, rngs=rngs)
        self.follows = Linear(config.dim, 1, rngs=rngs)

    def vocabulary(self, hidden: Float[Array, "n d"], table: Float[Array, "v e"]) -> Float[Array, "n v"]:
        """Logits over the vocabulary, float32 [n, v]; ``table`` holds the encoder's token embeddings."""
        inner = self.norm(gelu(self.transform(hidden)))
        return affine(inner, table.T, self.bias[...], to=jnp.float32)

    def next_utterance(self, hidden: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Log-odds that a pair's second text follows the first, float32 [n], from its first token's state."""
        pooled = jnp.tanh(self.pooler(hidden))
        assert self.follows.bias is not None
        return affine(pooled, self.follows.kernel[...], self.follows.bias[...], to=jnp.float32)[:, 0]


class Pretrainer(nnx.Module):
    """An encoder with the heads that it is pre-trained with.

    Args:
        config: shape and arithmetic of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: KnownEncoder, *, rngs: nnx.Rngs):
        self.encoder = config.build(rngs=rngs)
        self.head = PretrainingHead(config, rngs=rngs)

    def __call__(
        self,
        tokens: Tokens,
        masked: Int[AnyArray, "b k"],
        first: Int[AnyArray, "b p"],
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b k v"], Float[Array, "b p"]]:
        """Logits of masked tokens, and log-odds that pairs belong together, both float32.

        Args:
            tokens: rows of pairs, some of their tokens replaced, [b, t].
            masked: places of the replaced tokens in their rows, [b, k].
            first: places of the pairs' first tokens in their rows, [b, p].
            key: draws the dropout; none without it.
        """
        hidden = self.encoder(tokens, key=key)

        def at(places: AnyArray) -> Float[Array, "n d"]:
            return jnp.take_along_axis(hidden, jnp.asarray(places)[..., None], axis=1).reshape(
                -1, hidden.shape[-1]
            )

        logits = self.head.vocabulary(at(masked), self.encoder.embeddings.tokens[...])
        odds = self.head.next_utterance(at(first))
        return logits.reshape(*masked.shape, -1), odds.reshape(first.shape)


def pretraining_sums(
    logits: Float[Array, "b k v"],
    odds: Float[Array, "b p"],
    targets: Int[AnyArray, "b k"],
    follows: Int[AnyArray, "b p"],
) -> dict[str, tuple[Array, Array]]:
    """Each row's sums over masked tokens and over pairs, with counts: losses (nats), how many are right.

    Args:
        logits: of the masked tokens.
        odds: log-odds of the pairs.
        targets: the tokens that were replaced; -1 at places without any.
        follows: 1 where the second text follows the first, 0 where not; -1 at places without a pair.

    Returns:
        By name of the figure, sums and counts, float32 [b].

    >>> odds = jnp.array([[0.0, 9.0]])
    >>> sums = pretraining_sums(jnp.zeros((1, 2, 4)), odds, jnp.array([[0, -1]]), jnp.array([[1, -1]]))
    >>> [round(float(value[0]), 3) for value in sums["next_loss"]]
    [0.693, 1.0]
    """
    targets, follows = jnp.asarray(targets), jnp.asarray(follows)
    right = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    token_loss = jax.nn.logsumexp(logits, axis=-1) - right
    pair_loss = jax.nn.softplus(jnp.where(follows > 0, -odds, odds))

    def over(values: Array, where: Array) -> tuple[Array, Array]:
        values = jnp.where(where, values.astype(jnp.float32), 0.0)
        return values.sum(-1), where.astype(jnp.float32).sum(-1)

    return {
        "masked_loss": over(token_loss, targets >= 0),
        "masked_accuracy": over(logits.argmax(-1) == targets, targets >= 0),
        "next_loss": over(pair_loss, follows >= 0),
        "next_accuracy": over((odds > 0) == (follows > 0), follows >= 0),
    }
