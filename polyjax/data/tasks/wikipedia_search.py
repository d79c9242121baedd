"""Wikipedia article search (Wu et al. 2018, StarSpace): find the article that a sentence was taken from.

An article is its sentences. An example's context is one of them and its label all others, as one text; it is
ranked among fixed articles, 10,000 of them in the paper's task, and its own.

Two layouts are read. StarSpace's text files: an article a line, sentences separated by tabs; in its test
files the first column is the query, and a file of base documents holds the other articles. And articles as
JSON lines with ``title`` and ``sentences``, ``paragraphs`` or ``text``, of which validation and test articles
are set aside by a stable hash of the title.
"""

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from polyjax.data.identity import different
from polyjax.data.rows import Rows
from polyjax.data.tasks.protocol import Split
from polyjax.data.tasks.source import (
    OfficialFile,
    PreparedFolder,
    Source,
    SourceFolder,
    Unverified,
    check_fractions,
    note_of,
    text_lines,
)
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.types import Example

SOURCE = Source(
    "wikipedia_search", "StarSpace's Wikipedia article search", "facebookresearch/StarSpace, examples"
)
TEST_FILES = {
    "valid": ("wikipedia_dev10k.txt", "wikipedia_dev_basedocs.txt"),
    "test": ("wikipedia_test10k.txt", "wikipedia_test_basedocs.txt"),
}
"""Queries and base documents. The names of the test files are StarSpace's; those of valid follow them."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclasses.dataclass(frozen=True)
class Article:
    """A title, "" in StarSpace's files, and sentences."""

    title: str
    sentences: tuple[str, ...]

    def without(self, i: int) -> str:
        """All sentences but one, as one text."""
        return " ".join((*self.sentences[:i], *self.sentences[i + 1 :]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WikipediaSearchConfig:
    """The task's settings.

    Attributes:
        source: folder with StarSpace's files.
        training: which of its training files: ``5M`` articles, shuffled, or ``250k``.
        articles: a file of articles, JSON lines, instead.
        n_documents: other articles that each one of ``articles`` is ranked among.
        valid_fraction: of the articles with at least two sentences, by a hash of the title.
        test_fraction: likewise.
        seed: of the query sentences and of the choice of the other articles.
        unverified: take files that are not known to be the official ones (their md5 was never published).
        data_dir: where the prepared articles are kept (array_record files, written once).
    """

    source: SourceFolder = Path("wikipedia")
    training: Literal["5M", "250k"] = "5M"
    articles: Path | None = None
    n_documents: int = 10_000
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    unverified: Unverified = False
    data_dir: PreparedFolder = Path("data")

    name = "wikipedia_search"
    licence = "see where it was published"
    lengths = TextConfig(max_turns=1, context_tokens=64, candidate_tokens=128, buckets=(32, 64))
    ks = (1, 10, 100)

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.n_documents < 1:
            raise InputError("task.n_documents", expected="at least 1", got=self.n_documents)
        check_fractions(self.valid_fraction, self.test_fraction)

    def read(self, split: Split) -> Rows:
        """The rows of a split; those to rank share the other articles as candidates.

        Raises:
            InputError: a file is missing, broken, not known to be the official one, or has too few articles.
        """
        return _read(self, split)


class Searches(Sequence[Example]):
    """An example for each article: a sentence is the query, the rest the label; another one in each epoch.

    Args:
        articles: with at least two sentences each.
        seed: of the choice of sentences.
    """

    def __init__(self, articles: Sequence[Article], seed: int):
        self._articles, self._seed = articles, seed

    def __len__(self) -> int:
        """Number of articles."""
        return len(self._articles)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The example of an article in epoch 0, or several."""
        if isinstance(index, slice):
            return [self.at(i, 0) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(int(index) % len(self), 0)

    def at(self, index: int, epoch: int) -> Example:
        """The example of an article in an epoch."""
        article = self._articles[index]
        query = random.Random(f"{self._seed}/{epoch}/{index}").randrange(len(article.sentences))
        return search(article, query, str(index))


def search(article: Article, query: int, name: str) -> Example:
    """The example whose context is one sentence of an article and whose label is the rest."""
    return Example(name, (article.sentences[query],), (article.without(query),), 0, name)


def _read(config: WikipediaSearchConfig, split: Split) -> Rows:
    if config.articles is not None:
        return _read_articles(config, config.articles, split)
    if split == "train":
        name = "wikipedia_shuf_train5M.txt" if config.training == "5M" else "wikipedia_train250k.txt"
        articles, note = _kept(config, name)
        return Rows(Searches(articles, config.seed), note)
    queries, documents = TEST_FILES[split]
    articles, note = _kept(config, queries)
    others, _ = _kept(config, documents)
    examples = [search(article, 0, str(i)) for i, article in enumerate(articles)]
    return Rows(examples, note, shared=different(" ".join(article.sentences) for article in others))


def _article_of(row: dict[str, Any]) -> Article:
    """An article as it was prepared."""
    return Article(row["title"].decode(), tuple(sentence.decode() for sentence in row["sentences"]))


def _kept(config: WikipediaSearchConfig, name: str) -> tuple[Sequence[Article], str]:
    """The articles of one of StarSpace's files, prepared first if necessary, and a note on it."""
    from polyjax.data.tasks import builders  # tensorflow-datasets: slow to import, needed here only

    documents = name in [pair[1] for pair in TEST_FILES.values()]
    prepared, official = builders.prepared_files(
        SOURCE,
        name.removesuffix(".txt"),
        config.source,
        [OfficialFile(name)],
        lambda path: parse_starspace(path, least=1 if documents else 2),
        data_dir=config.data_dir,
        unverified=config.unverified,
    )
    return builders.Prepared(SOURCE.task, config.data_dir, prepared, _article_of), note_of(name, official)


def parse_starspace(path: Path, *, least: int) -> Iterator[Article]:
    """The articles of a file, one a line, sentences separated by tabs.

    Args:
        path: the file.
        least: sentences that an article must have.

    Raises:
        InputError: a line has fewer, or is not UTF-8; file and line are named.
    """
    for number, line in enumerate(text_lines(path), start=1):
        sentences = tuple(text for part in line.split("\t") if (text := part.strip()))
        if not sentences:
            continue
        if len(sentences) < least:
            raise InputError.in_file(
                path,
                number,
                expected=f"at least {least} sentences separated by tabs",
                got=len(sentences),
            )
        yield Article("", sentences)


def parse_articles(path: Path) -> list[Article]:
    """The articles of a JSON lines file; a title that comes again has its number added.

    Raises:
        InputError: the file is missing or a line is not an article; the message names file and line.
    """
    if not path.is_file():
        raise InputError.missing_file(path, "a file of articles, JSON lines")
    found: list[Article] = []
    titles: set[str] = set()
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            article = _article(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError.in_file(
                path,
                number,
                expected="an object with a title and sentences, paragraphs or a text",
                got=shown(repr(error)),
            ) from None
        title, times = article.title, 1
        while title in titles:
            times += 1
            title = f"{article.title} ({times})"
        titles.add(title)
        found.append(dataclasses.replace(article, title=title))
    if not found:
        raise InputError.in_file(path, problem="the file is empty", expected="an article a line")
    return found


def _article(row: object) -> Article:
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__}")
    if "sentences" in row:
        texts = row["sentences"]
    else:
        parts = row["paragraphs"] if "paragraphs" in row else [row["text"]]
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise TypeError("not a list of texts")
        texts = [sentence for part in parts for sentence in _SENTENCE_END.split(part.strip())]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in [row["title"], *texts]):
        raise TypeError("not a list of texts")
    "".join([row["title"], *texts]).encode()  # a lone surrogate is not valid text
    return Article(row["title"], tuple(text.strip() for text in texts if text.strip()))


def split_of(article: Article, *, valid: float, test: float) -> Split:
    """The split of an article by a stable hash of its title."""
    place = _hash(article.title, "split") / 2**32
    return "test" if place < test else "valid" if place < test + valid else "train"


def _hash(title: str, purpose: object) -> int:
    return int(hashlib.sha1(f"{purpose}/{title}".encode()).hexdigest()[:8], 16)


def _read_articles(config: WikipediaSearchConfig, path: Path, split: Split) -> Rows:
    articles = list(_prepared_articles(config, path))
    note = f"{path.name}: not the official articles; do not compare with published results"
    shares = {"valid": config.valid_fraction, "test": config.test_fraction}
    chosen = [a for a in articles if len(a.sentences) >= 2 and split_of(a, **shares) == split]
    if not chosen:
        problem = f"no article of two sentences falls into the split {split!r}"
        raise InputError.in_file(path, problem=problem)
    if split == "train":
        return Rows(Searches(chosen, config.seed), note)
    taken = {article.title for article in chosen}
    others = [article for article in articles if article.title not in taken and article.sentences]
    others.sort(key=lambda article: _hash(article.title, config.seed))
    texts = different(" ".join(article.sentences) for article in others)
    if len(texts) < config.n_documents:
        raise InputError(
            "task.n_documents",
            expected=f"at most the {len(texts):,} different articles of {path} beside the {split} split",
            got=config.n_documents,
        )
    examples = []
    for article in chosen:
        query = _hash(article.title, f"query/{config.seed}") % len(article.sentences)
        examples.append(search(article, query, article.title))
    return Rows(examples, note, shared=texts[: config.n_documents])


def _prepared_articles(config: WikipediaSearchConfig, path: Path) -> Sequence[Article]:
    """The articles of the user's file, prepared first if necessary."""
    from polyjax.data.tasks import builders  # tensorflow-datasets: slow to import, needed here only

    if not path.is_file():
        parse_articles(path)
    prepared, _ = builders.prepared_files(
        SOURCE,
        re.sub(r"\W+", "_", path.stem),
        path.parent,
        [OfficialFile(path.name)],
        lambda path: iter(parse_articles(path)),
        data_dir=config.data_dir,
        unverified=True,
    )
    return builders.Prepared(SOURCE.task, config.data_dir, prepared, _article_of)
