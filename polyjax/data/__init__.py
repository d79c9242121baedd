"""Data: rows of data sets, their identity, texts as token ids, batches.

It exports what users and other packages need to handle rows. Tokenizers, texts and batches are modules of
their own, because they are slower to import.
"""

from polyjax.data.candidates import add_candidates, read_candidates
from polyjax.data.identity import different, other_answers, text_hash, text_key, with_answers
from polyjax.data.rows import RankConfig, Rows, ranked_among, rows_digest

__all__ = [
    "RankConfig",
    "Rows",
    "add_candidates",
    "different",
    "other_answers",
    "ranked_among",
    "read_candidates",
    "rows_digest",
    "text_hash",
    "text_key",
    "with_answers",
]
