"""Dense layers between a reduction and the score, like the Dense modules of sentence-transformers."""

import dataclasses
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from polyjax.errors import InputError
from polyjax.nn.activations import Activation, activate
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A linear layer with an activation.

    Attributes:
        dim: width of the output.
        bias: whether the layer has a bias.
        activation: applied to the output.
        unit_input: scale the input to length 1 first.
    """

    dim: int
    bias: bool = True
    activation: Activation = "tanh"
    unit_input: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.dim < 1:
            raise InputError("head.dense.dim", expected="at least 1", got=self.dim)


class DenseLayers(nnx.Module):
    """Linear layers with activations, one after the other.

    Args:
        configs: settings of the layers.
        dim: width of the input.
        rngs: source of the initial values.
    """

    def __init__(self, configs: Sequence[DenseConfig], dim: int, *, rngs: nnx.Rngs):
        self.configs = tuple(configs)
        widths = [dim, *(config.dim for config in configs)]
        self.layers = nnx.List(
            [
                Linear(width, config.dim, bias=config.bias, init_std=width**-0.5, rngs=rngs)
                for width, config in zip(widths[:-1], configs, strict=True)
            ]
        )

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n e"]:
        """[n, d] -> [n, e]"""
        for config, layer in zip(self.configs, self.layers, strict=True):
            x = activate(config.activation, layer(unit(x) if config.unit_input else x))
        return x
