"""Where ParlAI puts special tokens in a sequence."""

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
    """ParlAI's placement of special tokens, see ``polyjax.data.layout.TextLayout``.

    It differs from polyjax's own in four ways. A truncated candidate loses its end token. A pair keeps both
    start tokens. An empty context is an empty sequence. A padding token written out in a text is masked.
    """

    @property
    def joined(self) -> int:
        """0: a pair keeps all tokens of both sequences."""
        return 0

    def context(self, ids: Ids, tokenizer: Tokenizer) -> Ids:
        """Start, tokens, end; an empty sequence if there are no tokens."""
        return between_marks(ids, tokenizer) if len(ids) else ids

    def context_length(self, n: int) -> int:
        """``n + 2`` with start and end; 0 if there are no tokens."""
        return n + 2 if n else 0

    def candidate(self, ids: Ids, limit: int | None, tokenizer: Tokenizer) -> Ids:
        """Start, tokens, end, truncated to ``limit`` tokens; the end token is lost first."""
        return between_marks(ids[:limit], tokenizer)[:limit]

    def pair(self, context: Ids, candidate: Ids, between: Ids, tokenizer: Tokenizer) -> tuple[Ids, int]:
        """The context, then the candidate.

        As in ParlAI, the context is truncated to as many ids as it has that are not padding.
        """
        context = context[: np.count_nonzero(context != tokenizer.pad_id)]
        return np.concatenate([context, candidate]), len(context)

    def real(
        self, ids: np.ndarray, mask: Bool[np.ndarray, "n t"], tokenizer: Tokenizer
    ) -> Bool[np.ndarray, "n t"]:
        """All tokens except padding tokens."""
        return mask & (ids != tokenizer.pad_id)

    @property
    def before(self) -> tuple[str, Mapping[str, Any]]:
        """The settings that recorded it in older files, see ``polyjax.config.Replaces``."""
        return "standard", {"layout": "parlai"}
