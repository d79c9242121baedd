"""Cross-encoder: a linear layer over the vector of a pair (arXiv 1905.01969 §4.3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, assert_never

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.nn.activations import Activation, activate
from polyjax.nn.heads.contract import Inputs
from polyjax.nn.linear import LayerNorm, Linear
from polyjax.nn.reduce import Reducer, Reduction, reduce
from polyjax.runtime.fields import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """Cross-encoder: context and candidate in one sequence, scored by a linear layer (§4.3).

    Attributes:
        reduction: token outputs of the pair -> vector.
        dense: activation of an additional layer before the last, as in the standard classifiers of BERT
            (tanh), DistilBERT (relu), ELECTRA (gelu) and others; ``none`` for no such layer.
        dense_bias: whether the additional layer has a bias.
        norm: layer norm after the additional layer's activation, as in ModernBERT, with a gain (``scale``)
            or a gain and an offset (``scale-and-bias``); ``none`` for no norm.
        norm_eps: added to the variance in that norm.
        activation: applied to the scores of a trained model; training and evaluation use the score before it.

    >>> CrossConfig(dense="tanh", activation="sigmoid").arch  # BERT's classifier, and scores in [0, 1]
    'cross'
    """

    arch: ClassVar[str] = "cross"
    inputs: ClassVar[Inputs] = "pairs"
    RETIRED: ClassVar[Mapping[str, Any]] = {"over_padding": False}

    reduction: Reduction | Reducer = "first"
    dense: Literal["none"] | Activation = "none"
    dense_bias: bool = True
    norm: Literal["none", "scale", "scale-and-bias"] = "none"
    norm_eps: float = 1e-5
    activation: Literal["identity", "sigmoid", "tanh"] = "identity"

    def __post_init__(self) -> None:
        """Raise InputError for a value of another type."""
        check_types(self, "head")

    def activated(self, scores: np.ndarray) -> np.ndarray:
        """Apply ``activation`` to scores of any shape."""
        match self.activation:
            case "identity":
                return scores
            case "sigmoid":
                return (0.5 * (1.0 + np.tanh(0.5 * scores))).astype(np.float32)
            case "tanh":
                return np.tanh(scores).astype(np.float32)
            case _:
                assert_never(self.activation)

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "CrossHead":
        """The head for an encoder of width ``dim``."""
        return CrossHead(self, dim, rngs=rngs)


class CrossHead(nnx.Module):
    """Linear layer over the reduced output of a context-candidate pair (§4.3).

    Args:
        config: settings of the head.
        dim: width d of the encoder.
        rngs: source of the initial values.
    """

    def __init__(self, config: CrossConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        dense = config.dense != "none"
        self.dense = Linear(dim, dim, bias=config.dense_bias, rngs=rngs) if dense else None
        with_bias = config.norm == "scale-and-bias"
        self.norm = None if config.norm == "none" else LayerNorm(dim, eps=config.norm_eps, bias=with_bias)
        self.linear = Linear(dim, 1, rngs=rngs)

    def __call__(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, " n"]:
        """Token outputs of n pairs -> scores [n], float32, before ``activation``."""
        vector = reduce(hidden, mask, self.config.reduction)
        if self.dense is not None:
            assert self.config.dense != "none"
            vector = activate(self.config.dense, self.dense(vector))
        if self.norm is not None:
            vector = self.norm(vector)
        return self.linear(vector)[:, 0]
