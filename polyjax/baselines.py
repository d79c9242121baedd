"""What a model is compared with, on the same rows: chance, TF-IDF, and the encoder before training."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import nnx

from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import Tokenizer
from polyjax.evaluation import ranking
from polyjax.metrics import RankingResult
from polyjax.models import DualScorer
from polyjax.nn.encoder import Encoder
from polyjax.nn.heads import BiConfig
from polyjax.scoring import Progress, TextScorer, ignore
from polyjax.types import Example, InputError

TFIDF_TURNS = 5


def random_ranking(examples: Sequence[Example], *, seed: int = 0) -> RankingResult:
    """Uniformly random scores."""
    scores = np.random.default_rng(seed).random((len(examples), len(examples[0].candidates)))
    return ranking("random", scores, examples)


def tfidf_ranking(examples: Sequence[Example], fit_on: Sequence[str]) -> RankingResult:
    """Cosine of TF-IDF vectors (scikit-learn) of the last 5 turns and of each candidate.

    Args:
        examples: with listed candidates.
        fit_on: texts (training turns) that give vocabulary and document frequencies.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ModuleNotFoundError:
        raise InputError("the TF-IDF baseline needs scikit-learn; run: pip install -e '.[demo]'") from None
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(fit_on)
    contexts = vectorizer.transform(" ".join(e.context[-TFIDF_TURNS:]) for e in examples)
    unique = {text: i for i, text in enumerate(dict.fromkeys(t for e in examples for t in e.candidates))}
    candidates = vectorizer.transform(unique)
    scores = np.empty((len(examples), len(examples[0].candidates)))
    for column in range(scores.shape[1]):
        chosen = candidates[[unique[e.candidates[column]] for e in examples]]
        scores[:, column] = np.asarray(contexts.multiply(chosen).sum(axis=1)).ravel()
    return ranking(f"TF-IDF, {TFIDF_TURNS} turns", scores, examples)


def zero_shot_rankings(
    encoder: Encoder,
    tokenizer: Tokenizer,
    config: TextConfig,
    examples: Sequence[Example],
    *,
    turns: Sequence[int] = (2, 4),
    progress: Progress = ignore,
) -> list[RankingResult]:
    """Cosine of mean-pooled outputs of an encoder that saw no training on the task.

    Args:
        encoder: with its pretrained parameters.
        tokenizer: the encoder's.
        config: lengths.
        examples: with listed candidates.
        turns: the last so many turns of the context; a result for each.
        progress: called with the number of contexts done, ``len(turns)`` for each example.
    """
    head = BiConfig(shared_encoder=True, normalize=True)
    scorer = DualScorer(encoder.config, head, context_encoder=encoder, rngs=nnx.Rngs(0))
    text = TextEncoder(tokenizer, dataclasses.replace(config, max_turns=max(turns)))
    # One call for all, so that each candidate is encoded once.
    contexts = [e.context[-n:] for n in turns for e in examples]
    candidates = [e.candidates for e in examples] * len(turns)
    scores = np.split(TextScorer(scorer, text).score(contexts, candidates, progress=progress), len(turns))
    return [ranking(f"zero-shot, {n} turns", part, examples) for n, part in zip(turns, scores, strict=True)]
