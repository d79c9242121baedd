"""Mining of hard negatives: a ranker's best wrong candidates, by the rules of ``data.mining``."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.config import to_json
from polyjax.data.identity import Keys, different, with_answers
from polyjax.data.mining import RULES, MiningConfig, choose
from polyjax.data.negatives import DrawnAnew
from polyjax.errors import InputError, shown
from polyjax.inference.scorer import TextScorer
from polyjax.ranker import Ranker
from polyjax.recipes.rows_in_memory import as_jsonl
from polyjax.retrieval import make_index
from polyjax.retrieval.index.fingerprint import fingerprint
from polyjax.retrieval.index.texts import text_digest
from polyjax.retrieval.search.searcher import Searcher
from polyjax.runtime.journal import Journal
from polyjax.runtime.progress import errors, meter
from polyjax.types import Example

ROWS_AT_ONCE = 256
"""Number of rows searched and scored at a time; results are saved after each such chunk."""
FORMAT = 1
"""Version of the files of an unfinished mining."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Counts of a mining: negatives found, and candidates skipped by each rule.

    Attributes:
        rows: number of mined rows.
        negatives: number of negatives found.
        short: number of rows with fewer negatives than requested.
        rules: number of candidates skipped, by the first rule that they break.
    """

    rows: int
    negatives: int
    short: int
    rules: dict[str, int]

    def lines(self) -> list[str]:
        """The lines of a table of the counts."""
        looked = self.negatives + sum(self.rules.values())
        table = [("candidates looked at", looked)]
        table += [(f"  {rule}", self.rules[rule]) for rule in RULES if rule in self.rules]
        table += [
            ("negatives", self.negatives),
            ("rows", self.rows),
            ("rows with fewer than asked", self.short),
        ]
        return [f"{name:<28}{count:>12,}" for name, count in table]


def candidates_of(examples: Sequence[Example]) -> list[str]:
    """The default candidates for mining: the labels and listed candidates of rows, each once."""
    return different(text for example in examples for text in example.candidates)


def check_fixed(examples: Sequence[Example], *, argument: str) -> None:
    """Raise InputError for rows that are drawn anew in each epoch; ``argument`` is for the message."""
    if isinstance(examples, DrawnAnew):
        raise InputError(
            argument,
            problem="the task draws other rows in each epoch, but scores can be computed for one draw only",
            fix="leave it out, or write the rows into a file",
        )


def check_miner(ranker: Ranker, *, argument: str) -> None:
    """Raise InputError for a model that cannot search, a cross-encoder."""
    if not ranker.scorer.is_dual:
        raise InputError(
            argument,
            expected="a bi- or poly-encoder, which can search",
            got=shown(f"a {ranker.scorer.settings.head.arch}-encoder"),
            fix="mine with another model, and re-score with this one",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Miner:
    """Finds hard negatives.

    Attributes:
        ranker: the model that searches.
        config: the rules.
        candidates: the texts to search, without copies.
        rescore: a model that re-scores the candidates found; the rules then apply to its scores.
    """

    ranker: Ranker
    config: MiningConfig
    candidates: Sequence[str]
    rescore: Ranker | None = None

    def header(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Everything that the negatives depend on, as JSON data: digests and the rules."""
        return {
            "format": FORMAT,
            "model": model_digest(self.ranker),
            "rescore": None if self.rescore is None else model_digest(self.rescore),
            "rows": examples_digest(examples),
            "candidates": text_digest(self.candidates),
            "rules": to_json(self.config),
        }

    def mined(self, examples: Sequence[Example], folder: Path | None = None) -> tuple[list[Example], Skipped]:
        """The rows with mined negatives after their own, and the scores of all candidates and negatives.

        Args:
            examples: rows; those of one context share their right answers.
            folder: folder, locked by this process, for the index and the finished rows, so that the same call
                resumes; None to keep them in memory.
        """
        results: list[Any] = []
        journal = None if folder is None else Journal(folder / "negatives.jsonl", self.header(examples))
        done = results if journal is None else journal.done
        if len(done) < len(examples):
            searcher = self._searcher(folder)
            rows, keys = with_answers(examples), Keys()
            places = {keys[text]: place for place, text in enumerate(self.candidates)}
            with meter("mining", len(rows), unit="rows", start=len(done), out=errors) as bar:
                for start in range(len(done), len(rows), ROWS_AT_ONCE):
                    some = rows[start : start + ROWS_AT_ONCE]
                    found = list(self._some(searcher, some, start, keys, places))
                    results += found
                    if journal is not None:
                        journal.add(found)
                    bar.add(len(some))
        return _collected(examples, done, self.config.n_negatives)

    def _searcher(self, folder: Path | None) -> Searcher:
        """Searches the candidates; a row of its index is a place in ``candidates``, which has no copies."""
        digest = text_digest([model_digest(self.ranker), *self.candidates])[:16]
        place = None if folder is None else folder / f"index-{digest}"
        index = make_index(self.ranker.scorer, list(self.candidates), place)
        return Searcher(self.ranker.scorer, index.candidates)

    def _some(
        self,
        searcher: Searcher,
        rows: Sequence[Example],
        first: int,
        keys: Keys,
        places: Mapping[str, int],
    ) -> Iterator[tuple[list[str], list[float], dict[str, int]]]:
        """For each row: its negatives, the scores of its own texts and then of these, skipped counts.

        Args:
            searcher: of the candidates.
            rows: some of the rows.
            first: number of the first of them.
            keys: of the texts.
            places: of the candidates, by their keys.
        """
        right = [{keys[text] for text in (row.label_text, *row.answers)} for row in rows]
        listed = [{keys[text] for text in (*row.candidates, *row.negatives)} for row in rows]
        wanted = [self.config.depth + len(one | other) for one, other in zip(right, listed, strict=True)]
        found = [
            (one.rows[one.rows >= 0][: max(wanted)], one.scores[one.rows >= 0][: max(wanted)])
            for one in searcher.outcomes([row.context for row in rows], max(wanted))
        ]
        looked = [at[:k] for (at, _), k in zip(found, wanted, strict=True)]
        own = [[*row.candidates, *row.negatives, *row.answers] for row in rows]
        if self.rescore is None:
            scores = [some[:k].astype(np.float64) for (_, some), k in zip(found, wanted, strict=True)]
            own_scores = self._own_scores(rows, own, found, keys, places)
            shown, own_shown = scores, own_scores
        else:
            texts = [self._texts(at) for at in looked]
            both = score(self.rescore.scorer, rows, [a + b for a, b in zip(own, texts, strict=True)])
            own_scores = [some[: len(a)] for some, a in zip(both, own, strict=True)]
            scores = [some[len(a) :] for some, a in zip(both, own, strict=True)]
            shown, own_shown = map(self._shown, (scores, own_scores))
        for i, row in enumerate(rows):
            is_right, is_listed = (
                np.isin(looked[i], [places[key] for key in some if key in places])
                for some in (right[i], listed[i])
            )
            n_listed = len(row.candidates) + len(row.negatives)
            lowest = min(own_shown[i][row.label], *own_shown[i][n_listed:], np.inf)
            chosen, skipped = choose(
                np.asarray(shown[i]),
                {"right answer": is_right, "already listed": is_listed},
                float(lowest),
                self.config,
                row=first + i,
            )
            kept = [*own_scores[i][:n_listed], *scores[i][chosen]]
            yield self._texts(looked[i][chosen]), [float(f"{value:.9g}") for value in kept], skipped

    def _texts(self, places: np.ndarray) -> list[str]:
        return [self.candidates[int(place)] for place in places]

    def _own_scores(
        self,
        rows: Sequence[Example],
        own: Sequence[Sequence[str]],
        found: Sequence[tuple[np.ndarray, np.ndarray]],
        keys: Keys,
        places: Mapping[str, int],
    ) -> list[np.ndarray]:
        """Scores of each row's own texts, taken from the search if it found all of them."""
        scores: list[np.ndarray] = []
        for texts, (at, scored) in zip(own, found, strict=True):
            place = np.array([places.get(keys[text], -1) for text in texts])
            # A copy of a candidate that is written otherwise may have another score.
            same = [j >= 0 and self.candidates[j] == text for j, text in zip(place, texts, strict=True)]
            hit = (place[:, None] == at) & np.array(same)[:, None]
            scores.append(np.where(hit.any(1), scored[hit.argmax(1)].astype(np.float64), np.nan))
        missing = [i for i, some in enumerate(scores) if np.isnan(some).any()]
        if missing:
            computed = score(self.ranker.scorer, [rows[i] for i in missing], [own[i] for i in missing])
            for i, some in zip(missing, computed, strict=True):
                scores[i] = some
        return scores

    def _shown(self, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The re-scoring model's scores after its activation, as users see them."""
        assert self.rescore is not None
        return [self.rescore.scorer.activated(some) for some in scores]


def header_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of two ``Miner.header`` differs, in words."""
    names = {
        "format": "the version of polyjax",
        "model": "the model",
        "rescore": "the model that scores again",
        "rows": "the rows",
        "held_out": "the rows that are held out",
        "candidates": "the candidates",
    }
    said = [words for name, words in names.items() if before.get(name) != now.get(name)]
    old, new = before.get("rules") or {}, now.get("rules") or {}
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            said.append(f"`{name}` (was {old.get(name)!r}, now {new.get(name)!r})")
    return " and ".join(said)


def model_digest(ranker: Ranker) -> str:
    """A digest of everything that a model's scores depend on, hexadecimal."""
    return hashlib.sha256(fingerprint(ranker.scorer).key.encode()).hexdigest()


def examples_digest(examples: Sequence[Example]) -> str:
    """A digest of rows with all their fields, hexadecimal."""
    return hashlib.sha256(as_jsonl("rows", examples)).hexdigest()


def score(scorer: TextScorer, rows: Sequence[Example], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """A model's scores (for a cross-encoder, logits) of the texts of each row, [n] each."""
    table = scorer.score([row.context for row in rows], texts)
    return [row[: len(some)] for row, some in zip(table, texts, strict=True)]


def _collected(examples: Sequence[Example], results: Sequence[Any], n: int) -> tuple[list[Example], Skipped]:
    rules: Counter[str] = Counter()
    rows, found, short = [], 0, 0
    for example, (negatives, scores, skipped) in zip(examples, results, strict=True):
        rows.append(
            dataclasses.replace(
                example, negatives=(*example.negatives, *negatives), scores=tuple(map(float, scores))
            )
        )
        rules.update(skipped)
        found += len(negatives)
        short += len(negatives) < n
    return rows, Skipped(len(examples), found, short, dict(rules))
