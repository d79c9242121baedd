"""Parts that the families share: embeddings, a block, positions, masks, and running a stack of blocks."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from polyjax.errors import InputError
from polyjax.nn.activations import activate
from polyjax.nn.attention import SelfAttention
from polyjax.nn.encoders.contract import StackSettings
from polyjax.nn.linear import LayerNorm, Linear, apply_dropout
from polyjax.types import AnyArray, Tokens

Attended = dict[str, Any]
"""Keyword arguments of a block's attention: ``mask``, and those that a family adds."""


class FixedTable(nnx.Variable):
    """A table that is saved with the parameters but not trained."""


class Embeddings(nnx.Module):
    """The sum of token, position and segment embeddings, with an optional layer norm.

    Args:
        vocab_size: rows of the token table.
        dim: width.
        n_positions: rows of the position table; 0 for none.
        n_segments: rows of the segment table; 0 for none.
        fixed_positions: a table [n_positions, dim] that is not trained, instead of a learnt one.
        scale: multiplies the token embeddings.
        norm_eps: added to the variance in the norm; None for no norm.
        norm_bias: whether the norm has an offset.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        n_positions: int = 0,
        n_segments: int = 0,
        fixed_positions: np.ndarray | None = None,
        scale: float = 1.0,
        norm_eps: float | None,
        norm_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        def table(rows: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (rows, dim), jnp.float32))

        self.scale = scale
        self.tokens = table(vocab_size)
        if fixed_positions is not None:
            self.positions = FixedTable(jnp.asarray(fixed_positions))
        else:
            self.positions = table(n_positions) if n_positions else None
        self.segments = table(n_segments) if n_segments else None
        self.norm = None if norm_eps is None else LayerNorm(dim, eps=norm_eps, bias=norm_bias)

    def __call__(
        self,
        ids: Int[AnyArray, "n t"],
        *,
        places: Int[AnyArray, "n t"] | None = None,
        segments: Int[AnyArray, "n t"] | None = None,
        dtype: DTypeLike,
    ) -> Float[Array, "n t d"]:
        """[n, t] -> [n, t, d]

        Args:
            ids: token ids.
            places: rows of the position table; required if there is one.
            segments: rows of the segment table; None for row 0.
            dtype: dtype of the result.
        """
        x = jnp.take(self.tokens[...], ids, axis=0)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            assert places is not None
            x = x + jnp.take(self.positions[...], places, axis=0)
        if self.segments is not None:
            if segments is None:
                x = x + self.segments[...][None, :1]
            else:
                x = x + jnp.take(self.segments[...], segments, axis=0)
        x = x.astype(dtype)
        return x if self.norm is None else self.norm(x)


class Block(nnx.Module):
    """A transformer block: self-attention and a feed-forward part, with residual connections.

    Args:
        config: settings of the stack.
        attention: takes hidden states and ``Attended``; None for plain multi-head attention.
        norm: ``post`` normalises each sub-layer's output, ``pre`` its input.
        gated: whether the feed-forward part is gated (GLU). Its inner layer then has two halves; the named
            half goes through the activation and is multiplied by the other.
        mlp_bias: whether the first and the second layer of the feed-forward part have biases.
        norm_bias: whether the norms have biases.
        attention_norm: whether the attention has a norm; False is for the first block of ModernBERT.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        config: StackSettings,
        *,
        attention: nnx.Module | None = None,
        norm: Literal["post", "pre"] = "post",
        gated: Literal["no", "first", "second"] = "no",
        mlp_bias: tuple[bool, bool] = (True, True),
        norm_bias: bool = True,
        attention_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        dim, inner = config.dim, config.mlp_dim if gated == "no" else 2 * config.mlp_dim
        self.config, self.norm, self.gated = config, norm, gated
        if attention is None:
            attention = SelfAttention(dim, config.n_heads, dropout=config.attention_dropout, rngs=rngs)
        self.attention: Any = attention
        named = LayerNorm(dim, eps=config.norm_eps, bias=norm_bias) if attention_norm else None
        self.attention_norm: Any = named
        self.mlp_in = Linear(dim, inner, bias=mlp_bias[0], rngs=rngs)
        self.mlp_out = Linear(config.mlp_dim, dim, bias=mlp_bias[1], rngs=rngs)
        self.mlp_norm = LayerNorm(dim, eps=config.norm_eps, bias=norm_bias)

    def _mlp(self, x: Array) -> Array:
        inner = self.mlp_in(x)
        if self.gated == "no":
            return self.mlp_out(activate(self.config.activation, inner))
        first, second = jnp.split(inner, 2, axis=-1)
        opened, gate = (first, second) if self.gated == "first" else (second, first)
        return self.mlp_out(activate(self.config.activation, opened) * gate)

    def __call__(
        self, x: Float[Array, "n t d"], attended: Attended, *, key: Array | None = None
    ) -> Float[Array, "n t d"]:
        """[n, t, d] -> [n, t, d]; ``key`` is the random key for dropout, None for no dropout."""
        rate = self.config.dropout
        attention_key, key_1, key_2 = (None,) * 3 if key is None else jax.random.split(key, 3)
        if self.norm == "pre":
            states = x if self.attention_norm is None else self.attention_norm(x)
            x = x + apply_dropout(self.attention(states, **attended, key=attention_key), rate, key_1)
            return x + apply_dropout(self._mlp(self.mlp_norm(x)), rate, key_2)
        mixed = self.attention(x, **attended, key=attention_key)
        x = self.attention_norm(x, apply_dropout(mixed, rate, key_1))
        return self.mlp_norm(x, apply_dropout(self._mlp(x), rate, key_2))


