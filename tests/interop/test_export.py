"""Models as folders of sentence-transformers: written, and read again, with the same vectors and scores."""

import json
import re
import shutil

import numpy as np
import pytest
from flax import nnx

from conftest import ENCODERS, golden_encoder
from polyjax import BiConfig, CrossConfig, InputError, PolyConfig, Ranker
from polyjax.cli import main as cli
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import train_sentencepiece
from polyjax.inference.scorer import TextScorer
from polyjax.interop.parlai.heads import OverPadding, ParlaiBiConfig
from polyjax.interop.parlai.layout import ParlaiLayout
from polyjax.nn.heads import DenseConfig, GatedCrossConfig
from polyjax.nn.scorers import make_scorer
from polyjax.runs import ModelCard, write_model

TEXTS = ["how are you?", "I like tea with [SEP] and milk", "", "a b c d e f g"]
FOLDERS = (
    *("bert", "roberta", "albert", "deberta_v2", "gte", "st_bert_prompts", "st_bert_prompts_excluded"),
    *("st_bert_cls_mean_concat", "st_bert_cls_dense_normalize_classic", "st_lower_case_classic"),
    *("st_modernbert_cls", "st_xlm_roberta_mean_normalize", "bert_vocab_txt_only"),
)
CROSS = ("ce_bert_sigmoid_classic", "ce_deberta_v2", "ce_modernbert_mean", "ce_roberta", "ce_distilbert")


