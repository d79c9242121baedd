"""Where special tokens go in a sequence: a contract, and polyjax's own layout."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from polyjax.data.token_store import Ids
from polyjax.data.tokenizers import Tokenizer


@runtime_checkable
class TextLayout(Protocol):
    """How sequences are made of tokens that are cut already (contexts) or not yet (candidates).

    It is a frozen dataclass with a name and a version (``polyjax.part``). A card that records one is read by
    the package that knows it, see ``polyjax.config.Foreign``.
    """

    @property
    def joined(self) -> int:
        """Tokens that a pair has less than its two sequences together, tokens between them apart."""
        ...

    def context(self, ids: Ids, tokenizer: Tokenizer) -> Ids:
        """The sequence of a context's tokens."""
        ...

    def context_length(self, n: int) -> int:
        """Tokens of the sequence of a context of n tokens."""
        ...

    def candidate(self, ids: Ids, limit: int | None, tokenizer: Tokenizer) -> Ids:
        """The sequence of a candidate's tokens, at most ``limit`` long; None for no limit."""
        ...

    def pair(self, context: Ids, candidate: Ids, between: Ids, tokenizer: Tokenizer) -> tuple[Ids, int]:
        """Two sequences in one, and the number of its tokens that belong to the first.

        Args:
            context: its sequence.
            candidate: its sequence.
            between: tokens that the tokenizer wants between them, beside the first one's end.
            tokenizer: of both.
        """
        ...

    def real(
        self, ids: np.ndarray, mask: Bool[np.ndarray, "n t"], tokenizer: Tokenizer
    ) -> Bool[np.ndarray, "n t"]:
        """Which tokens of padded sequences [n, t] are attended to, of those that are no padding."""
        ...


def between_marks(ids: Ids, tokenizer: Tokenizer) -> Ids:
    """The ids between start and end."""
    row = np.empty(len(ids) + 2, np.int32)
    row[0], row[-1] = tokenizer.start_id, tokenizer.end_id
    row[1:-1] = ids
    return row


class StandardLayout:
    """Start, tokens, end; a pair is both without the candidate's start."""

    @property
    def joined(self) -> int:
        """The candidate's start token."""
        return 1

    def context(self, ids: Ids, tokenizer: Tokenizer) -> Ids:
        """Also where there are no tokens."""
        return between_marks(ids, tokenizer)

    def context_length(self, n: int) -> int:
        """The tokens with start and end."""
        return n + 2

    def candidate(self, ids: Ids, limit: int | None, tokenizer: Tokenizer) -> Ids:
        """One that is cut keeps its end token."""
        return between_marks(ids if limit is None else ids[: limit - 2], tokenizer)

    def pair(self, context: Ids, candidate: Ids, between: Ids, tokenizer: Tokenizer) -> tuple[Ids, int]:
        """What is between them belongs to the first."""
        return np.concatenate([context, between, candidate[1:]]), len(context) + len(between)

    def real(
        self, ids: np.ndarray, mask: Bool[np.ndarray, "n t"], tokenizer: Tokenizer
    ) -> Bool[np.ndarray, "n t"]:
        """All of them."""
        return mask


STANDARD = StandardLayout()
