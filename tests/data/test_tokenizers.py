"""Tokenizers from Hugging Face's files, and SentencePiece trained here."""

import json
import random

import pytest
import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing, TemplateProcessing

from polyjax import InputError
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer, read_tokenizer
from polyjax.data.tokenizers import SentencePieceTokenizer, load_tokenizer, train_sentencepiece

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
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
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
    assert HuggingFaceTokenizer(wordpiece_file).encode(["Hello world hello!"]) == [[4, 5, 6, 4, 10]]


def test_special_tokens_in_a_text_are_text(wordpiece_file):
    tokenizer = HuggingFaceTokenizer(wordpiece_file)
    assert tokenizer.encode(["hello [SEP]"]) == [[4, 7, 9, 8]]
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (0, 2, 3)


@pytest.mark.parametrize("text", ODD)
def test_wordpiece_takes_any_text(wordpiece_file, text):
    tokenizer = HuggingFaceTokenizer(wordpiece_file)
    (ids,) = tokenizer.encode([text])
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {0, 2, 3} & set(ids)


def test_wordpiece_round_trip(wordpiece_file, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    tokenizer = HuggingFaceTokenizer(wordpiece_file)
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


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_a_folder_whose_name_is_not_valid_text_is_read(kind, sentencepiece, wordpiece_file, tmp_path):
    """As Python names a folder in a locale that lacks its characters."""
    folder = tmp_path / "r\udce9"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes valid names only")
    tokenizer = sentencepiece if kind == "sentencepiece" else HuggingFaceTokenizer(wordpiece_file)
    tokenizer.save(folder)
    assert load_tokenizer(folder).encode(["hello"]) == tokenizer.encode(["hello"])


def test_a_vocabulary_larger_than_the_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(InputError) as error:
        train_sentencepiece(corpus, tmp_path / "sentencepiece.model", vocab_size=50000)
    assert error.value.argument == "tokenizer.vocab_size" and error.value.got == 50000
    assert not (tmp_path / "sentencepiece.model").exists()


@pytest.mark.parametrize("kind", [HuggingFaceTokenizer, SentencePieceTokenizer])
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
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path)
    assert error.value.argument == str(tmp_path) and "tokenizer.json" in str(error.value.expected)


def with_config(path, **entries):
    """What tokenizer_config.json beside a tokenizer.json says."""
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    path.with_name("tokenizer_config.json").write_text(json.dumps(names | entries))
    return path


@pytest.mark.parametrize(("entries", "ids"), [({}, [4, 3]), ({"split_special_tokens": True}, [4, 7, 9, 8])])
def test_special_tokens_in_a_text_are_what_the_folder_says(wordpiece_file, tmp_path, entries, ids):
    tokenizer = HuggingFaceTokenizer(with_config(wordpiece_file, **entries))
    assert tokenizer.encode(["hello [SEP]"]) == [ids]
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode(["hello [SEP]"]) == [ids]


def test_a_folder_without_a_config_keeps_its_special_tokens_when_saved(wordpiece_file, tmp_path):
    (tmp_path / "copy").mkdir()
    read_tokenizer(wordpiece_file.parent).save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode(["[SEP]"]) == [[3]]


def test_lower_casing_keeps_special_tokens(wordpiece_file):
    with_config(wordpiece_file)
    cased = tokenizers.Tokenizer.from_file(str(wordpiece_file))
    cased.normalizer = BertNormalizer(lowercase=False)
    cased.save(str(wordpiece_file))
    tokenizer = read_tokenizer(wordpiece_file.parent)
    assert tokenizer.encode(["HELLO [SEP]"]) == [[1, 3]]
    assert tokenizer.lower_cased().encode(["HELLO [SEP]"]) == [[4, 3]]


@pytest.mark.parametrize(
    "entries",
    [
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"tokenizer_class": "XLMRobertaTokenizer"},
        {"tokenizer_class": "DistilBertTokenizerFast"},
    ],
)
def test_tokenizers_that_number_no_segments(wordpiece_file, entries):
    assert HuggingFaceTokenizer(with_config(wordpiece_file)).pair_segments
    assert not HuggingFaceTokenizer(with_config(wordpiece_file, **entries)).pair_segments


def test_the_template_says_what_is_between_two_texts(wordpiece_file):
    tokenizer = tokenizers.Tokenizer.from_file(str(wordpiece_file))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(wordpiece_file))
    read = HuggingFaceTokenizer(with_config(wordpiece_file))
    assert (read.start_id, read.end_id, read.between_ids, read.pair_segments) == (2, 3, (3,), False)


@pytest.mark.parametrize(
    ("single", "pair"),
    [
        ("$A [SEP]", "$A [SEP] $B [SEP]"),
        ("[CLS] $A", "[CLS] $A $B"),
        ("[CLS] [CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    ],
)
def test_other_templates_are_refused(wordpiece_file, single, pair):
    tokenizer = tokenizers.Tokenizer.from_file(str(wordpiece_file))
    tokenizer.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(wordpiece_file))
    with pytest.raises(InputError) as error:
        HuggingFaceTokenizer(wordpiece_file)
    assert error.value.argument == str(wordpiece_file) and "template" in str(error.value.expected)


def test_another_side_of_truncation_is_refused(wordpiece_file):
    with pytest.raises(InputError) as error:
        HuggingFaceTokenizer(with_config(wordpiece_file, truncation_side="left"))
    assert error.value.got == "left"


def test_no_padding_token_is_an_error(wordpiece_file):
    with_config(wordpiece_file)
    assert read_tokenizer(with_config(wordpiece_file, pad_token="<none>").parent, pad_id=9).pad_id == 9
    with pytest.raises(InputError, match="no padding token"):
        read_tokenizer(wordpiece_file.parent)


def test_vocabulary_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(InputError) as error:
        read_tokenizer(tmp_path)
    assert error.value.argument == str(tmp_path / "vocab.txt") and "[CLS]" in str(error.value.problem)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(InputError, match="GPT2Tokenizer cannot be made"):
        read_tokenizer(tmp_path)
