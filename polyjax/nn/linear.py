"""Basic layers: affine maps, layer norm, dropout.

Half precision on a CPU with bfloat16 units needs care. XLA uses these units only under two conditions, and
otherwise widens both operands and runs at the float32 rate:

- The result is float32, not bfloat16.
- Neither operand is transposed. One is in each product of the backward pass, so ``affine`` first copies it
  into row-major memory, which costs less than a millisecond.

``affine`` meets both conditions on such CPUs: 350 instead of 170 GFLOP/s on two Zen 4 cores. Without
bfloat16 units the same form would make a step 1.4 times as long (two Zen 3 cores). On such CPUs, on other
devices and in float32, ``affine`` is the plain product.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from polyjax.runtime.hardware import cpu_has_bfloat16


@custom_partitioning
def _row_major_transpose(x: Array) -> Array:
    return with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))


def _transpose_parts(mesh: Mesh, arguments: tuple, result: Any) -> tuple:
    """Let each device transpose its own part; otherwise every device would get the whole array."""
    spec = (*arguments[0].sharding.spec, None, None)[:2]
    transposed = NamedSharding(mesh, PartitionSpec(*spec[::-1]))

    def part(x: Array) -> Array:
        return with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))

    return mesh, part, transposed, (arguments[0].sharding,)


_row_major_transpose.def_partition(partition=_transpose_parts, sharding_rule="i j -> j i")


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _half_affine(x: Array, w: Array, b: Array, to: DTypeLike) -> Array:
    def on_cpu(x: Array, w: Array, b: Array) -> Array:
        product = jnp.matmul(x, w, preferred_element_type=jnp.float32)
        return (product + b.astype(jnp.float32)[None]).astype(to)

    def elsewhere(x: Array, w: Array, b: Array) -> Array:
        return jnp.matmul(x, w, preferred_element_type=to) + b.astype(to)[None]

    cpu = on_cpu if cpu_has_bfloat16() else elsewhere
    return jax.lax.platform_dependent(x, w, b, cpu=cpu, default=elsewhere)


def _half_affine_forward(x: Array, w: Array, b: Array, to: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return _half_affine(x, w, b, to), (x, w)


def _half_affine_backward(to: DTypeLike, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    g = g.astype(saved[0].dtype)

    def on_cpu(x: Array, w: Array, g: Array) -> tuple[Array, Array, Array]:
        def product(a: Array, b: Array) -> Array:
            return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(g.dtype)

        # A sum over rows becomes a slow windowed reduction; a product with ones reads g once.
        sums = product(jnp.ones((1, g.shape[0]), g.dtype), g)[0]
        return product(g, _row_major_transpose(w)), product(_row_major_transpose(x), g), sums.astype(to)

    def elsewhere(x: Array, w: Array, g: Array) -> tuple[Array, Array, Array]:
        return g @ w.T, x.T @ g, g.sum(0).astype(to)

    cpu = on_cpu if cpu_has_bfloat16() else elsewhere
    return jax.lax.platform_dependent(*saved, g, cpu=cpu, default=elsewhere)


_half_affine.defvjp(_half_affine_forward, _half_affine_backward)


def affine(
    x: Float[Array, "*b i"], w: Float[Array, "i o"], b: Float[Array, " o"], *, to: DTypeLike | None = None
) -> Float[Array, "*b o"]:
    """x w + b over the last axis of x, as one two-dimensional product.

    Args:
        x: [..., i]; its dtype is that of the factors.
        w: [i, o]; converted to the dtype of x.
        b: [o]; converted to the dtype of the result.
        to: dtype of the result and of the accumulated sums; None for the dtype of x.
    """
    to = x.dtype if to is None else to
    rows, w, b = x.reshape(-1, x.shape[-1]), w.astype(x.dtype), b.astype(to)
    out: Any = rows @ w + b[None] if x.dtype == jnp.float32 else _half_affine(rows, w, b, to)
    return out.reshape(*x.shape[:-1], w.shape[1])


def apply_dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Set each element of x to 0 with probability ``rate`` and divide the others by 1 - rate.

    Returns x itself if ``key`` is None or ``rate`` is 0.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)


class Linear(nnx.Module):
    """y = x w + b with float32 parameters, computed in the dtype of x.

    Args:
        dim_in: width of x.
        dim_out: width of y.
        bias: whether there is an offset b; it starts at zero.
        init_std: standard deviation of the normal from which w is drawn.
        rngs: source of the initial values.
    """

    def __init__(
        self, dim_in: int, dim_out: int, *, bias: bool = True, init_std: float = 0.02, rngs: nnx.Rngs
    ):
        draw = nnx.initializers.normal(init_std)
        self.kernel = nnx.Param(draw(rngs.params(), (dim_in, dim_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim_out,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """[*b, dim_in] -> [*b, dim_out]"""
        # Adding a constant of zeros costs nothing: the compiler removes it.
        bias = jnp.zeros(self.kernel.shape[-1:], jnp.float32) if self.bias is None else self.bias[...]
        return affine(x, self.kernel[...], bias)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (biased variance), computed in float32.

    Args:
        dim: width.
        eps: added to the variance.
        bias: whether there is a learnt offset in addition to the gain.
    """

    def __init__(self, dim: int, *, eps: float, bias: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32)) if bias else None

    def __call__(
        self, x: Float[Array, "*b d"], residual: Float[Array, "*b d"] | None = None
    ) -> Float[Array, "*b d"]:
        """[*b, d] -> [*b, d] in the dtype of x; ``residual``, if given, is added to x first, in float32."""
        wide = x.astype(jnp.float32)
        if residual is not None:
            wide = wide + residual.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        centred = wide - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        scaled = normal * jnp.expand_dims(self.scale[...], range(x.ndim - 1))
        if self.bias is not None:
            scaled = scaled + jnp.expand_dims(self.bias[...], range(x.ndim - 1))
        return scaled.astype(x.dtype)
