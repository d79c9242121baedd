"""Text in, ranked text out."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyjax.compilation import enable_compilation_cache
from polyjax.scoring import TextScorer
from polyjax.train.checkpoint import load_scorer
from polyjax.types import InputError

Context = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate with its score and its place in the list it came from."""

    text: str
    score: float
    index: int


class Ranker:
    """Ranks candidate texts for a context with a trained model.

    ``Ranker.load(run_dir).rank(context, candidates)`` is its use.

    Args:
        scorer: scores texts; ``load`` makes one from a run directory.
    """

    def __init__(self, scorer: TextScorer):
        self._scorer = scorer

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str], *, step: int | None = None) -> "Ranker":
        """The model of a run directory.

        Args:
            run_dir: made by experiments/run.py.
            step: a saved step; by default the one with the best validation figure.

        Raises:
            InputError: a file of the run directory is missing or broken.
        """
        enable_compilation_cache()
        return cls(TextScorer(*load_scorer(Path(run_dir), step=step)))

    @property
    def compilations(self) -> int:
        """Programs compiled (or taken from the compilation cache) so far."""
        return self._scorer.compilations

    def score(self, context: Context, candidates: Sequence[str]) -> np.ndarray:
        """Scores of the candidates, float32 [n], in their order.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            candidates: at least one text.

        Raises:
            InputError: the context has no turn, or there is no candidate.
        """
        turns = [context] if isinstance(context, str) else list(context)
        if isinstance(candidates, str):
            raise InputError("candidates: expected a list of texts, got one text; write [text]")
        for name, texts in (("context", turns), ("candidates", candidates)):
            if not len(texts):
                raise InputError(f"{name}: expected at least one text, got none")
            wrong = next((text for text in texts if not isinstance(text, str)), None)
            if wrong is not None:
                raise InputError(f"{name}: expected texts, got {type(wrong).__name__} {wrong!r}")
        return self._scorer.score([turns], [list(candidates)])[0]

    def rank(self, context: Context, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """The candidates, best first; equal scores keep their order.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            candidates: at least one text.
            top_k: only so many; all by default.

        Raises:
            InputError: as ``score``, or top_k is less than 1.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}")
        scores = self.score(context, candidates)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Ranked(candidates[i], float(scores[i]), i) for i in map(int, order)]
