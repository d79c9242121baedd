"""Pre-training heads and losses: masked tokens and next utterance (arXiv 1905.01969 §4.1)."""

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
        config: settings of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: KnownEncoder, *, rngs: nnx.Rngs):
        self.transform = Linear(config.dim, config.table_dim, rngs=rngs)
        self.norm = LayerNorm(config.table_dim, eps=config.norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))
        self.pooler = Linear(config.dim, config.dim, rngs=rngs)
        self.follows = Linear(config.dim, 1, rngs=rngs)

    def vocabulary(self, hidden: Float[Array, "n d"], table: Float[Array, "v e"]) -> Float[Array, "n v"]:
        """Hidden states of masked tokens -> logits over the vocabulary, float32 [n, v].

        Args:
            hidden: [n, d].
            table: the encoder's token embeddings [v, e], which are the output weights too.
        """
        inner = self.norm(gelu(self.transform(hidden)))
        return affine(inner, table.T, self.bias[...], to=jnp.float32)

    def next_utterance(self, hidden: Float[Array, "n d"]) -> Float[Array, " n"]:
        """First tokens' hidden states -> log-odds that the second text follows the first, float32 [n]."""
        pooled = jnp.tanh(self.pooler(hidden))
        assert self.follows.bias is not None
        return affine(pooled, self.follows.kernel[...], self.follows.bias[...], to=jnp.float32)[:, 0]


class Pretrainer(nnx.Module):
    """An encoder with its pre-training heads.

    Args:
        config: settings of the encoder.
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
        """Logits of masked tokens [b, k, v] and log-odds that the second texts follow [b, p], both float32.

        Args:
            tokens: rows of packed pairs, [b, t], some of whose tokens are masked or replaced.
            masked: index of each masked token in its row, [b, k].
            first: index of each pair's first token in its row, [b, p].
            key: random key for dropout; None for no dropout.
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
    """Sums and counts of the pre-training metrics of each row: losses (nats) and correct predictions.

    Args:
        logits: logits of the masked tokens.
        odds: log-odds of the pairs.
        targets: original ids of the masked tokens; -1 for unused entries.
        follows: 1 if the second text follows the first, else 0; -1 for unused entries.

    Returns:
        For each metric, by name, its sum and its count, float32 [b].

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
