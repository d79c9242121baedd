"""The default task: counts, candidates, and the rules on a corpus made by hand."""

import json

import pytest

from polyjax import Example, InputError
from polyjax.data.candidates import add_candidates
from polyjax.data.identity import text_key
from polyjax.data.tasks import chitchat, chitchat_corpus
from polyjax.data.tasks.chitchat import ChitchatConfig

COUNTS = {
    "train": (2927, 104046, 95664),
    "valid": (157, 5150, 4716),
    "test": (132, 4236, 3884),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("split", COUNTS)
def test_counts(split, data_dir):
    conversations = chitchat.read_conversations(split, data_dir)
    all_examples, long_examples = (chitchat.make_examples(conversations, min_label_words=n) for n in (0, 3))
    assert (len(conversations), len(all_examples), len(long_examples)) == COUNTS[split]


def test_no_conversation_is_in_two_splits(data_dir):
    ids = [c.id for split in COUNTS for c in chitchat.read_conversations(split, data_dir)]
    assert len(ids) == len(set(ids))


@pytest.fixture(scope="module")
def rows(data_dir):
    return ChitchatConfig(data_dir=data_dir).read("test").examples


def test_candidates_are_twenty_different_ones_with_the_label_once(rows):
    labels = {row.label_text for row in rows}
    for row in rows:
        keys = [text_key(text) for text in row.candidates]
        assert len(set(keys)) == 20
        negatives = [key for i, key in enumerate(keys) if i != row.label]
        assert not set(negatives) & {text_key(turn) for turn in row.context}
        assert set(row.candidates) <= labels


def test_the_labels_place_is_uniform(rows):
    places = [row.label for row in rows]
    expected = len(rows) / 20
    chi_square = sum((places.count(i) - expected) ** 2 / expected for i in range(20))
    assert chi_square < 43.8  # 0.1% of the chi-square distribution with 19 degrees of freedom


def test_candidates_do_not_depend_on_order_or_other_rows_draws(rows, data_dir):
    conversations = chitchat.read_conversations("test", data_dir)
    examples = chitchat.make_examples(conversations, min_label_words=3)
    again = add_candidates(examples, n_candidates=20, seed=0)
    assert again == rows
    assert add_candidates(examples, n_candidates=20, seed=1) != rows


def test_a_context_is_at_most_twenty_turns(rows):
    assert max(len(row.context) for row in rows) == 20


def conversation(texts, senders="ab"):
    return {
        "messages": [
            [
                {"text": part, "sender": senders[i % len(senders)]}
                for part in (t if isinstance(t, list) else [t])
            ]
            for i, t in enumerate(texts)
        ]
    }


def test_the_rules_on_a_corpus_made_by_hand(tmp_path):
    long_turn = "word " * 101
    corpus = {
        "joined": conversation([["hi ", "there"], "a  b\nc", "", "three words here", ":)", "ok"]),
        "cut": conversation(["one", "two", "three", "four", long_turn, "never read"]),
        "too short after the cut": conversation(["one", "two", "three", long_turn]),
        "one sender": conversation(["one", "two", "three", "four"], senders="a"),
        "three senders": conversation(["one", "two", "three", "four"], senders="abc"),
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(corpus))
    kept = {c.id: c.turns for c in chitchat_corpus.parse_conversations(path)}
    assert kept == {
        "joined": ("hi there", "a b c", "three words here", ":)", "ok"),
        "cut": ("one", "two", "three", "four"),
    }
    examples = chitchat.make_examples(list(chitchat_corpus.parse_conversations(path)), min_label_words=3)
    assert examples == [
        Example("joined/1", ("hi there",), ("a b c",), 0, "joined"),
        Example("joined/2", ("hi there", "a b c"), ("three words here",), 0, "joined"),
    ]


def test_too_few_labels_for_the_candidates(rows):
    with pytest.raises(
        InputError, match="too few different labels .*: 10, with which some row has [1-9]"
    ) as caught:
        add_candidates(rows[:10], n_candidates=20, seed=0)
    assert (caught.value.argument, caught.value.got) == ("task.n_candidates", 20)


def test_a_label_length_that_empties_the_split(data_dir):
    with pytest.raises(InputError, match="split 'test' has a label of that many words") as caught:
        ChitchatConfig(data_dir=data_dir, min_label_words=1000).read("test")
    assert (caught.value.argument, caught.value.got) == ("task.min_label_words", 1000)


def test_a_changed_corpus_is_refused(monkeypatch):
    monkeypatch.setattr(chitchat_corpus, "DATASET_SHA256", "0" * 64)
    with pytest.raises(
        InputError, match="expected sha256 0000.*, got d2a5d0bf.*pip install chitchat-dataset"
    ):
        chitchat_corpus.corpus_path()


def test_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setattr(chitchat_corpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install chitchat-dataset"):
        chitchat_corpus.corpus_path()
