"""Masked dot-product attention in two forms: over plain vectors, and multi-head with projections."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.nn.linear import Linear, apply_dropout
from polyjax.types import AnyArray


def masked_softmax(logits: Float[Array, "*b n"], mask: Bool[Array, "*#b n"] | None) -> Float[Array, "*b n"]:
    """Softmax over the last axis in float32; masked places get weight 0, an all-masked row stays finite."""
    logits = logits.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


def attend(
    query: Float[Array, "#b q d"],
    memory: Float[Array, "b n d"],
    mask: Bool[Array, "b n"] | None = None,
    *,
    scale: float = 1.0,
) -> Float[Array, "b q d"]:
    """softmax(scale * query memory^T) memory: attention without parameters (arXiv 1905.01969 §4.4).

    Args:
        query: [b or 1, q, d]; one set of queries may serve the whole batch.
        memory: [b, n, d], keys and values alike.
        mask: [b, n], True where memory is real.
        scale: multiplies the logits; 1 is the paper's form, 1/sqrt(d) ParlAI's ``sqrt``.
    """
    query = jnp.broadcast_to(query, (memory.shape[0], *query.shape[1:])).astype(memory.dtype)
    logits = jnp.einsum("bqd,bnd->bqn", query, memory) * scale
    weights = masked_softmax(logits, None if mask is None else mask[:, None, :])
    return jnp.einsum("bqn,bnd->bqd", weights.astype(memory.dtype), memory)


def cudnn_suits(dtype: Any, width: int, n_queries: int, n_keys: int, *, device: Any) -> bool:
    """Whether a device has cuDNN's attention for such arrays.

    Args:
        dtype: of the arrays; it takes half precision only.
        width: of a head; at most 128 and a multiple of 8.
        n_queries: with a mask, even.
        n_keys: likewise.
        device: an NVIDIA GPU of compute capability 8.0 (Ampere) or later.
    """
    if device.platform != "gpu" or "NVIDIA" not in device.device_kind.upper():
        return False
    return (
        float(device.compute_capability) >= 8.0
        and dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
        and n_queries % 2 == 0
        and n_keys % 2 == 0
    )


def rotary_table(n: int, width: int, theta: float) -> Float[np.ndarray, "2 n half"]:
    """Cosines and sines of the angles p theta^(-2j / width) of rotary positions (arXiv 2104.09864).

    Args:
        n: positions.
        width: of a head; even.
        theta: base of the angles' wavelengths.
    """
    angle = np.arange(n)[:, None] * theta ** (-2 * np.arange(width // 2) / width)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def rotate(x: Float[Array, "b t h k"], table: Float[AnyArray, "2 t half"]) -> Float[Array, "b t h k"]:
    """Heads turned by the angles of their positions; the two halves of a head are the planes' coordinates.

    Products of rotated queries and keys depend on the difference of their positions alone.
    """
    cos, sin = (part[None, :, None, :] for part in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def multi_head(
    q: Float[Array, "b q d"],
    k: Float[Array, "b n d"],
    v: Float[Array, "b n d"],
    mask: Bool[Array, "b *q n"] | None,
    *,
    n_heads: int,
    rotary: Float[AnyArray, "2 n half"] | None = None,
    bias: Float[Array, "#b h q n"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Float[Array, "b q d"]:
    """Dot-product attention over contiguous slices of width d / n_heads.

    On a GPU cuDNN's attention does it where it can, without the [b, h, q, n] weights in memory. It cannot
    while weights are dropped out, nor with a bias: of one that differs within the batch it has no gradient.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: which of the memory is attended to: [b, n] by all queries, or [b, q, n] by each.
        n_heads: divides d.
        rotary: of ``rotary_table``, for queries and keys at the same positions.
        bias: added to the scaled logits, float32.
        scale: of the products; 1 / sqrt(d / n_heads) where None.
        dropout: rate on the weights.
        key: draws the dropout; none without it.
    """
    b, n, d = k.shape
    width = d // n_heads
    factor = width**-0.5 if scale is None else scale
    plain = bias is None and not (dropout > 0 and key is not None)
    there = None if mask is None else mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    q, k, v = (x.reshape(b, -1, n_heads, width) for x in (q, k, v))
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    if plain and cudnn_suits(q.dtype, width, q.shape[1], n, device=jax.local_devices()[0]):
        if there is not None:  # cuDNN takes no mask that all queries share
            there = jnp.broadcast_to(there, (b, 1, q.shape[1], n))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=there, scale=factor, implementation="cudnn")
        return mixed.reshape(b, -1, d)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bhqk,bhnk->bhqn", q * factor, k)
    if bias is not None:
        logits = logits.astype(jnp.float32) + bias
    weights = masked_softmax(logits, there).astype(v.dtype)
    mixed = jnp.einsum("bhqn,bhnk->bhqk", apply_dropout(weights, dropout, key), v)
    return mixed.swapaxes(1, 2).reshape(b, -1, d)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; query, key and value projections are one product.

    Args:
        dim: width d.
        n_heads: number of heads; divides dim.
        bias: whether the projections have offsets.
        dropout: rate on the attention weights.
        rngs: source of the initial values.
    """

    def __init__(self, dim: int, n_heads: int, *, bias: bool = True, dropout: float, rngs: nnx.Rngs):
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = Linear(dim, 3 * dim, bias=bias, rngs=rngs)
        self.out = Linear(dim, dim, bias=bias, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "b *q t"],
        *,
        rotary: Float[AnyArray, "2 t half"] | None = None,
        bias: Float[Array, "#b h t t"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        """[b, t, d] -> [b, t, d]

        Args:
            x: states.
            mask: which of them are attended to: [b, t] by all, or [b, t, t] by each.
            rotary: turns queries and keys, see ``multi_head``.
            bias: added to the scaled logits.
            key: draws the dropout; none without it.
        """
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        mixed = multi_head(
            q, k, v, mask, n_heads=self.n_heads, rotary=rotary, bias=bias, dropout=self.dropout, key=key
        )
        return self.out(mixed)


class MultiHeadAttention(nnx.Module):
    """Multi-head attention of a set of queries over a memory, each with its own projection.

    The ``multihead`` choice for a poly-encoder's codes or candidates. Args as in SelfAttention.
    """

    def __init__(self, dim: int, n_heads: int, *, rngs: nnx.Rngs):
        self.n_heads = n_heads
        self.query = Linear(dim, dim, init_std=dim**-0.5, rngs=rngs)
        self.key = Linear(dim, dim, init_std=dim**-0.5, rngs=rngs)
        self.value = Linear(dim, dim, init_std=dim**-0.5, rngs=rngs)
        self.out = Linear(dim, dim, init_std=dim**-0.5, rngs=rngs)

    def __call__(
        self, query: Float[Array, "#b q d"], memory: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None
    ) -> Float[Array, "b q d"]:
        """[b or 1, q, d] attends over [b, n, d] -> [b, q, d]"""
        q = jnp.broadcast_to(self.query(query.astype(memory.dtype)), (memory.shape[0], *query.shape[1:]))
        mixed = multi_head(q, self.key(memory), self.value(memory), mask, n_heads=self.n_heads)
        return self.out(mixed)
