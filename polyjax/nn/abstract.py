"""Models as shapes alone: to load parameters into, or to plan memory for."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

M = TypeVar("M")


class _SameKey(nnx.RngStream):
    """Gives one key for all draws: shapes do not depend on it.

    A stream writes how often it was drawn from. Under a trace, flax then formats a message about the whole
    trace, so that the time grows with the square of the number of parameters.
    """

    def __call__(self) -> jax.Array:
        return self.key[...]


class _SameKeys(nnx.Rngs):
    """Random numbers for a model whose values nobody sees."""

    def __init__(self):
        super().__init__()
        self.default = _SameKey(jax.random.key(0), tag="default")


def abstract_model(make: Callable[[nnx.Rngs], M]) -> M:
    """The model that a function makes, with shapes and dtypes instead of arrays.

    Args:
        make: makes the model with the random numbers that it is given.

    >>> encoder = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32)
    >>> scorer = abstract_model(lambda rngs: make_scorer(encoder, BiConfig(), rngs=rngs))
    >>> type(jax.tree.leaves(nnx.state(scorer))[0]).__name__
    'ShapeDtypeStruct'
    """
    model = nnx.eval_shape(lambda: make(_SameKeys()))
    for _, node in nnx.iter_graph(model):  # what a module keeps draws anew each time, as usual
        if isinstance(node, _SameKey):
            node.__class__ = nnx.RngStream  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(node, _SameKeys):
            node.__class__ = nnx.Rngs  # pyright: ignore[reportAttributeAccessIssue]
    return model
