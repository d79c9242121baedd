"""False negatives of a batch, as another model sees them (GISTEmbed, arXiv 2402.16829)."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Guide:
    """Vectors of a guide for the rows of a split: which labels are too good to be negatives of other rows.

    Attributes:
        contexts: float32 [n, e].
        labels: float32 [n, e].
        margin: a negative's product with the context is at least so much less than the own label's.
        relative: whether that is a share of the size of the label's product.
    """

    contexts: Float[np.ndarray, "n e"]
    labels: Float[np.ndarray, "n e"]
    margin: float = 0.0
    relative: bool = False

    def false_negatives(
        self, rows: Int[np.ndarray, " p"], batch: Int[np.ndarray, " b"]
    ) -> Bool[np.ndarray, "p b"]:
        """Which labels of a batch are too good to be negatives of a row, its own label aside.

        Args:
            rows: places of some rows in the split.
            batch: places of those whose labels are candidates.

        >>> contexts = np.array([[1.0, 0.9], [0.0, 1.0]], np.float32)
        >>> guide = Guide(contexts, np.eye(2, dtype=np.float32), margin=0.2)
        >>> guide.false_negatives(np.arange(2), np.arange(2)).tolist()  # the other label for the first row
        [[True, True], [False, True]]
        """
        contexts = self.contexts[rows]
        own = (contexts * self.labels[rows]).sum(axis=1)
        limit = own - self.margin * (np.abs(own) if self.relative else 1.0)
        return contexts @ self.labels[batch].T > limit[:, None]
