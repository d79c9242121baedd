"""What crosses the borders between parts of polyjax, and the table of axis letters.

| letter | axis |
| --- | --- |
| b | contexts of a batch |
| c | candidates of one context |
| n | encoded candidate rows (shared by the whole batch) |
| t | tokens |
| m | context vectors: 1 for a bi-encoder, n_codes for a poly-encoder |
| d | width of the encoder |
| h | attention heads |
| k | width of one attention head |
| v | vocabulary |

Masks are True where a token is real (``mask``) or a candidate is real (``where``).
"""

import dataclasses
import typing

import jax
from jaxtyping import Array, Bool, Int
from numpy import ndarray

AnyArray = Array | ndarray


@dataclasses.dataclass(frozen=True)
class Example:
    """One ranking problem in plain text.

    Attributes:
        id: unique within its task and split.
        context: turns, oldest first.
        candidates: texts to rank; a single text (the label) where negatives come from the batch.
        label: index of the right candidate.
        group: what rows of one source share (a conversation id); intervals are drawn over groups.
        answers: further right answers, where a context has several: none is a negative, and where some are
            ranked the best placed one counts as the label. ``data.identity`` groups rows by context.
        negatives: the row's own hard negatives, to learn from beside other candidates.
        scores: a teacher's, one for each of the candidates and then for each of the negatives; None for none.
    """

    id: str
    context: tuple[str, ...]
    candidates: tuple[str, ...]
    label: int
    group: str
    answers: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None

    @property
    def label_text(self) -> str:
        """The right candidate's text."""
        return self.candidates[self.label]


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Padded token ids of any leading shape, [..., t].

    Attributes:
        ids: token ids, int32 [..., t].
        mask: True at real tokens, bool [..., t].
        segments: segment of each token, int32 [..., t]; 0 for single texts.
        packs: which of the sequences that share a row each token belongs to, int32 [..., t], where several
            are packed one after the other; None where a row is one sequence.
    """

    ids: Int[AnyArray, "*shape t"]
    mask: Bool[AnyArray, "*shape t"]
    segments: Int[AnyArray, "*shape t"]
    packs: Int[AnyArray, "*shape t"] | None = None


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DualInputs:
    """Input of a scorer that encodes both sides apart.

    Attributes:
        context: Tokens [b, t].
        candidates: Tokens [n, t], shared by every context (in-batch negatives), or [b, c, t], listed.
    """

    context: Tokens
    candidates: Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairInputs:
    """Input of a cross-encoder: context and candidate in one sequence, Tokens [b, c, t]."""

    pairs: Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch whose scores are [b, c].

    Attributes:
        inputs: what the scorer reads.
        label: index of the right candidate, int32 [b].
        where: True at real candidates, bool [1 or b, c].
        keys: a hash of each shared candidate's text, int32 [n], by which copies of a label among the
            in-batch negatives are found; None where candidates are listed or copies count as negatives.
    """

    inputs: DualInputs | PairInputs
    label: Int[AnyArray, " b"]
    where: Bool[AnyArray, "#b c"]
    keys: Int[AnyArray, " n"] | None