def expected_of(folder) -> dict:
    return json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bi_encoder_comes_back_with_its_vectors(name, tmp_path):
    folder, golden = golden_encoder(name)
    expected = expected_of(folder)
    Ranker.load(folder).save_pretrained(tmp_path / "out")
    back = Ranker.load(tmp_path / "out")
    np.testing.assert_allclose(back.embed(expected["texts"]), golden["embeddings"], rtol=0, atol=1e-5)
    for prompt in expected.get("prompts", ()):
        if prompt == "document" and "passage" in expected["prompts"]:
            continue  # it was empty, and becomes the one that candidates have
        vectors = back.embed(expected["texts"], prompt=prompt)
        np.testing.assert_allclose(vectors, golden[f"embeddings_prompt_{prompt}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "default", "used", "written"),
    [
        ({"query": "q: ", "document": "", "passage": "p: "}, None, ("q: ", "p: "), ("q: ", "p: ")),
        ({"query": "", "document": "", "task": "t: "}, "task", ("", ""), ("", "")),
        ({"query": "", "task": "t: "}, "task", ("", "t: "), ("", "t: ")),
        ({"query": "q: ", "corpus": "c: "}, "query", ("q: ", "c: "), ("q: ", "c: ")),
        ({"query": "q: "}, "query", ("q: ", ""), ("q: ", "")),
    ],
)
def test_prompts_of_roles_are_those_that_sentence_transformers_reads(
    tmp_path, prompts, default, used, written
):
    """``encode_query`` and ``encode_document`` take the first name that is there, and else the default."""
    folder = tmp_path / "in"
    shutil.copytree(golden_encoder("st_bert_prompts")[0], folder, copy_function=shutil.copyfile)
    path = folder / "config_sentence_transformers.json"
    entries = json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": default}
    path.write_text(json.dumps(entries))
    ranker = Ranker.load(folder)
    config = ranker.scorer.text.config
    assert (config.context_prompt, config.candidate_prompt) == used
    ranker.save_pretrained(tmp_path / "out")
    out = json.loads((tmp_path / "out" / path.name).read_text())

    def first(*names):
        name = next((name for name in names if name in out["prompts"]), out["default_prompt_name"])
        return "" if name is None else out["prompts"][name]

    assert (first("query"), first("document", "passage", "corpus")) == written
    again = Ranker.load(tmp_path / "out").scorer.text.config
    assert (again.context_prompt, again.candidate_prompt) == used
    assert again.embedding_prompt == config.embedding_prompt


@pytest.mark.parametrize("name", CROSS)
def test_a_cross_encoder_comes_back_with_its_scores(name, tmp_path):
    folder, golden = golden_encoder(name)
    pairs = expected_of(folder)["pairs"]
    Ranker.load(folder).save_pretrained(tmp_path / "out")
    back = Ranker.load(tmp_path / "out")
    scores = back.score_batch([a for a, _ in pairs], [[b] for _, b in pairs])
    np.testing.assert_allclose(np.concatenate(scores), golden["scores"], rtol=0, atol=1e-5)


def tokenizer() -> HuggingFaceTokenizer:
    """As runs from minilm have it: special tokens that a text spells out are text."""
    return HuggingFaceTokenizer(golden_encoder("st_bert_mean")[0] / "tokenizer.json", config=False)


def ranker_of(head, *, text=None, vocabulary=None, encoder="bert", **changes) -> Ranker:
    """A model as it is before training, of any shape."""
    own = vocabulary or tokenizer()
    shape = {"vocab_size": own.vocab_size, "n_positions": 48} | changes
    settings = type(ENCODERS[encoder])(**vars(ENCODERS[encoder]) | shape)
    scorer = make_scorer(settings, head, rngs=nnx.Rngs(1))
    lengths = TextConfig(**{"context_tokens": 32, "candidate_tokens": 32} | (text or {}))
    return Ranker(TextScorer(scorer, TextEncoder(own, lengths)))


HEADS = {
    "unit": BiConfig(shared_encoder=True, normalize=True, score_scale=20.0),
    "products": BiConfig(shared_encoder=True, reduction="max"),
    "order": BiConfig(shared_encoder=True, reduction="mean", also=("first", "last"), normalize=True),
    "dense": BiConfig(
        shared_encoder=True,
        reduction="mean_sqrt",
        also=("weighted_mean",),
        dense=(DenseConfig(dim=8, bias=False), DenseConfig(dim=6, unit_input=True, activation="gelu")),
        normalize=True,
        raw_embeddings=True,
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_runs_come_back(name, tmp_path):
    ranker = ranker_of(HEADS[name], text={"context_prompt": "q: ", "candidate_prompt": "d: "})
    ranker.save_pretrained(tmp_path / "out")
    back = Ranker.load(tmp_path / "out")
    for prompt in ("query", "document", ""):
        np.testing.assert_allclose(
            back.embed(TEXTS, prompt=prompt), ranker.embed(TEXTS, prompt=prompt), rtol=0, atol=1e-5
        )
    scale = HEADS[name].score_scale
    np.testing.assert_allclose(scale * back.score("tea", TEXTS), ranker.score("tea", TEXTS), atol=2e-4)


def test_a_trained_cross_encoder_with_berts_classifier_comes_back(tmp_path):
    ranker = ranker_of(CrossConfig(reduction="first", dense="tanh"))
    ranker.save_pretrained(tmp_path / "out")
    back = Ranker.load(tmp_path / "out")
    np.testing.assert_allclose(back.score("tea", TEXTS), ranker.score("tea", TEXTS), rtol=0, atol=1e-5)


def test_a_cross_encoders_prompt_is_written_where_sentence_transformers_reads_it(tmp_path):
    """It reads config_sentence_transformers.json only beside a modules.json."""
    prompt = {"context_prompt": "find: ", "embedding_prompt": "find: ", "prompts": (("q", "find: "),)}
    ranker = ranker_of(CrossConfig(reduction="first", dense="tanh"), text=prompt)
    ranker.save_pretrained(tmp_path / "out")
    (module,) = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert module["type"].endswith(".Transformer") and module["path"] == ""
    back = Ranker.load(tmp_path / "out")
    assert back.scorer.text.config.context_prompt == "find: "
    np.testing.assert_allclose(back.score("tea", TEXTS), ranker.score("tea", TEXTS), rtol=0, atol=1e-5)


SHARED = {"shared_encoder": True}


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: ranker_of(BiConfig()), "two separate transformers"),
        (lambda: ranker_of(PolyConfig(n_codes=4, **SHARED)), "a poly-encoder"),
        (lambda: ranker_of(ParlaiBiConfig()), "a bi-encoder with settings of ParlaiBiConfig"),
        (lambda: ranker_of(BiConfig(**SHARED, reduction=OverPadding(kind="max"))), "OverPadding"),
        (lambda: ranker_of(BiConfig(**SHARED), text={"layout": ParlaiLayout()}), "a layout"),
        (lambda: ranker_of(BiConfig(**SHARED), output_scaling=0.06), "encoder.output_scaling"),
        (lambda: ranker_of(GatedCrossConfig()), "a cross-encoder with settings of GatedCrossConfig"),
        (lambda: ranker_of(CrossConfig(reduction="mean")), "another head than a EncoderConfig's"),
        (lambda: ranker_of(CrossConfig(dense="tanh"), encoder="nomic_bert"), "no classifier"),
        (lambda: ranker_of(CrossConfig(dense="tanh"), text={"candidate_prompt": "d: "}), "candidate_prompt"),
    ],
)
def test_what_has_no_form_there_is_refused(model, named, tmp_path):
    with pytest.raises(InputError) as error:
        model().save_pretrained(tmp_path / "out")
    assert error.value.argument == "export" and named in error.value.got
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    assert error.value.fix, "what to do instead"


