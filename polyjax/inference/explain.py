"""Why a candidate has its score: the context vectors with the largest weights, and the tokens they read."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polyjax.data.token_store import Ids
from polyjax.errors import InputError
from polyjax.inference.numbers import check_numbers
from polyjax.inference.scorer import TextScorer
from polyjax.nn.scorers import DualScorer
from polyjax.types import Tokens


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A score in its parts: score = scale * sum_i weights_i products_i.

    Attributes:
        score: of the candidate.
        scale: of the head.
        weights: of the context vectors, float32 [m]; they add up to 1.
        products: of the context vectors with the candidate's vector, float32 [m].
        vectors: the context vectors with the largest weights, largest first, int [k].
        tokens: of the context, as the tokenizer writes them, [t].
        reads: attention of each of these vectors to each token, float32 [k, t]; rows add up to 1.
    """

    score: float
    scale: float
    weights: np.ndarray
    products: np.ndarray
    vectors: np.ndarray
    tokens: list[str]
    reads: np.ndarray


def can_explain(scorer: TextScorer) -> bool:
    """Whether a scorer's scores have such parts: context vectors, each of which reads tokens."""
    if not scorer.is_dual:
        return False
    head = scorer.head
    return head.product_form is not None and getattr(head, "has_reads", False)


def explain(scorer: TextScorer, turns: list[str], candidate: str, *, top: int) -> Explanation:
    """The parts of a candidate's score.

    Args:
        scorer: of a poly-encoder.
        turns: of the context, oldest first.
        candidate: the text.
        top: number of context vectors whose tokens are returned.

    Raises:
        InputError: the model's score has no such parts.
    """
    if not can_explain(scorer):
        raise InputError(
            "context",
            problem="the model's score is not made of context vectors that read tokens",
            fix="explain a poly-encoder with basic or sqrt attention",
            is_argument=False,
        )
    text = scorer.text
    text.prepare([*turns, candidate])
    return explain_ids(scorer, text.context(turns), scorer.encode_candidates([candidate])[0], top=top)


def explain_ids(scorer: TextScorer, ids: Ids, vector: np.ndarray, *, top: int) -> Explanation:
    """``explain`` of texts that are tokenised and encoded.

    Args:
        scorer: one that ``can_explain``.
        ids: of the context, int32 [t].
        vector: of the candidate, float32 [d].
        top: as there.
    """
    text, form = scorer.text, scorer.head.product_form
    assert form is not None
    length = text.config.bucket(max(len(ids), 1), text.config.context_tokens)
    tokens = text.pad_contexts([ids], length=length)
    vectors, mask = (np.asarray(array)[0] for array in scorer.model.contexts(scorer.model.split(tokens)))
    products = (vectors @ vector).astype(np.float32)
    logits = np.where(mask, form.sharpness * products, -np.inf)
    weights = np.exp(logits - logits.max())
    weights = (weights / weights.sum()).astype(np.float32)
    chosen = np.argsort(-weights, kind="stable")[: min(top, int(mask.sum()))]
    reads = token_reads(scorer, tokens)[0][chosen, : len(ids)]
    name = getattr(text.tokenizer, "token", str)  # a custom tokenizer need not have it
    named = [name(int(id_)) for id_ in ids]
    check_numbers(products[None])
    score = form.scale * float((weights * products).sum())
    return Explanation(score, form.scale, weights, products, chosen, named, reads)


def token_reads(scorer: TextScorer, tokens: Tokens) -> np.ndarray:
    """How much each context vector reads of each token, float32 [b, m, t]."""
    return np.asarray(scorer.model.run(_reads, tokens))


def _reads(scorer: DualScorer, tokens: Tokens) -> Float[Array, "b m t"]:
    hidden = scorer.context_encoder(jax.tree.map(jnp.asarray, tokens))
    return cast(Any, scorer.head).reads(hidden, jnp.asarray(tokens.read))
