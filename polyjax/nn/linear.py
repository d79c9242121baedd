"""What every layer is made of: the matrix product, affine maps, layer norm, dropout.

The product comes with the backward pass that a CPU wants in bfloat16. XLA's CPU backend runs a bfloat16 product at full rate only when neither operand is transposed. The two
products of the backward pass (g w^T and x^T g) each have one transposed operand; forcing it into
row-major memory first costs less than a millisecond and nearly doubles their rate. Elsewhere, and in
float32, ``dot`` is the plain product. Measured by benchmarks/linear.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


def _row_major_transpose(x: Array) -> Array:
    return with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))


@jax.custom_vjp
def _dot_cpu_bfloat16(x: Array, w: Array) -> Array:
    return x @ w


def _dot_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _dot_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved

    def on_cpu(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
        return g @ _row_major_transpose(w), _row_major_transpose(x) @ g

    def elsewhere(x: Array, w: Array, g: Array) -> tuple[Array, Array]:
        return g @ w.T, x.T @ g

    return jax.lax.platform_dependent(x, w, g, cpu=on_cpu, default=elsewhere)


_dot_cpu_bfloat16.defvjp(_dot_forward, _dot_backward)


def dot(x: Float[Array, "*b i"], w: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ w over the last axis of x, as one two-dimensional product."""
    rows = x.reshape(-1, x.shape[-1])
    product = _dot_cpu_bfloat16 if x.dtype == jnp.bfloat16 else jnp.matmul
    return product(rows, w).reshape(*x.shape[:-1], w.shape[1])


def apply_dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero a fraction ``rate`` of x and scale the rest up; x itself where key is None or rate is 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)


class Linear(nnx.Module):
    """y = x w + b with float32 parameters, computed in the dtype of x.

    Args:
        dim_in: width of x.
        dim_out: width of y.
        init_std: standard deviation of the normal from which w is drawn; b starts at zero.
        rngs: source of the initial values.
    """

    def __init__(self, dim_in: int, dim_out: int, *, init_std: float = 0.02, rngs: nnx.Rngs):
        draw = nnx.initializers.normal(init_std)
        self.kernel = nnx.Param(draw(rngs.params(), (dim_in, dim_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim_out,), jnp.float32))

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """[*b, dim_in] -> [*b, dim_out]"""
        return dot(x, self.kernel[...].astype(x.dtype)) + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (biased variance), computed in float32."""

    def __init__(self, dim: int, *, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """[*b, d] -> [*b, d], in the dtype of x."""
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        centred = wide - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)
