"""Masked dot-product attention: over plain vectors, and multi-head with projections."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.nn.linear import Linear, apply_dropout
from polyjax.types import AnyArray


def masked_softmax(logits: Float[Array, "*b n"], mask: Bool[Array, "*#b n"] | None) -> Float[Array, "*b n"]:
    """Softmax over the last axis, in float32.

    Masked entries get weight 0. If all entries of a row are masked, they get equal weights, so that the
    result stays finite.

    Args:
        logits: [..., n].
        mask: True where an entry counts; None for all.
    """
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
        query: [b, q, d], or [1, q, d] to use the same queries for the whole batch.
        memory: [b, n, d], both keys and values.
        mask: [b, n], True where memory is real; None for everywhere.
        scale: multiplies the logits; 1 is the paper's form, 1/sqrt(d) ParlAI's ``sqrt``.
    """
    query = jnp.broadcast_to(query, (memory.shape[0], *query.shape[1:])).astype(memory.dtype)
    logits = jnp.einsum("bqd,bnd->bqn", query, memory) * scale
    weights = masked_softmax(logits, None if mask is None else mask[:, None, :])
    return jnp.einsum("bqn,bnd->bqd", weights.astype(memory.dtype), memory)


def cudnn_suits(dtype: Any, width: int, n_queries: int, n_keys: int, *, device: Any) -> bool:
    """Whether cuDNN's attention supports such arrays on a device.

    Args:
        dtype: dtype of the arrays; must be bfloat16 or float16.
        width: width of a head; must be a multiple of 8, at most 128.
        n_queries: must be even (cuDNN requires it with a mask; it is required here in any case).
        n_keys: likewise.
        device: must be an NVIDIA GPU of compute capability 8.0 (Ampere) or later.
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
        n: number of positions.
        width: width of a head; must be even.
        theta: base of the angles' wavelengths.

    Returns:
        float32 [2, n, width / 2]: cosines, then sines.
    """
    angle = np.arange(n)[:, None] * theta ** (-2 * np.arange(width // 2) / width)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def rotate(x: Float[Array, "b t h k"], table: Float[AnyArray, "2 t half"]) -> Float[Array, "b t h k"]:
    """Rotate each head by the angles of its position (arXiv 2104.09864).

    Coordinates j and j + k / 2 of a head of width k span one plane of rotation. The product of a rotated
    query and a rotated key depends only on the difference of their positions.

    Args:
        x: [b, t, h, k].
        table: cosines and sines, as from ``rotary_table``.
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
    """Multi-head dot-product attention; heads are contiguous slices of width d / n_heads.

    On a GPU, cuDNN's attention is used where it can be (``cudnn_suits``): it does not store the weights
    [b, h, q, n]. It is not used with dropout of the weights or with a bias, because it has no gradient for a
    bias that differs within the batch.

    Args:
        q: queries [b, q, d].
        k: keys [b, n, d].
        v: values [b, n, d].
        mask: True where memory is attended to: [b, n] for all queries, or [b, q, n] for each query.
        n_heads: number of heads; divides d.
        rotary: as from ``rotary_table``; queries and keys then have the same positions.
        bias: added to the scaled logits, float32.
        scale: multiplies the products; None for 1 / sqrt(d / n_heads).
        dropout: dropout rate of the weights.
        key: random key for dropout; None for no dropout.
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
        if there is not None:  # cuDNN does not accept a mask that all queries share
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
    """Multi-head self-attention; the query, key and value projections are one matrix product.

    Args:
        dim: width d.
        n_heads: number of heads; divides dim.
        bias: whether the projections have offsets.
        dropout: dropout rate of the attention weights.
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
            x: hidden states.
            mask: True where a state is attended to: [b, t] by all states, or [b, t, t] by each.
            rotary: rotates queries and keys, see ``multi_head``.
            bias: added to the scaled logits.
            key: random key for dropout; None for no dropout.
        """
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        mixed = multi_head(
            q, k, v, mask, n_heads=self.n_heads, rotary=rotary, bias=bias, dropout=self.dropout, key=key
        )
        return self.out(mixed)


class MultiHeadAttention(nnx.Module):
    """Multi-head attention of queries over a memory, with separate projections of query, key and value.

    A poly-encoder uses it with ``multihead`` attention, of its codes or of its candidates.

    Args:
        dim: width d.
        n_heads: number of heads; divides dim.
        rngs: source of the initial values.
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