def test_the_fix_of_a_cross_encoder_names_its_familys_head(tmp_path):
    with pytest.raises(InputError) as error:
        ranker_of(CrossConfig(reduction="mean")).save_pretrained(tmp_path / "out")
    assert error.value.fix == "train with `head.reduction` first, `head.dense` tanh"


def test_other_shapes_and_vocabularies_are_refused(tmp_path):
    with pytest.raises(InputError) as error:
        ranker_of(BiConfig(**SHARED), norm="pre", embedding_norm=False).save_pretrained(tmp_path / "out")
    assert error.value.argument == "encoder"
    words = [f"{a}{b} {b}{a}" for a in "abcdefghijklmnop" for b in "qrstuvwxyz"]
    pieces = train_sentencepiece(
        words, tmp_path / "pieces.model", vocab_size=300, kind="bpe", seed=0, shrink=True
    )
    with pytest.raises(InputError) as error:
        ranker_of(BiConfig(**SHARED), vocabulary=pieces).save_pretrained(tmp_path / "out")
    assert error.value.argument == "export" and "SentencePieceTokenizer" in error.value.got


def test_rounded_weights_are_refused(tmp_path):
    folder, _ = golden_encoder("st_bert_mean")
    with pytest.raises(InputError) as error:
        Ranker.load(folder, dtype="bfloat16").save_pretrained(tmp_path / "out")
    assert error.value.argument == "dtype" and error.value.got == "bfloat16"


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "kept").write_text("mine")
    for place in (tmp_path, tmp_path / "kept"):
        with pytest.raises(InputError) as error:
            ranker_of(HEADS["unit"]).save_pretrained(place)
        assert error.value.problem == "the folder already exists"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_pooling_has_both_styles_of_keys_and_the_page_its_metadata(tmp_path):
    apart = {"context_tokens": 24, "candidate_tokens": 16}
    ranker_of(HEADS["unit"], text=apart).save_pretrained(tmp_path / "out", name="org/tea")
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode"] == "mean" and pooling["pooling_mode_mean_tokens"] is True
    assert sum(value is True for name, value in pooling.items() if name.startswith("pooling_mode_")) == 1
    lengths = json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())
    assert lengths["max_seq_length"] == 24
    page = (tmp_path / "out" / "README.md").read_text()
    _, metadata, text = re.split(r"^---$", page, maxsplit=2, flags=re.MULTILINE)
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in metadata
    assert 'SentenceTransformer("org/tea")' in text and "multiplied by 20" in text
    assert "to 24 tokens and documents to 16" in text


def test_a_run_is_exported_by_the_command(tmp_path, monkeypatch, capsys):
    ranker = ranker_of(HEADS["unit"])
    text = ranker.scorer.text
    scorer = make_scorer(ranker.scorer.settings.encoder, HEADS["unit"], rngs=nnx.Rngs(1))
    card = ModelCard(model=ranker.scorer.settings, text=text.config)
    write_model(tmp_path / "run", scorer, card, text.tokenizer, config={"type": "Test"})
    arguments = ["polyjax", "export", "sentence-transformers", str(tmp_path / "run"), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    cli.main()
    assert "a SentenceTransformer" in capsys.readouterr().err
    np.testing.assert_allclose(Ranker.load(tmp_path / "out").embed(TEXTS), ranker.embed(TEXTS), atol=1e-5)
    with pytest.raises(SystemExit):
        cli.main()
    assert "already exists" in capsys.readouterr().err
