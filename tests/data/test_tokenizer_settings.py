"""tokenizer_config.json over tokenizer.json: applied as transformers 5.24 does, or refused."""

import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from polyjax.data.huggingface_tokenizer import read_tokenizer
from polyjax.errors import InputError

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*MARKS, "hello", "Hello", "e", "é", "É", "日", "本", "日本"]
NAMED = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def wordpiece():
    made = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def byte_level():
    vocabulary = {p: i for i, p in enumerate([*MARKS, "a", "Ġ", "Ġa"])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def unigram(*parts):
    pieces = [(p, -1.0) for p in [*MARKS, "a", "A", "▁", "▁a", "!", "e", "é"]]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), *parts])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always")])
    return made


def folder(path, made, **settings):
    made.add_special_tokens(MARKS)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(NAMED | settings))
    return path


APPLIED = {
    "lower case": (wordpiece, "Bert", {"do_lower_case": True}, "Hello", ["hello"]),
    "not lower case": (wordpiece, "Bert", {"do_lower_case": False}, "Hello", ["Hello"]),
    "of a fast class": (wordpiece, "ElectraFast", {"do_lower_case": False}, "Hello", ["Hello"]),
    "of another class": (wordpiece, "PreTrainedTokenizerFast", {"do_lower_case": False}, "Hello", ["hello"]),
    "accents stay": (wordpiece, "MPNet", {"strip_accents": False}, "É", ["é"]),
    "accents go": (wordpiece, "DistilBert", {"strip_accents": None}, "É", ["e"]),
    "characters alone": (wordpiece, "Bert", {"tokenize_chinese_chars": True}, "日本", ["日", "本"]),
    "characters together": (wordpiece, "Bert", {"tokenize_chinese_chars": False}, "日本", ["日本"]),
    "a space before": (byte_level, "Roberta", {"add_prefix_space": True}, "a", ["Ġa"]),
    "no space before": (byte_level, "Roberta", {"add_prefix_space": False}, "a", ["a"]),
    "a mark before": (unigram, "XLMRoberta", {"add_prefix_space": True}, "a", ["▁a"]),
    "no mark before": (unigram, "Camembert", {"add_prefix_space": False}, "a", ["a"]),
    "an added token": (
        wordpiece,
        "Bert",
        {"added_tokens_decoder": {"13": {"content": "tok1", "special": True}, "2": {"content": "[CLS]"}}},
        "hello tok1",
        ["hello", "tok1"],
    ),
    "a further special token": (wordpiece, "", {"extra_special_tokens": ["tok1"]}, "tok1", ["tok1"]),
}


@pytest.mark.parametrize(("make", "kind", "settings", "text", "tokens"), APPLIED.values(), ids=APPLIED)
def test_what_the_settings_say_is_done(tmp_path, make, kind, settings, text, tokens):
    named = {"tokenizer_class": kind if "Fast" in kind else f"{kind}Tokenizer"}
    made = read_tokenizer(folder(tmp_path, make(), **named, **settings))
    (ids,) = made.encode([text])
    assert [made.token(id_) for id_ in ids] == tokens
    again = tmp_path / "again"
    again.mkdir()
    made.save(again)
    assert read_tokenizer(again).encode([text]) == [ids], "a run keeps it"


lowered = lambda: unigram(normalizers.Lowercase())  # noqa: E731
REFUSED = {
    "albert in lower case": (unigram, "Albert", {"do_lower_case": True}),
    "deberta not in lower case": (lowered, "DebertaV2", {"do_lower_case": False}),
    "deberta by punctuation": (unigram, "DebertaV2", {"split_by_punct": True}),
    "albert without accents": (unigram, "Albert", {"keep_accents": False}),
    "no normalizer of BERT": (lowered, "Bert", {"strip_accents": True}),
    "another mark after a text": (wordpiece, "Bert", {"sep_token": "[CLS]"}),
    "another unknown token": (wordpiece, "Bert", {"unk_token": "[MASK]"}),
    "an added token of another id": (wordpiece, "Bert", {"added_tokens_decoder": {"20": "tok1"}}),
    "a token that is no text": (wordpiece, "Bert", {"pad_token": 5}),
    "a switch that is a text": (wordpiece, "Bert", {"do_lower_case": "yes"}),
    "a list of tokens by id": (wordpiece, "Bert", {"added_tokens_decoder": [1]}),
    "special tokens that are a text": (wordpiece, "Bert", {"additional_special_tokens": "tok1"}),
}


@pytest.mark.parametrize(("make", "kind", "settings"), REFUSED.values(), ids=REFUSED)
def test_settings_that_contradict_the_file_are_refused(tmp_path, make, kind, settings):
    with pytest.raises(InputError) as refused:
        read_tokenizer(folder(tmp_path, make(), tokenizer_class=f"{kind}Tokenizer", **settings))
    assert refused.value.argument == str(tmp_path / "tokenizer_config.json")
    assert next(iter(settings)) in str(refused.value)
