"""Baselines for a model, on the same rows: TF-IDF, and the encoder before training."""

import dataclasses
import functools
import importlib.util
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx

from polyjax.data.identity import text_key
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import InputError
from polyjax.evaluation.candidates import chance
from polyjax.evaluation.metrics import RankingResult
from polyjax.evaluation.rankings import rank_shared, ranking, shown
from polyjax.inference.scorer import TextScorer
from polyjax.nn.encoders import TokenEncoder
from polyjax.nn.heads import BiConfig
from polyjax.nn.scorers import DualScorer
from polyjax.types import Example

TFIDF_TURNS = 5
_UNSPACED = re.compile(
    # Thai, Lao, Tibetan, Myanmar, Khmer, kana, bopomofo, Chinese characters
    "[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0edf\u0f40-\u0f6c\u1000-\u102a\ua9e0-\ua9fe\uaa60-\uaa7a"
    "\u1780-\u17b3\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U00020000-\U0003ffff"
    # Tai Le, New Tai Lue, Tai Tham, Tai Viet, Balinese, Javanese, Cham, Yi
    "\u1950-\u1974\u1980-\u19ab\u1a20-\u1a54\uaa80-\uaac2\u1b05-\u1b33\ua984-\ua9b2\uaa00-\uaa28\ua000-\ua48c]"
)
"""Letters of scripts whose words are not separated by spaces."""
_ROWS = 256
"""Number of rows scored at a time against shared candidates."""


def tfidf_ranking(
    examples: Sequence[Example], fit_on: Sequence[str], *, shared: Sequence[str] = ()
) -> RankingResult:
    """Ranking by the cosine of the TF-IDF vectors (scikit-learn) of the last 5 turns and of each candidate.

    Terms are words of two characters and more, vowel signs and accents included, of texts that are one by
    ``text_key`` the same ones. For languages without spaces between words (Chinese, Japanese, Thai, ...),
    terms are single characters and pairs of characters. The result's name says this, and whether it is below
    chance.

    Args:
        examples: rows to rank, whose candidates are listed or ``shared``.
        fit_on: texts (training turns) from which vocabulary and document frequencies are computed.
        shared: distinct candidates for all rows; empty if the rows list their own.

    Raises:
        InputError: scikit-learn is not installed.
    """
    check_tfidf()
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = has_no_spaces([*fit_on, *(e.label_text for e in examples)])
    vectorizer_of = functools.partial(TfidfVectorizer, sublinear_tf=True, preprocessor=text_key)
    terms: dict[str, Any] = (
        {"analyzer": "char", "ngram_range": (1, 2)} if letters else {"token_pattern": _words()}
    )
    try:
        vectorizer = vectorizer_of(**terms).fit(fit_on)
    except ValueError:  # no text has a word of two letters
        vectorizer = vectorizer_of(analyzer="char").fit([*fit_on, "a"])
    contexts = vectorizer.transform(" ".join(e.context[-TFIDF_TURNS:]) for e in examples)
    turns = min(TFIDF_TURNS, max(len(e.context) for e in examples))
    name = f"TF-IDF{' of characters' if letters else ''}{f', {turns} turns' if turns > 1 else ''}"
    if shared:
        table = vectorizer.transform(shared).T.tocsr()
        own = vectorizer.transform(e.label_text for e in examples)
        right = np.asarray(contexts.multiply(own).sum(axis=1)).ravel()
        parts = ((some, (contexts[some] @ table).toarray(), right[some]) for some in _parts(len(examples)))
        return _beside_chance(rank_shared(name, examples, shared, parts).ranking, examples, shared)
    unique = {text: i for i, text in enumerate(dict.fromkeys(t for e in examples for t in e.candidates))}
    candidates = vectorizer.transform(unique)
    scores = np.empty((len(examples), len(examples[0].candidates)))
    for column in range(scores.shape[1]):
        chosen = candidates[[unique[e.candidates[column]] for e in examples]]
        scores[:, column] = np.asarray(contexts.multiply(chosen).sum(axis=1)).ravel()
    return _beside_chance(ranking(name, scores, examples), examples, shared)


@functools.cache
def _words() -> str:
    """A pattern of words. Python's ``\\w`` has no marks, and would end a word at a Hindi vowel sign."""
    marks = (chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M"))
    return rf"(?u)[\w{''.join(marks)}]{{2,}}"


def check_tfidf() -> None:
    """Raise InputError if scikit-learn is not installed; call it before training starts."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "the TF-IDF baseline",
            problem="needs scikit-learn, which is not installed",
            fix="run: pip install scikit-learn",
            is_argument=False,
        )


def has_no_spaces(texts: Iterable[str]) -> bool:
    """Whether at least a fifth of the letters belong to scripts that do not separate words by spaces.

    >>> has_no_spaces(["打印机坏了怎么修理？"]), has_no_spaces(["how to fix it (修理)?"])
    (True, False)
    """
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        unspaced += len(_UNSPACED.findall(text))
    return 0 < letters <= 5 * unspaced


def _beside_chance(
    result: RankingResult, examples: Sequence[Example], shared: Sequence[str]
) -> RankingResult:
    """The result; "(below chance)" is added to its name if its recall@1 is."""
    if result.recall(1) >= chance(examples, shared, n_candidates=result.n_candidates).recall(1) - 1e-9:
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
    """Rankings by the cosine of mean-pooled outputs of an encoder that was not trained on the task.

    Args:
        encoder: the encoder with its pretrained parameters.
        tokenizer: the encoder's tokenizer.
        config: maximum lengths of texts.
        examples: rows to rank, whose candidates are listed or ``shared``.
        shared: distinct candidates for all rows; empty if the rows list their own.
        turns: numbers of last turns of a context to read, with one result for each; numbers above that of
            the longest context are reduced to it.
        title: title of the progress bar; "" for no progress bar.
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
    """One result per name, from scores of the rows of all names, one name after the other."""
    several = [example for _ in names for example in examples]
    ranks = rank_shared("", several, shared, parts).ranking
    groups = tuple(example.group for example in examples)
    return [
        RankingResult(name, part, groups, ranks.n_candidates)
        for name, part in zip(names, np.split(ranks.ranks, len(names)), strict=True)
    ]


def _parts(n: int) -> Iterator[np.ndarray]:
    """The indices of n rows, in chunks."""
    for start in range(0, n, _ROWS):
        yield np.arange(start, min(start + _ROWS, n))
