"""The result of any kind of search for a context."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A context's best rows, and how they were found.

    Attributes:
        scores: float32 [k], best first; -inf where there are fewer candidates.
        rows: of the index, [k]; -1 where there are fewer.
        rank: of the pass: directions that a candidate was multiplied with; None without a pass.
        rescored: candidates that were scored exactly.
        certified: whether they are proven to be the best.
        recall: measured share of the best that such searches find; 1 for certified ones.
    """

    scores: np.ndarray
    rows: np.ndarray
    rank: int | None
    rescored: int
    certified: bool = True
    recall: float | None = 1.0
