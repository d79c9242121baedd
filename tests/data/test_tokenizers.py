"""WordPiece from a tokenizer.json, and SentencePiece trained here."""

import random

import pytest
import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from polyjax import InputError
from polyjax.data.tokenizers import (
    SentencePieceTokenizer,
    WordPieceTokenizer,
    load_tokenizer,
    train_sentencepiece,
)

ODD = [
    "",
    " ",
    "naïve café",
    "日本語テキスト",
    "🙂🙂",
    "a\x00b",
    "tab\there",
    "</s> <s> <pad> <sep> <mask>",
    "\u200b",
    "x" * 5000,
]


@pytest.fixture
def wordpiece_file(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "wor", "##ld", "[", "]", "sep", "!"]
    tokenizer = tokenizers.Tokenizer(WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def corpus():
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=8)) for _ in range(500)]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sentencepiece(request, corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "sentencepiece.model"
    return train_sentencepiece(corpus, path, vocab_size=400, kind=request.param)


def test_wordpiece_ignores_the_files_own_truncation_and_padding(wordpiece_file):
    assert WordPieceTokenizer(wordpiece_file).encode(["Hello world hello!"]) == [[4, 5, 6, 4, 10]]


def test_special_tokens_in_a_text_are_text(wordpiece_file):
    tokenizer = WordPieceTokenizer(wordpiece_file)
    assert tokenizer.encode(["hello [SEP]"]) == [[4, 7, 9, 8]]
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (0, 2, 3)


@pytest.mark.parametrize("text", ODD)
def test_wordpiece_takes_any_text(wordpiece_file, text):
    tokenizer = WordPieceTokenizer(wordpiece_file)
    (ids,) = tokenizer.encode([text])
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {0, 2, 3} & set(ids)


def test_wordpiece_round_trip(wordpiece_file, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    tokenizer = WordPieceTokenizer(wordpiece_file)
    tokenizer.save(folder)
    assert load_tokenizer(folder).encode(["hello world"]) == tokenizer.encode(["hello world"])


@pytest.mark.parametrize("text", ODD)
def test_sentencepiece_takes_any_text_and_yields_no_special_token(sentencepiece, text):
    (ids,) = sentencepiece.encode([text])
    special = {
        sentencepiece.pad_id,
        sentencepiece.start_id,
        sentencepiece.end_id,
        *sentencepiece.separator_ids,
    }
    assert all(0 <= i < sentencepiece.vocab_size for i in ids)
    assert not special & set(ids)


def test_byte_fallback_leaves_no_unknown_token(sentencepiece):
    (ids,) = sentencepiece.encode(["日本語"])
    assert len(ids) >= 9  # three bytes a character
    assert 1 not in ids


def test_sentencepiece_training_is_reproducible_and_round_trips(sentencepiece, corpus, tmp_path):
    sentencepiece.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(corpus[:20]) == sentencepiece.encode(corpus[:20])
    assert sentencepiece.vocab_size == 400


def test_a_vocabulary_larger_than_the_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(InputError, match="--tokenizer.vocab-size 50000 does not fit the corpus"):
        train_sentencepiece(corpus, tmp_path / "sentencepiece.model", vocab_size=50000)
    assert not (tmp_path / "sentencepiece.model").exists()


@pytest.mark.parametrize("kind", [WordPieceTokenizer, SentencePieceTokenizer])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff garbage", b"{}"])
def test_missing_and_broken_files_are_one_line(tmp_path, kind, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        kind(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
