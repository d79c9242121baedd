"""Ids of texts: the tokenizer's own, made once, kept in memory or in a file."""

import hashlib
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyjax.data import dictionary, token_store
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.token_store import TokenStore
from polyjax.data.tokenizers import train_sentencepiece
from polyjax.interop.huggingface import minilm_folder
from polyjax.interop.parlai.layout import ParlaiLayout
from polyjax.interop.parlai.model import load_parlai

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
        assert store.ids(text).tolist() == tokenizer.encode([text])[0]
        assert store.ids(text).dtype == np.int32
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
    assert isinstance(store._tables[0].flat.base, np.memmap)
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


def test_a_server_forgets_what_it_was_asked_long_ago_but_not_what_is_kept():
    entry = 4 * 3 + sys.getsizeof("abc") + token_store._OVERHEAD
    store = TokenStore(Counting(), limit=3 * entry)
    store.add(["aaa", "bbb"], keep=True)
    for text in ("ccc", "ddd", "eee", "ccc", "fff"):
        store.add([text])
    assert store.n_bytes == 3 * entry
    seen = store.tokenizer.seen
    for text in ("aaa", "bbb", "eee", "ccc", "fff"):
        store.ids(text)
    assert store.tokenizer.seen == seen
    store.ids("ddd")
    assert store.tokenizer.seen == seen + 1, "the one that was not asked for since"


def test_tables_are_forgotten_as_well_but_never_what_is_asked_for_now():
    store = TokenStore(Counting(), limit=2000)
    store.add([f"kept {i}" for i in range(9)], keep=True)
    store.add([f"one {i}" for i in range(9)])
    store.add([f"two {i}" for i in range(9)])
    assert [len(table.places) for table in store._tables] == [9, 9] and store.n_bytes > 2000
    seen = store.tokenizer.seen
    store.add(["two 3"])
    assert store.tokenizer.seen == seen and store.ids("two 8") is not None
    store.add(["alone"])
    assert [len(table.places) for table in store._tables] == [9] and store.n_bytes < 2000
    store.add(["kept 1", "two 3"])
    assert store.tokenizer.seen == seen + 2
    store.add([f"one {i}" for i in range(9)], keep=True)
    store.add(["again"])
    assert store.ids("one 5") is not None and store.tokenizer.seen == seen + 12


def test_a_very_long_text_is_not_kept_for_later_ones():
    store = TokenStore(Counting())
    long = "word " * 200_000
    store.add(["short", long])
    assert store.n_bytes > len(long)
    seen = store.tokenizer.seen
    store.add([long, "another"])
    assert len(store.ids(long)) == len(long) and store.tokenizer.seen == seen + 1
    store.add(["third"])
    assert store.n_bytes < 2000 and len(store.ids("short")) == 5 and store.tokenizer.seen == seen + 2


def test_what_was_recent_can_be_kept():
    store = TokenStore(Counting(), limit=0)
    store.add(["a"])
    store.add(["a"], keep=True)
    store.add(["b"])
    store.add(["c"])
    seen = store.tokenizer.seen
    assert store.ids("a").tolist() == [97] and store.tokenizer.seen == seen == 3
    assert store.n_bytes == token_store._n_bytes("c", store.ids("c")), "of the latest alone"


def test_threads_share_a_store():
    store = TokenStore(Counting(), limit=4000)
    expected = {str(i): [ord(letter) % 100 for letter in str(i)] for i in range(60)}

    def ask(seed):
        draw = np.random.default_rng(seed)
        for _ in range(200):
            some = [str(i) for i in draw.integers(0, 60, draw.integers(1, 6))]
            store.add(some)
            assert [store.ids(text).tolist() for text in some] == [expected[text] for text in some]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert store._recent_bytes == sum(token_store._n_bytes(*item) for item in store._recent.items())


def test_a_store_goes_to_worker_processes():
    store = TokenStore(Counting())
    store.add(["a", "b"], keep=True)
    copy = pickle.loads(pickle.dumps(store))
    copy.add(["a", "c"])
    assert copy.tokenizer.seen == 3 and copy.ids("a").tolist() == [97]


def test_a_dictionary_keeps_the_pieces_of_few_and_short_words(parlai_models, monkeypatch):
    monkeypatch.setattr(dictionary, "KNOWN_WORDS", 1000)
    _, text, _ = load_parlai(parlai_models / "bi_shared_max_trained" / "model")
    text.tokenizer.encode(["warm up"])
    tracemalloc.start()
    try:
        for i in range(5):
            text.tokenizer.encode(["xy" * 1000 + str(i)])
        text.tokenizer.encode([f"{i:x}z{i}" for i in range(5000)])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.5e6


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece", "dictionary", "another"])
def test_the_digest_of_a_tokenizer_is_that_of_its_files(tmp_path, kind, parlai_models, monkeypatch):
    """Also where no temporary folder can be made, for the library's own."""
    match kind:
        case "wordpiece":
            tokenizer = HuggingFaceTokenizer(minilm_folder() / "tokenizer.json")
        case "sentencepiece":
            words = [" ".join(f"w{(i * k) % 97}" for k in range(1, 9)) for i in range(300)]
            tokenizer = train_sentencepiece(words, tmp_path / "s.model", vocab_size=320)
        case "dictionary":
            _, text, _ = load_parlai(parlai_models / "bi_shared_max_trained" / "model")
            tokenizer = text.tokenizer
        case _:
            tokenizer = Counting(7)
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    expected = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        expected.update(path.name.encode() + path.read_bytes())
    if kind != "another":
        monkeypatch.setattr("tempfile.mkdtemp", None)
    assert token_store.tokenizer_digest(tokenizer) == expected.hexdigest()


turns = st.lists(st.text("abc ", max_size=12), max_size=4)


@settings(deadline=None)
@given(turns, st.text("abc", max_size=12), st.sampled_from(["standard", ParlaiLayout()]), st.booleans())
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
