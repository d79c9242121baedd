"""Ids of texts: the tokenizer's own, made once, kept in memory or in a file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyjax.data import token_store
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.token_store import TokenStore

TEXTS = ["a", "bc", "", "ddd", "bc", "e f"]


class Counting:
    """A tokenizer of code points that counts the texts it is given, and is saved as its shift."""

    vocab_size, pad_id, start_id, end_id, separator_ids, mask_id = 200, 0, 1, 2, (3,), 4

    def __init__(self, shift=0):
        self.shift, self.seen = shift, 0

    def encode(self, texts):
        self.seen += len(texts)
        return [[ord(letter) % 100 + self.shift for letter in text] for text in texts]

    def save(self, folder):
        (folder / "shift").write_text(str(self.shift))


@pytest.fixture(autouse=True)
def _few_are_filed(monkeypatch):
    monkeypatch.setattr(token_store, "LEAST_FILED", 3)


def assert_ids(store):
    tokenizer = Counting(store.tokenizer.shift)
    for text in [*TEXTS, "never added"]:
        assert store.ids(text) == tokenizer.encode([text])[0]
        assert store.length(text) == len(text)


@pytest.mark.parametrize("filed", [False, True])
def test_ids_are_the_tokenizers_and_each_text_is_tokenised_once(tmp_path, filed):
    store = TokenStore(Counting(), tmp_path / "tokens" if filed else None)
    store.add(TEXTS)
    store.add([*TEXTS, "x"])
    store.add(["x", "y", "z", "zz"])
    assert store.tokenizer.seen == 5 + 1 + 3
    assert_ids(store)
    assert len(list((tmp_path / "tokens").glob("*"))) == 2 * filed  # the one text alone is in no file


def test_the_next_store_reads_what_the_first_wrote(tmp_path):
    TokenStore(Counting(), tmp_path).add(TEXTS)
    store = TokenStore(Counting(), tmp_path)
    store.add(TEXTS)
    assert store.tokenizer.seen == 0
    assert isinstance(store._tables[0].flat, np.memmap)
    assert_ids(store)


@pytest.mark.parametrize(("shift", "texts"), [(1, TEXTS), (0, [*TEXTS, "more"]), (0, TEXTS[1:])])
def test_another_tokenizer_or_other_texts_have_a_file_of_their_own(tmp_path, shift, texts):
    TokenStore(Counting(), tmp_path).add(TEXTS)
    store = TokenStore(Counting(shift), tmp_path)
    store.add(texts)
    assert store.tokenizer.seen > 0
    assert_ids(store)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-3], lambda content: b"", lambda content: content[:128] + b"\7" * 56],
    ids=["cut", "empty", "other"],
)
def test_a_damaged_file_is_named_and_made_again(tmp_path, damage, capsys):
    TokenStore(Counting(), tmp_path).add(TEXTS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    store = TokenStore(Counting(), tmp_path)
    store.add(TEXTS)
    assert_ids(store)
    assert path.read_bytes() == whole
    assert "is made again" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_cannot_be_written_costs_the_file_only(tmp_path, capsys):
    (tmp_path / "tokens").write_text("a file, not a folder")
    store = TokenStore(Counting(), tmp_path / "tokens")
    store.add(TEXTS)
    assert_ids(store)
    assert "could not be written" in " ".join(capsys.readouterr().out.split())


def test_a_server_forgets_what_it_was_asked_but_not_a_split(monkeypatch):
    monkeypatch.setattr(token_store, "MAX_LOOSE_TEXTS", 2)
    store = TokenStore(Counting())
    store.add(TEXTS)
    for text in "qrst":
        store.add([text])
    seen = store.tokenizer.seen
    assert store.ids("bc") and store.ids("t")
    assert store.tokenizer.seen == seen
    assert store.ids("q") and store.tokenizer.seen == seen + 1
    assert len(store._loose) <= 3


turns = st.lists(st.text("abc ", max_size=12), max_size=4)


@settings(deadline=None)
@given(turns, st.text("abc", max_size=12), st.sampled_from(["standard", "parlai"]), st.booleans())
def test_lengths_are_those_of_the_sequences(context, candidate, layout, kept):
    text = TextEncoder(
        Counting(), TextConfig(max_turns=3, context_tokens=9, candidate_tokens=6, layout=layout)
    )
    if kept:
        text.prepare([*context, candidate])
    assert text.context_length(context) == len(text.context(context))
    assert text.candidate_length(candidate) == len(text.candidate(candidate))
    pair, _ = text.pair(text.context(context), text.candidate(candidate))
    assert text.pair_length(text.context_length(context), text.candidate_length(candidate)) == len(pair)
