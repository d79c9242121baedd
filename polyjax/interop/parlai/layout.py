"""How ParlAI makes sequences of tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from polyjax.config import part
from polyjax.data.layout import between_marks
from polyjax.data.token_store import Ids
from polyjax.data.tokenizers import Tokenizer


@part("parlai-layout", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ParlaiLayout:
    """ParlAI's places of special tokens.

    The end token of a candidate that is cut is cut too, a pair has both start tokens, an empty context is an
    empty sequence, and padding tokens that a text spells out are masked.
    """

    @property
    def joined(self) -> int:
        """None: both start tokens stay."""
        return 0

    def context(self, ids: Ids, tokenizer: Tokenizer) -> Ids:
        """Empty where there are no tokens."""
        return between_marks(ids, tokenizer) if len(ids) else ids

    def context_length(self, n: int) -> int:
        """The tokens with start and end; 0 without tokens."""
        return n + 2 if n else 0

    def candidate(self, ids: Ids, limit: int | None, tokenizer: Tokenizer) -> Ids:
        """What is cut loses its end token."""
        return between_marks(ids[:limit], tokenizer)[:limit]

    def pair(self, context: Ids, candidate: Ids, between: Ids, tokenizer: Tokenizer) -> tuple[Ids, int]:
        """Of the context so many ids are copied, from the front, as are not padding."""
        context = context[: np.count_nonzero(context != tokenizer.pad_id)]
        return np.concatenate([context, candidate]), len(context)

    def real(
        self, ids: np.ndarray, mask: Bool[np.ndarray, "n t"], tokenizer: Tokenizer
    ) -> Bool[np.ndarray, "n t"]:
        """All but padding tokens."""
        return mask & (ids != tokenizer.pad_id)

    @property
    def before(self) -> tuple[str, Mapping[str, Any]]:
        """What text settings had in its place, see ``polyjax.config.Replaces``."""
        return "standard", {"layout": "parlai"}
