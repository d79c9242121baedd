"""The data that packages of polyjax pass to each other, and the table of axis letters.

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
from collections.abc import Sequence
from typing import Any

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
        candidates: texts to rank; only the label if negatives come from the batch.
        label: index of the right candidate.
        group: shared by rows of one source (a conversation id); intervals are drawn over groups.
        answers: further right answers of the context: none is a negative, and if some are ranked, the best
            placed one counts as the label. ``data.identity`` groups rows by context.
        negatives: the row's own hard negatives, added to its other candidates in training.
        scores: a teacher's, one for each of the candidates and then for each of the negatives; None for none.

    >>> row = Example("1", ("hello", "how was your weekend?"), ("we went hiking", "tea"), label=0, group="1")
    >>> row.label_text
    'we went hiking'
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

    >>> import numpy as np
    >>> ids = np.array([[101, 7592, 102], [101, 102, 0]], np.int32)
    >>> tokens = Tokens(ids, mask=ids != 0, segments=np.zeros_like(ids))
    >>> tokens.read.sum(1).tolist()
    [3, 2]
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
        of_rows: whether there is one per row of the batch, its label (n = b), on the device of the row;
            otherwise they are the same in every batch, and on all devices.

    >>> import numpy as np
    >>> ids = np.ones((20, 8), np.int32)
    >>> Shared(Tokens(ids, ids > 0, 0 * ids), of_rows=False).tokens.ids.shape
    (20, 8)
    """

    tokens: Tokens
    of_rows: bool = dataclasses.field(default=True, metadata={"static": True})


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Listed:
    """Candidates that each context lists.

    Attributes:
        tokens: Tokens [b, c, t].

    >>> import numpy as np
    >>> ids = np.ones((2, 5, 8), np.int32)
    >>> Listed(Tokens(ids, ids > 0, 0 * ids)).tokens.ids.shape
    (2, 5, 8)
    """

    tokens: Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DualInputs:
    """Input of a scorer that encodes both sides separately, with candidates of one kind or both.

    Scores are [b, n + c]: first those of the n shared candidates, then those of the c listed ones.

    Attributes:
        context: Tokens [b, t].
        shared: candidates of all contexts, such as in-batch negatives.
        listed: each context's own candidates, such as hard negatives.

    >>> import numpy as np
    >>> ids = np.ones((2, 8), np.int32)
    >>> texts = Tokens(ids, ids > 0, 0 * ids)
    >>> DualInputs(texts, shared=Shared(texts)).listed is None  # each label is the other row's negative
    True
    """

    context: Tokens
    shared: Shared | None = None
    listed: Listed | None = None


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairInputs:
    """Input of a cross-encoder: context and candidate in one sequence, Tokens [b, c, t].

    >>> import numpy as np
    >>> ids, segments = np.array([[[101, 7, 102, 8, 102]]], np.int32), np.array([[[0, 0, 0, 1, 1]]], np.int32)
    >>> PairInputs(Tokens(ids, ids > 0, segments)).pairs.ids.shape
    (1, 1, 5)
    """

    pairs: Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher's scores of a batch's candidates.

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

    >>> import numpy as np
    >>> ids = np.ones((2, 8), np.int32)
    >>> texts = Tokens(ids, ids > 0, 0 * ids)
    >>> batch = Batch(DualInputs(texts, Shared(texts)), np.arange(2, dtype=np.int32), np.ones((2, 2), bool))
    >>> batch.label.tolist()
    [0, 1]
    """

    inputs: DualInputs | PairInputs
    label: Int[AnyArray, " b"]
    where: Bool[AnyArray, "#b c"]
    teacher: Teacher | None = None


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate with its score and its place in the list it came from.

    >>> Ranked("we went hiking", score=0.71, index=2).text
    'we went hiking'
    """

    text: str
    score: float
    index: int


class Ranking(list[Ranked]):
    """Ranked candidates, best first: a list that shows itself as lines of scores and texts.

    >>> Ranking([Ranked("a walk", 0.71, 1), Ranked("tea", 0.2, 0)])
      0.7100  a walk
      0.2000  tea
    """

    def __repr__(self) -> str:
        return score_lines(self)


def score_lines(found: Sequence[Any], *, most: int = 20, width: int = 100) -> str:
    """Scores and texts of candidates (``Ranked`` or ``Found``), a line each, for people to read.

    Args:
        found: the candidates, best first.
        most: number of lines; of more candidates only the number is given.
        width: number of characters of a text that are shown.
    """
    if not found:
        return "(no candidates)"
    lines = []
    for one in found[:most]:
        text = " ".join(one.text.split())
        lines.append(f"{one.score:8.4f}  {text if len(text) <= width else text[: width - 1] + '…'}")
    return "\n".join([*lines, *([f"... and {len(found) - most:,} more"] if len(found) > most else [])])
