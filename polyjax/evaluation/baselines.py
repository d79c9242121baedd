"""What a model is compared with, on the same rows: TF-IDF, and the encoder before training."""

import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from flax import nnx

from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import InputError
from polyjax.evaluation.metrics import RankingResult
from polyjax.evaluation.rankings import rank_shared, ranking, shown
from polyjax.inference.scorer import TextScorer
from polyjax.nn.encoders import TokenEncoder
from polyjax.nn.heads import BiConfig
from polyjax.nn.scorers import DualScorer
from polyjax.types import Example

TFIDF_TURNS = 5
_UNSPACED = re.compile(
    # Thai, Lao, Tibetan, Myanmar, Khmer, kana, Chinese characters
    "[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0edf\u0f40-\u0f6c\u1000-\u102a\u1780-\u17b3"
    "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
"""Letters of scripts whose words are not separated by spaces."""
_ROWS = 256
"""Rows that are scored together against shared candidates."""


def tfidf_ranking(
    examples: Sequence[Example], fit_on: Sequence[str], *, shared: Sequence[str] = ()
) -> RankingResult:
    """Cosine of TF-IDF vectors (scikit-learn) of the last 5 turns and of each candidate.

    Terms are words; where words are not separated by spaces (Chinese, Japanese, Thai, ...) they are
    characters and pairs of them. The result's name says so, and says if it is below chance.

    Args:
        examples: with listed candidates, or with shared ones.
        fit_on: texts (training turns) that give vocabulary and document frequencies.
        shared: different texts that every example's label is ranked among.

    Raises:
        InputError: scikit-learn is not installed.
    """
    check_tfidf()
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = has_no_spaces([*fit_on, *(e.label_text for e in examples)])
    terms = {"analyzer": "char", "ngram_range": (1, 2)} if letters else {}
    try:
        vectorizer = TfidfVectorizer(sublinear_tf=True, **terms).fit(fit_on)
    except ValueError:  # no word of two letters anywhere
        vectorizer = TfidfVectorizer(sublinear_tf=True, analyzer="char").fit([*fit_on, "a"])
    contexts = vectorizer.transform(" ".join(e.context[-TFIDF_TURNS:]) for e in examples)
    turns = min(TFIDF_TURNS, max(len(e.context) for e in examples))
    name = f"TF-IDF{' of characters' if letters else ''}{f', {turns} turns' if turns > 1 else ''}"
    if shared:
        table = vectorizer.transform(shared).T.tocsr()
        own = vectorizer.transform(e.label_text for e in examples)
        right = np.asarray(contexts.multiply(own).sum(axis=1)).ravel()
        parts = ((some, (contexts[some] @ table).toarray(), right[some]) for some in _parts(len(examples)))
        return _beside_chance(rank_shared(name, examples, shared, parts).ranking)
    unique = {text: i for i, text in enumerate(dict.fromkeys(t for e in examples for t in e.candidates))}
    candidates = vectorizer.transform(unique)
    scores = np.empty((len(examples), len(examples[0].candidates)))
    for column in range(scores.shape[1]):
        chosen = candidates[[unique[e.candidates[column]] for e in examples]]
        scores[:, column] = np.asarray(contexts.multiply(chosen).sum(axis=1)).ravel()
    return _beside_chance(ranking(name, scores, examples))


def check_tfidf() -> None:
    """Raise InputError if scikit-learn is not installed; called before training starts."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "the TF-IDF baseline",
            problem="needs scikit-learn, which is not installed",
            fix="run: pip install scikit-learn",
            is_argument=False,
        )


def has_no_spaces(texts: Iterable[str]) -> bool:
    """Whether a fifth or more of the letters are of scripts that do not separate words by spaces.

    >>> has_no_spaces(["打印机坏了怎么修理？"]), has_no_spaces(["how to fix it (修理)?"])
    (True, False)
    """
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        unspaced += len(_UNSPACED.findall(text))
    return 0 < letters <= 5 * unspaced


def _beside_chance(result: RankingResult) -> RankingResult:
    """The result, whose name says if it is below chance."""
    if result.recall(1) * result.n_candidates >= 1:
        return result
    return dataclasses.replace(result, name=f"{result.name} (below chance)")


def zero_shot_rankings(
    encoder: TokenEncoder,
    tokenizer: Tokenizer,
    config: TextConfig,
    examples: Sequence[Example],
    *,
    shared: Sequence[str] = (),
    turns: Sequence[int] = (2, 4),
    title: str = "",
) -> list[RankingResult]:
    """Cosine of mean-pooled outputs of an encoder that saw no training on the task.

    Args:
        encoder: with its pretrained parameters.
        tokenizer: the encoder's.
        config: lengths.
        examples: with listed candidates, or with shared ones.
        shared: different texts that every example's label is ranked among.
        turns: numbers of last turns of the context, with a result for each; larger ones than any context's
            are left out.
        title: of the progress display; "" for no display.
    """
    head = BiConfig(shared_encoder=True, normalize=True)
    scorer = DualScorer(encoder.config, head, context_encoder=encoder, rngs=nnx.Rngs(0))
    longest = max(len(e.context) for e in examples)
    counts = sorted({min(n, longest) for n in turns})
    text_scorer = TextScorer(
        scorer, TextEncoder(tokenizer, dataclasses.replace(config, max_turns=max(counts)))
    )
    # One call for all, so that each candidate is encoded once.
    contexts = [e.context[-n:] for n in counts for e in examples]
    names = [f"zero-shot, {n} turns" if n > 1 else "zero-shot" for n in counts]
    with shown(title, text_scorer, len(contexts), shared) as progress:
        if shared:
            labels = [e.label_text for e in examples] * len(counts)
            parts = text_scorer.score_shared(contexts, shared, labels, progress=progress)
            return _split(names, examples, shared, parts)
        candidates = [e.candidates for e in examples] * len(counts)
        scores = np.split(text_scorer.score(contexts, candidates, progress=progress), len(counts))
    return [ranking(name, part, examples) for name, part in zip(names, scores, strict=True)]


def _split(
    names: Sequence[str],
    examples: Sequence[Example],
    shared: Sequence[str],
    parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> list[RankingResult]:
    """A result for each name; their rows follow each other in the scores."""
    several = [example for _ in names for example in examples]
    ranks = rank_shared("", several, shared, parts).ranking
    groups = tuple(example.group for example in examples)
    return [
        RankingResult(name, part, groups, ranks.n_candidates)
        for name, part in zip(names, np.split(ranks.ranks, len(names)), strict=True)
    ]


def _parts(n: int) -> Iterator[np.ndarray]:
    """Places of n rows, in parts."""
    for start in range(0, n, _ROWS):
        yield np.arange(start, min(start + _ROWS, n))
