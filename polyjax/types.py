"""What crosses the borders between parts of polyjax, and the table of axis letters.

| letter | axis |
| --- | --- |
| b | contexts of a batch |
| c | candidates of one context |
| n | encoded candidate rows (shared by the whole batch) |
| t | tokens |
| m | context vectors: 1 for a bi-encoder, n_codes for a poly-encoder |
| d | width of the encoder |
| e | width of the vectors that are compared: d, unless a head says otherwise |
| h | attention heads |
| k | width of one attention head |
| v | vocabulary |

Masks are True where a token is real (``mask``) or a candidate is real (``where``).
"""

import dataclasses
import typing

import jax
from jaxtyping import Array, Bool, Float, Int
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
        pooled: which tokens a head reads, bool [..., t]; those of the mask if None.
    """

    ids: Int[AnyArray, "*shape t"]
    mask: Bool[AnyArray, "*shape t"]
    segments: Int[AnyArray, "*shape t"]
    packs: Int[AnyArray, "*shape t"] | None = None
    pooled: Bool[AnyArray, "*shape t"] | None = None

    @property
    def read(self) -> Bool[AnyArray, "*shape t"]:
        """True at the tokens that a head reads."""
        return self.mask if self.pooled is None else self.pooled


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """Candidates that every context of a batch has; each is encoded once.

    Attributes:
        tokens: Tokens [n, t].
        of_rows: whether there is one for each row of the batch, its label (n = b), which is where the row is
            when devices share the batch; otherwise they are the same in every batch, and on all devices.
    """

    tokens: Tokens
    of_rows: bool = dataclasses.field(default=True, metadata={"static": True})


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Listed:
    """Candidates that each context has for itself.

    Attributes:
        tokens: Tokens [b, c, t].
    """

    tokens: Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DualInputs:
    """Input of a scorer that encodes both sides apart, with candidates of one kind or of both.

    Scores are [b, n + c]: first those of the n shared candidates, then those of the c listed ones.

    Attributes:
        context: Tokens [b, t].
        shared: candidates of all contexts, as in-batch negatives are.
        listed: candidates of each context's own, as hard negatives are.
    """

    context: Tokens
    shared: Shared | None = None
    listed: Listed | None = None


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairInputs:
    """Input of a cross-encoder: context and candidate in one sequence, Tokens [b, c, t]."""

    pairs: Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a teacher scored of a batch's candidates.

    Attributes:
        scores: its scores, float32 [b, c]; 0 elsewhere.
        where: True at candidates that it scored, bool [b, c].
    """

    scores: Float[AnyArray, "b c"]
    where: Bool[AnyArray, "b c"]


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch whose scores are [b, c], shared candidates before listed ones.

    Attributes:
        inputs: what the scorer reads.
        label: index of the right candidate, int32 [b].
        where: True at the label and at real candidates that are negatives, bool [b, c]: not at copies of a
            right answer.
        teacher: a teacher's scores, where rows have them.
    """

    inputs: DualInputs | PairInputs
    label: Int[AnyArray, " b"]
    where: Bool[AnyArray, "#b c"]
    teacher: Teacher | None = None


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate with its score and its place in the list it came from."""

    text: str
    score: float
    index: int