def sinusoidal_positions(n_positions: int, dim: int) -> np.ndarray:
    """Fixed position table, float32 [n_positions, dim], as in arXiv 1706.03762 §3.5.

    Row p has sin(p / 10000^(2j/dim)) in column 2j, and the cosine of the same angle in column 2j + 1.
    """
    angle = np.arange(n_positions)[:, None] / 10000.0 ** (2 * np.arange(dim // 2) / dim)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(n_positions, dim).astype(np.float32)


def place_in_sequence(tokens: Tokens) -> Int[Array, "n t"]:
    """The position of each token in its sequence, from 0, int32 [n, t].

    Only real tokens are counted, so padding on either side does not change the positions.
    """
    place = jnp.maximum(jnp.cumsum(jnp.asarray(tokens.mask).astype(jnp.int32), axis=-1) - 1, 0)
    if tokens.packs is None:
        return place
    begins = _begins(tokens.packs)
    return place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)


def place_after_padding(tokens: Tokens, pad_id: int) -> Int[Array, "n t"]:
    """Rows of RoBERTa's position table: pad_id for padding, then pad_id + 1, pad_id + 2, ... for real tokens.

    A padding token written out in a text has the row of padding, and is not counted.

    >>> row = np.array([[5, 1, 6, 1]], np.int32)
    >>> tokens = Tokens(row, np.array([[True, True, True, False]]), row * 0)
    >>> place_after_padding(tokens, 1).tolist()
    [[2, 1, 3, 1]]
    """
    counts = (jnp.asarray(tokens.mask) & (jnp.asarray(tokens.ids) != pad_id)).astype(jnp.int32)
    place = jnp.cumsum(counts, axis=-1)
    if tokens.packs is not None:
        before = place - counts  # the number of tokens counted before each token
        place = place - jax.lax.cummax(jnp.where(_begins(tokens.packs), before, 0), axis=1)
    return place * counts + pad_id


def _begins(packs: AnyArray) -> Bool[Array, "n t"]:
    """True at the first token of each packed sequence, [n, t]."""
    packs = jnp.asarray(packs)
    return jnp.concatenate([jnp.ones_like(packs[:, :1], bool), packs[:, 1:] != packs[:, :-1]], axis=1)


def attention_mask(tokens: Tokens, *, window: int | None = None) -> Bool[Array, "n *q t"]:
    """The mask of attention, True where a token is attended to: [n, t] by all tokens, or [n, t, t] by each.

    Args:
        tokens: packed sequences do not attend to each other.
        window: largest distance, in tokens, at which tokens attend to each other; None for no limit.
    """
    mask = jnp.asarray(tokens.mask)
    if tokens.packs is not None:
        packs = jnp.asarray(tokens.packs)
        mask = mask[:, None, :] & (packs[:, :, None] == packs[:, None, :])
    t = mask.shape[-1]
    if window is None or window >= t - 1:
        return mask
    near = np.abs(np.arange(t)[:, None] - np.arange(t)[None, :]) <= window
    return (mask if mask.ndim == 3 else mask[:, None, :]) & near[None]


def attended_by(tokens: Tokens, gates: Float[Array, "l h"] | None) -> Attended:
    """Arguments of each block's attention: the mask, and with gates where attention crosses sequences.

    Args:
        tokens: packed sequences attend to each other only through gates.
        gates: see ``GatesTexts``; None for no gates.
    """
    if gates is None or tokens.packs is None:
        return {"mask": attention_mask(tokens)}
    packs = jnp.asarray(tokens.packs)
    return {"mask": jnp.asarray(tokens.mask), "across": packs[:, None, :, None] != packs[:, None, None, :]}


def _through_gates(given: Attended, gates: Float[Array, " h"]) -> Attended:
    """Arguments of one block's attention, with the block's gates added to the bias of the logits."""
    bias = jnp.where(given["across"], gates[None, :, None, None], jnp.float32(0))
    return {"mask": given["mask"], "bias": bias + given["bias"] if "bias" in given else bias}


def check_length(tokens: Tokens, n_positions: int) -> None:
    """Check that the input is not longer than the position table, whose rows beyond the end would be NaN.

    Raises:
        InputError: the tokens [n, t] have t larger than ``n_positions``.
    """
    if tokens.ids.shape[-1] > n_positions:
        raise InputError(
            "tokens", expected=f"at most {n_positions} positions (n_positions)", got=tokens.ids.shape[-1]
        )


def layer_keys(key: Array | None, n_layers: int) -> list[Array | None]:
    """A random key for each block, then one for the embeddings; all None if ``key`` is None."""
    return [None] * (n_layers + 1) if key is None else list(jax.random.split(key, n_layers + 1))


def scaled(x: Float[Array, "n t d"], factor: float) -> Float[Array, "n t d"]:
    """The hidden states multiplied by a factor."""
    return x if factor == 1.0 else x * factor


def run_blocks(
    blocks: Sequence[nnx.Module],
    x: Float[Array, "n t d"],
    attended: Sequence[Attended],
    keys: Sequence[Array | None],
    config: StackSettings,
    *,
    first: int = 0,
    group: int = 1,
    gates: Float[Array, "l h"] | None = None,
) -> Float[Array, "n t d"]:
    """Pass hidden states through the blocks in their order.

    With ``config.scan``, the blocks from index ``first`` are run as a loop over groups; one group is
    compiled, so block i must have the structure of block i + group. Blocks before ``first`` and those that do
    not fill a group are unrolled.

    Args:
        blocks: the blocks; one may occur several times.
        x: the embeddings.
        attended: arguments of each block's attention.
        keys: random key of each block's dropout; None for no dropout.
        config: its ``remat`` and ``scan`` are used.
        first: number of blocks before the first group.
        group: number of blocks in a group.
        gates: gates of each block, used if ``attended`` comes from ``attended_by`` with gates.
    """
    once = {id(block): nnx.split(block) for block in blocks}  # a block may occur several times
    graphs, states = zip(*(once[id(block)] for block in blocks), strict=True)

    gated = [None] * len(blocks) if gates is None or "across" not in attended[0] else list(gates)

    def run(graph: nnx.GraphDef, x: Array, block: tuple[nnx.State, Any, Any], given: Attended) -> Array:
        state, key, gate = block
        if len(once) < len(
            blocks
        ):  # else XLA keeps each shared bias, broadcast to all tokens, for the next use
            state, x = jax.lax.optimization_barrier((state, x))
        given = given if gate is None else _through_gates(given, gate)
        return nnx.merge(graph, state)(x, given, key=key)

    if config.remat:
        kept = {"nothing": None, "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
        run = jax.checkpoint(run, policy=kept[config.remat_keeps], static_argnums=0)
    steps = list(zip(graphs, states, zip(keys, gated, strict=True), attended, strict=True))

    def unrolled(x: Array, some: Sequence[tuple]) -> Array:
        call = jax.jit(run, static_argnums=0)  # one trace for blocks of one structure; XLA inlines the calls
        for graph, state, own, given in some:
            x = call(graph, x, (state, *own), given)
        return x

    n_groups = (len(steps) - first) // group
    if not config.scan or n_groups < 2:
        return unrolled(x, steps)
    x = unrolled(x, steps[:first])
    repeated = steps[first : first + n_groups * group]
    shared = [all(s[1] is repeated[i][1] for s in repeated[i::group]) for i in range(group)]

    def stacked(several: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)

    looped = []
    for i in range(group):
        _, own_states, own_keys, _ = zip(*repeated[i::group], strict=True)
        looped.append((None if shared[i] else stacked(own_states), stacked(own_keys)))

    def one_group(x: Array, parts: list) -> tuple[Array, None]:
        for (graph, own, _, given), (state, drawn) in zip(repeated[:group], parts, strict=True):
            x = run(graph, x, (own if state is None else state, *drawn), given)
        return x, None

    x = jax.lax.scan(one_group, x, looped, length=n_groups)[0]
    return unrolled(x, steps[first + n_groups * group :])
