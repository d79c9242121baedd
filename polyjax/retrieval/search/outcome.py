"""The result of a search for one context, whatever the method."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The best rows for a context, and how they were found.

    Attributes:
        scores: scores, best first, float32 [k]; -inf if there are fewer than k candidates.
        rows: rows of the index, [k]; -1 if there are fewer than k candidates.
        rank: rank of the pass of a certified search; None without a pass.
        rescored: number of candidates that were scored exactly.
        certified: whether the rows are proven to be the best.
        recall: measured share of the best candidates that such searches find; 1 for certified ones, None if
            it was not measured.
    """

    scores: np.ndarray
    rows: np.ndarray
    rank: int | None
    rescored: int
    certified: bool = True
    recall: float | None = 1.0
