"""Article search: both layouts, splits, queries that are not in their article, fixed candidates."""

import dataclasses
import json

import pytest

from conftest import shared_data
from polyjax.data.tasks import training_texts
from polyjax.data.tasks.wikipedia_search import (
    Article,
    Searches,
    WikipediaSearchConfig,
    parse_articles,
    parse_starspace,
)
from polyjax.errors import InputError
from polyjax.evaluation.baselines import tfidf_ranking


def articles_file(tmp_path, n: int = 300):
    rows = [
        {
            "title": f"article {i}",
            "sentences": [f"first of {i}.", f"second of {i}.", f"third of {i}."][: 1 + i % 3],
        }
        for i in range(n)
    ]
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_articles_are_split_and_ranked_among_others(tmp_path):
    config = WikipediaSearchConfig(articles=articles_file(tmp_path), n_documents=200)
    train, valid, test = (config.read(split) for split in ("train", "valid", "test"))
    assert len(train.examples) + len(valid.examples) + len(test.examples) == 200, "of at least two sentences"
    for rows in (valid, test):
        assert len(rows.shared) == len(set(rows.shared)) == 200
        for example in rows.examples:
            (query,) = example.context
            assert query not in example.label_text and example.label_text not in rows.shared
            assert example.id.removeprefix("article ") in query, "a sentence of the same article"
            assert not any(query in document for document in rows.shared), "its own article is no other"
    assert config.read("test") == test, "the same at each call"
    assert not {e.id for e in valid.examples} & {e.id for e in test.examples}
    other = dataclasses.replace(config, seed=1).read("test")
    assert [e.id for e in other.examples] == [e.id for e in test.examples]
    assert [e.context for e in other.examples] != [e.context for e in test.examples]
    with pytest.raises(InputError, match="different articles of .* beside the test split") as caught:
        dataclasses.replace(config, n_documents=10_000).read("test")
    assert (caught.value.argument, caught.value.got) == ("task.n_documents", 10_000)


def test_a_training_article_is_asked_for_by_another_sentence_in_each_epoch():
    searches = Searches([Article("a", tuple(f"s{i}." for i in range(6)))] * 3, seed=0)
    queries = {searches.at(0, epoch).context[0] for epoch in range(40)}
    assert len(queries) == 6
    for epoch in range(5):
        example = searches.at(1, epoch)
        assert example == searches.at(1, epoch)
        assert sorted([example.context[0], *example.label_text.split()]) == [f"s{i}." for i in range(6)]
    assert searches[2] == searches.at(2, 0) and searches[-1] == searches[2] and len(searches[:2]) == 2
    with pytest.raises(IndexError):
        searches[3]


def starspace(folder, *, documents: int = 5):
    """Files in StarSpace's layout."""
    folder.mkdir(exist_ok=True)
    (folder / "wikipedia_train250k.txt").write_text("a one\ta two\ta three\nb one\tb two\n")
    for name in ("dev", "test"):
        (folder / f"wikipedia_{name}10k.txt").write_text(f"{name} query\trest one\trest two\nq2\tr2\n")
        lines = [f"doc {name} {i}\tmore\n" for i in range(documents)]
        (folder / f"wikipedia_{name}_basedocs.txt").write_text("".join(lines))
    return WikipediaSearchConfig(
        source=folder, training="250k", unverified=True, data_dir=folder / "prepared"
    )


def test_starspace_files(tmp_path):
    config = starspace(tmp_path / "wiki")
    train, test = config.read("train"), config.read("test")
    assert len(train.examples) == 2 and "official" in train.note
    assert test.examples[0].context == ("test query",) and test.examples[0].label_text == "rest one rest two"
    assert list(test.shared) == [f"doc test {i} more" for i in range(5)]
    assert config.read("valid").examples[0].context == ("dev query",)
    with pytest.raises(InputError, match="size and md5 are not known.*task.unverified"):
        dataclasses.replace(config, unverified=False).read("test")
    with pytest.raises(InputError, match=r"wikipedia_shuf_train5M.txt: .*missing; .* StarSpace's"):
        dataclasses.replace(config, training="5M").read("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nalone\n", ":2: expected at least 2 sentences separated by tabs, got 1"),
        (b"a\tb\nb\tc\xe9\n", ":2: not valid UTF-8: .* at byte 3"),
    ],
)
def test_bad_starspace_lines_are_named(tmp_path, content, message):
    (tmp_path / "f.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(parse_starspace(tmp_path / "f.txt", least=2))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: expected an object with a title"),
        ('{"title": "a"}', "got KeyError"),
        ('{"title": "a", "sentences": "one"}', "got TypeError"),
        ('{"title": 3, "sentences": ["one"]}', "got TypeError"),
        ("[]", "got TypeError"),
        ('{"title": "a", "paragraphs": [3]}', "got TypeError"),
        ('{"title": "a", "text": "\\ud800"}', "got UnicodeEncodeError"),
        ("[" * 100_000, "got RecursionError"),
    ],
)
def test_bad_articles_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "x", "text": "One. Two! Three?"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        parse_articles(path)
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        parse_articles(path)
    with pytest.raises(InputError, match="none.jsonl: the file is missing"):
        parse_articles(tmp_path / "none.jsonl")


def test_texts_and_paragraphs_become_sentences_and_titles_stay_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"title": "x", "text": "One. Two! Three?"}\r\n\r\n'
        b'{"title": "x", "paragraphs": ["One. Two", " Three. "]}\r\n'
    )
    one, two = parse_articles(path)
    assert one == Article("x", ("One.", "Two!", "Three?"))
    assert two == Article("x (2)", ("One.", "Two", "Three."))
    path.write_text("".join(f'{{"title": "{title}", "text": "a"}}\n' for title in ("x", "x (2)", "x", "x")))
    assert [a.title for a in parse_articles(path)] == ["x", "x (2)", "x (3)", "x (4)"]


@pytest.mark.parametrize("changes", [{"n_documents": 0}, {"test_fraction": 0.0}, {"valid_fraction": 0.95}])
def test_settings_that_cannot_work_are_refused(changes):
    with pytest.raises(InputError) as caught:
        WikipediaSearchConfig(**changes)
    ((name, value),) = changes.items()
    assert (caught.value.argument, caught.value.got) == (f"task.{name}", value)


def test_counts_and_tfidf_of_real_articles():
    """Of 10,001 articles TF-IDF finds about every ninth: they are read as they should be."""
    folder = shared_data("article_search")
    articles = parse_articles(folder / "foldoc.jsonl")
    assert len(articles) == 11_620
    assert sum(len(a.sentences) >= 2 for a in articles) == 8_223
    assert sum(len(a.sentences) for a in articles) == 41_434
    assert len(parse_articles(folder / "wikipedia_articles.jsonl")) == 271

    config = WikipediaSearchConfig(articles=folder / "foldoc.jsonl")
    test = config.read("test")
    fit_on = list(training_texts(config, config.read("train").examples))
    result = tfidf_ranking(test.examples, fit_on, shared=test.shared)
    low, high = result.recall_interval(1)
    assert result.n_candidates == 10_001 and low < 0.108 < high
    assert 0.09 < result.recall(1) < 0.14
