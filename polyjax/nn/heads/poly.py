"""Poly-encoder: m context vectors, over which each candidate attends (arXiv 1905.01969 §4.4)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from polyjax.errors import InputError
from polyjax.nn.attention import MultiHeadAttention, attend, masked_softmax
from polyjax.nn.heads.clusters import centres
from polyjax.nn.heads.common import check_heads, check_scale
from polyjax.nn.heads.contract import Inputs, ProductForm
from polyjax.nn.reduce import Reducer, Reduction, reduce, unit
from polyjax.runtime.fields import check_types

AttentionKind = Literal["basic", "sqrt", "multihead"]
"""Dot products, dot products divided by sqrt(d), or multi-head attention with projections."""

_MASKED = -1e30
"""Logit of a masked vector: its weight is exactly 0, and a row that is all masked stays finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolyConfig:
    """Poly-encoder: m context vectors, over which each candidate attends (§4.4).

    Attributes:
        n_codes: m, the number of context vectors.
        codes: ``learnt`` codes attend over the context's outputs; ``first`` takes its first m outputs.
        codes_attention: how learnt codes attend: ``basic`` (dot), ``sqrt`` (dot / sqrt(d)), ``multihead``.
        codes_heads: number of heads of the codes' multi-head attention.
        codes_std: standard deviation of the codes' initial values. Small codes attend almost evenly, so
            each context vector starts close to the mean of the outputs, and the model to a bi-encoder.
        candidate_attention: how a candidate attends over the context vectors, as ``codes_attention``.
        candidate_heads: number of heads of the candidates' multi-head attention.
        candidate_sharpness: multiplies the logits of the candidate's attention (basic, sqrt).
        reduction: token outputs of a candidate -> vector.
        shared_encoder: encode both sides with one transformer instead of two.
        normalize: scale context vectors and candidate vector to length 1.
        score_scale: multiplies the score; 1 for raw products, about 20 for unit vectors.
        codes_start: initial values of learnt codes: ``normal`` draws them at random; ``clusters`` takes
            k-means of the token outputs of training contexts, scaled to the length of a draw, so that the
            codes differ from the start.
        with_mean: add the mean of the context's outputs as one more context vector.
        learnt_sharpness: learn the candidate's sharpness, starting at ``candidate_sharpness`` (basic, sqrt).

    >>> PolyConfig(n_codes=16, candidate_sharpness=4.0).n_codes
    16
    >>> PolyConfig(n_codes=0)
    Traceback (most recent call last):
    polyjax.errors.InputError: head.n_codes: expected at least 1 (the paper uses 16, 64 and 360), got 0
    """

    arch: ClassVar[str] = "poly"
    inputs: ClassVar[Inputs] = "dual"
    RETIRED: ClassVar[Mapping[str, Any]] = {"over_padding": False}

    n_codes: int = 64
    codes: Literal["learnt", "first"] = "learnt"
    codes_attention: AttentionKind = "basic"
    codes_heads: int = 4
    codes_std: float = 0.05
    candidate_attention: AttentionKind = "basic"
    candidate_heads: int = 4
    candidate_sharpness: float = 1.0
    reduction: Reduction | Reducer = "mean"
    shared_encoder: bool = False
    normalize: bool = False
    score_scale: float = 1.0
    codes_start: Literal["normal", "clusters"] = "normal"
    with_mean: bool = False
    learnt_sharpness: bool = False

    @classmethod
    def paper(cls, n_codes: Literal[16, 64, 360]) -> "PolyConfig":
        """The paper's head (§4.4) with one of the paper's numbers of codes: raw products, two encoders."""
        return cls(n_codes=n_codes, codes_std=1.0, reduction="first")

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        check_types(self, "head")
        if self.n_codes < 1:
            expected = "at least 1 (the paper uses 16, 64 and 360)"
            raise InputError("head.n_codes", expected=expected, got=self.n_codes)
        for name in ("codes_heads", "candidate_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"head.{name}", expected="at least 1", got=getattr(self, name))
        check_scale("score_scale", self.score_scale)
        check_scale("candidate_sharpness", self.candidate_sharpness)
        if self.codes_std < 0:
            raise InputError("head.codes_std", expected="at least 0", got=self.codes_std)

        multihead = self.candidate_attention == "multihead"
        for name, idle in (
            ("codes_start", self.codes_start == "clusters" and self.codes != "learnt"),
            ("learnt_sharpness", self.learnt_sharpness and multihead),
        ):
            if idle:
                problem = f"has no effect with codes {self.codes} and {self.candidate_attention} attention"
                raise InputError(f"head.{name}", problem=problem, fix="leave it out")

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "PolyHead":
        """The head for an encoder of width ``dim``."""
        return PolyHead(self, dim, rngs=rngs)


class PolyHead(nnx.Module):
    """m context vectors; each candidate attends over them, score = candidate . attended vector (§4.4).

    Args:
        config: see PolyConfig.
        dim: width d.
        rngs: source of the codes' initial values.
    """

    def __init__(self, config: PolyConfig, dim: int, *, rngs: nnx.Rngs):
        self.config, self.dim = config, dim
        if config.codes == "learnt":
            draw = nnx.initializers.normal(config.codes_std)
            self.codes = nnx.Param(draw(rngs.params(), (config.n_codes, dim), jnp.float32))
            if config.codes_attention == "multihead":
                check_heads("codes_heads", config.codes_heads, dim)
                self.codes_attention = MultiHeadAttention(dim, config.codes_heads, rngs=rngs)
        # The logarithm of a learnt factor of the sharpness.
        self.sharper = nnx.Param(jnp.zeros((), jnp.float32)) if config.learnt_sharpness else None
        if config.candidate_attention == "multihead":
            check_heads("candidate_heads", config.candidate_heads, dim)
            self.candidate_attention = MultiHeadAttention(dim, config.candidate_heads, rngs=rngs)

    def context(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        """Token outputs -> context vectors y_1..y_m [b, m, d] and their mask [b, m].

        With learnt codes c_i, y_i = sum_j w_j h_j, w = softmax(c_i . h). With ``first``, y_i = h_i, and
        vectors beyond the end of the context are masked. ``with_mean`` adds one vector.
        """
        config = self.config
        b, t, d = hidden.shape
        if config.codes == "first":
            short = max(config.n_codes - t, 0)
            vectors = jnp.pad(hidden[:, : config.n_codes], ((0, 0), (0, short), (0, 0)))
            real = jnp.pad(mask[:, : config.n_codes], ((0, 0), (0, short)))
            vectors = jnp.where(real[..., None], vectors, jnp.zeros((), vectors.dtype))
        else:
            real = jnp.ones((b, config.n_codes), bool)
            match config.codes_attention:
                case "basic":
                    vectors = attend(self.codes[...][None], hidden, mask)
                case "sqrt":
                    vectors = attend(self.codes[...][None], hidden, mask, scale=d**-0.5)
                case "multihead":
                    vectors = self.codes_attention(self.codes[...][None], hidden, mask)
                case other:
                    assert_never(other)
        vectors = vectors.astype(jnp.float32)
        if config.with_mean:
            vectors = jnp.concatenate([vectors, reduce(hidden, mask, "mean")[:, None]], axis=1)
            real = jnp.pad(real, ((0, 0), (0, 1)), constant_values=True)
        return unit(vectors) if config.normalize else vectors, real

    @property
    def wants_outputs(self) -> bool:
        """Whether training initialises the codes from token outputs (``codes_start`` is ``clusters``)."""
        return self.config.codes_start == "clusters"

    def start_from(self, outputs: Float[np.ndarray, "n d"], *, seed: int) -> None:
        """Set the codes to the centres of clusters of token outputs, as deviations from the mean output.

        Args:
            outputs: token outputs of training contexts, [n, d].
            seed: seed of the clustering.

        Raises:
            InputError: there are fewer different outputs than codes.
        """
        away = centres(outputs, self.config.n_codes, seed=seed) - outputs.mean(0, dtype=np.float64)
        length = np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
        codes = away / length * self.config.codes_std * self.dim**0.5
        self.codes[...] = jnp.asarray(codes.astype(np.float32))

    @property
    def has_reads(self) -> bool:
        """Whether each context vector has one weight per token; multi-head attention has one per head."""
        return self.config.codes == "first" or self.config.codes_attention != "multihead"

    def reads(self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b m t"]:
        """The weight w of each token in each context vector, float32 [b, m, t], see ``context``.

        Raises:
            InputError: the codes use multi-head attention, which has separate weights for each head.
        """
        found = self._codes_read(hidden, mask)
        if not self.config.with_mean:
            return found
        real = mask[:, None, :].astype(jnp.float32)
        return jnp.concatenate([found, real / jnp.maximum(real.sum(-1, keepdims=True), 1.0)], axis=1)

    def _codes_read(self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b m t"]:
        config, (b, t, d) = self.config, hidden.shape
        if config.codes == "first":
            return jnp.where(mask[:, None, :], jnp.eye(config.n_codes, t)[None], jnp.float32(0))
        if config.codes_attention == "multihead":
            raise InputError("head.codes_attention", expected="basic or sqrt", got="multihead")
        codes = jnp.broadcast_to(self.codes[...], (b, *self.codes[...].shape)).astype(hidden.dtype)
        logits = jnp.einsum("bqd,bnd->bqn", codes, hidden)
        scale = d**-0.5 if config.codes_attention == "sqrt" else 1.0
        return masked_softmax(logits * scale, mask[:, None, :])

    def candidate(self, hidden: Float[Array, "n t d"], mask: Bool[Array, "n t"]) -> Float[Array, "n d"]:
        """Token outputs -> candidate vectors [n, d]."""
        vector = reduce(hidden, mask, self.config.reduction)
        return unit(vector) if self.config.normalize else vector

    @property
    def sharpness(self) -> float | Float[Array, ""]:
        """The factor of the products in the candidate's softmax; for basic and sqrt attention only."""
        root = self.dim**-0.5 if self.config.candidate_attention == "sqrt" else 1.0
        fixed = self.config.candidate_sharpness * root
        if self.sharper is None:
            return fixed
        return jnp.float32(fixed) * jnp.exp(self.sharper[...])

    @property
    def product_form(self) -> ProductForm | None:
        """The score as a mean of dot products, for basic and sqrt attention; None with ``multihead``."""
        config = self.config
        if config.candidate_attention == "multihead":
            return None
        return ProductForm(
            scale=config.score_scale, sharpness=float(self.sharpness), masked=config.codes == "first"
        )

    def score(
        self, vectors: Float[Array, "b m d"], mask: Bool[Array, "b m"], candidates: Float[Array, "#b c d"]
    ) -> Float[Array, "b c"]:
        """Context vectors [b, m, d] and candidate vectors -> scores [b, c].

        Candidates are [1, c, d] (the same for all contexts) or [b, c, d] (their own for each context).
        With basic or sqrt attention the attended vector is never computed: the dot products s_j = y_j . cand
        are both logits and values, so score = score_scale * sum_j softmax(sharpness * s)_j s_j.
        """
        config = self.config
        match config.candidate_attention:
            case "basic" | "sqrt":
                if candidates.shape[0] == 1:
                    score = _attend_shared(vectors, mask, candidates[0], self.sharpness)
                else:
                    products = jnp.einsum("bmd,bcd->bcm", vectors, candidates)
                    weights = masked_softmax(products * self.sharpness, mask[:, None, :])
                    score = (weights * products).sum(-1)
            case "multihead":
                query = jnp.broadcast_to(candidates, (vectors.shape[0], *candidates.shape[1:]))
                attended = self.candidate_attention(query, vectors, mask)
                score = (attended * query).sum(-1)
            case other:
                assert_never(other)
        return config.score_scale * score


def _attend_shared(
    vectors: Float[Array, "b m d"],
    mask: Bool[Array, "b m"],
    candidates: Float[Array, "c d"],
    sharpness: float | Float[Array, ""],
) -> Float[Array, "b c"]:
    """sum_j softmax(sharpness * s)_j s_j for candidates that all contexts share.

    All arrays have two axes, and the softmax is over the last. On a CPU, XLA takes 1.2 to 2.5 times as long
    with the context vectors on the first axis, with three axes, or with ``where`` for the mask.
    """
    b, m, d = vectors.shape
    products = candidates @ vectors.reshape(b * m, d).T
    bias = jnp.where(mask, jnp.float32(0), jnp.float32(_MASKED)).reshape(1, b * m)
    weights = jax.nn.softmax((products * sharpness + bias).reshape(-1, m), axis=-1)
    return (weights * products.reshape(-1, m)).sum(-1).reshape(-1, b).T
