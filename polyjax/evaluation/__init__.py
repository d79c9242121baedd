"""Evaluation of rankings: metrics with confidence intervals, baselines on the same rows, reports.

``evaluate`` ranks rows with a model. ``rank_listed`` and ``rank_shared`` take scores from any source.
"""

from polyjax.evaluation.baselines import check_tfidf, tfidf_ranking, zero_shot_rankings
from polyjax.evaluation.candidates import check_candidates
from polyjax.evaluation.metrics import (
    Chance,
    RankingResult,
    bootstrap_interval,
    mean_reciprocal_rank,
    rank_of_label,
    rank_of_right,
    recall_at,
)
from polyjax.evaluation.rankings import (
    Evaluation,
    evaluate,
    rank_listed,
    rank_shared,
    some,
    write_examples,
)
from polyjax.evaluation.report import best_of, console_table, markdown_table, verdict, write_report

__all__ = [
    "Chance",
    "Evaluation",
    "RankingResult",
    "best_of",
    "bootstrap_interval",
    "check_candidates",
    "check_tfidf",
    "console_table",
    "evaluate",
    "markdown_table",
    "mean_reciprocal_rank",
    "rank_listed",
    "rank_of_label",
    "rank_of_right",
    "rank_shared",
    "recall_at",
    "some",
    "tfidf_ranking",
    "verdict",
    "write_examples",
    "write_report",
    "zero_shot_rankings",
]
