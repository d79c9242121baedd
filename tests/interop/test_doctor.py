"""``polyjax doctor``: ten lines about a folder."""

import json

import pytest
from flax import nnx

from conftest import golden_encoder, tiny
from polyjax import BiConfig, make_scorer
from polyjax.cli import main as cli
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig
from polyjax.interop.doctor import doctor
from polyjax.runs import ModelCard, write_model


def lines_of(name: str) -> dict[str, str]:
    lines = doctor(golden_encoder(name)[0])
    assert len(lines) <= 10 and not any("\n" in line for line in lines)
    return dict(line.split(": ", 1) for line in lines)


def test_a_bi_encoder_with_prompts():
    told = lines_of("st_bert_prompts_excluded")
    assert told["kind"].startswith("bi-encoder, bert, modules Transformer, Pooling")
    assert told["reduction"].startswith("mean") and "its Pooling module" in told["reduction"]
    assert "their tokens are not pooled" in told["prompts"] and told["score"] == "cosine"
    assert told["loads"] == "yes"


def test_a_cross_encoder():
    told = lines_of("ce_modernbert_mean")
    assert told["kind"].startswith("cross-encoder, modernbert") and told["loads"] == "yes"
    assert told["score"] == "a dense layer (gelu) and a linear one, activation sigmoid"
    assert told["reduction"].startswith("mean") and told["missing"] == "nothing"


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("bert", "missing", "modules.json (the mean of real tokens is taken)"),
        ("bert_odd_config", "length", "64 tokens (the encoder's positions)"),
        ("st_lower_case_classic", "tokenizer", "texts are lower-cased first"),
        ("st_bert_cls_dense_normalize_classic", "reduction", "(tanh), length 1 (its Pooling module)"),
        ("st_bert_mean_normalize_classic", "length", "36 tokens (sentence_bert_config.json)"),
    ],
)
def test_lines_of_other_folders(name, line, words):
    assert words in lines_of(name)[line]


@pytest.mark.parametrize(
    "name", ["faulty_missing_tensor", "faulty_no_tokenizer", "faulty_unknown_pooling", "faulty_wrong_shape"]
)
def test_the_last_line_of_a_faulty_folder_names_the_fault(name, monkeypatch, capsys):
    folder, _ = golden_encoder(name)
    last = doctor(folder)[-1]
    for wanted in json.loads((folder / "expected.json").read_text())["message_should_name"]:
        assert last.startswith("problem: ") and wanted in last
    monkeypatch.setattr("sys.argv", ["polyjax", "doctor", str(folder)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.err.startswith("problem: ")
    assert printed.out.startswith(f"folder: {folder}\n")


def test_a_run_directory_and_a_folder_that_is_none(tmp_path):
    tokenizer = HuggingFaceTokenizer(golden_encoder("st_bert_mean")[0] / "tokenizer.json", config=False)
    scorer = make_scorer(tiny(vocab_size=tokenizer.vocab_size), BiConfig(), rngs=nnx.Rngs(0))
    card = ModelCard(model=scorer.settings, text=TextConfig(context_tokens=40, candidate_tokens=20))
    write_model(tmp_path / "run", scorer, card, tokenizer, config={"type": "Test"})
    told = dict(line.split(": ", 1) for line in doctor(tmp_path / "run"))
    assert told["kind"] == "run directory of a bi-encoder" and told["loads"] == "yes"
    assert told["length"] == "contexts 40 tokens, candidates 20" and told["checkpoints"] == "0"
    assert doctor(tmp_path / "nothing")[-1].startswith("problem: ")


def test_a_folder_with_its_model_below_says_where(tmp_path):
    model = tmp_path / "package" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    assert f"there is one in {model}" in doctor(tmp_path / "package")[-1]
