"""Folders of sentence-transformers and transformers give what those compute, from the files alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import golden_encoder, golden_encoders
from polyjax import InputError, Ranker
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer

ENCODERS = (
    *("albert", "bert", "bert_bf16", "bert_for_masked_lm", "bert_fp16", "bert_odd_config"),
    *("bert_prefix_gamma", "bert_sharded", "bert_vocab_txt_only", "deberta_v2", "distilbert", "electra"),
    *("gte", "modernbert", "modernbert_classic", "mpnet", "nomic_bert", "roberta", "xlm_roberta"),
)
SENTENCE = (
    *("st_bert_cls_dense_normalize_classic", "st_bert_cls_mean_concat", "st_bert_cls_normalize_classic"),
    *("st_bert_mean", "st_bert_mean_normalize_classic", "st_bert_prompts", "st_bert_prompts_excluded"),
    *("st_distilbert_max_classic", "st_lower_case_classic", "st_modernbert_cls", "st_mpnet_mean_dense"),
    *("st_nomic_bert_mean_normalize", "st_roberta_mean_normalize_classic", "st_subfolder_classic"),
    "st_xlm_roberta_mean_normalize",
)
CROSS = (
    *("ce_bert_identity", "ce_bert_identity_classic", "ce_bert_identity_legacy", "ce_bert_sigmoid_classic"),
    *("ce_deberta_v2", "ce_distilbert", "ce_electra", "ce_modernbert_cls", "ce_modernbert_mean"),
    *("ce_roberta", "ce_xlm_roberta"),
)
FAULTY = (
    *("faulty_broken_config_json", "faulty_dense_shape", "faulty_missing_shard", "faulty_missing_tensor"),
    *("faulty_no_tokenizer", "faulty_no_weights", "faulty_pytorch_bin_only", "faulty_truncated_safetensors"),
    *("faulty_unknown_model_type", "faulty_unknown_module", "faulty_unknown_pooling"),
    *("faulty_vocabulary_too_small", "faulty_wrong_shape"),
)
KEPT = {"encoder": ENCODERS, "sentence-transformers": SENTENCE, "cross-encoder": (*CROSS, "ce_bert_3_labels")}


def expected_of(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize("kind", [*KEPT, "faulty"])
def test_no_folder_is_left_out(kind):
    assert {path.name for path in golden_encoders(kind)} == set(KEPT.get(kind, FAULTY))


@pytest.mark.parametrize("name", ENCODERS + SENTENCE)
def test_ids_and_hidden_states_and_embeddings(name):
    folder, golden = golden_encoder(name)
    texts = expected_of(folder)["texts"]
    ranker = Ranker.load(folder)
    hidden = ranker.embed(texts, output="tokens")
    mask = golden["attention_mask"] == 1
    assert [len(states) for states in hidden] == mask.sum(1).tolist()
    np.testing.assert_allclose(np.concatenate(hidden), golden["hidden"], rtol=0, atol=5e-5)
    for given, key in {None: "embeddings", "": "embeddings_no_prompt"}.items():
        if key in golden:
            vectors = ranker.embed(texts, prompt=given)
            assert vectors.dtype == np.float32
            np.testing.assert_allclose(vectors, golden[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SENTENCE)
def test_prompts_by_name_and_by_text(name):
    folder, golden = golden_encoder(name)
    expected = expected_of(folder)
    ranker = Ranker.load(folder)
    for prompt, text in expected["prompts"].items():
        for given in {prompt, text}:
            vectors = ranker.embed(expected["texts"], prompt=given)
            np.testing.assert_allclose(vectors, golden[f"embeddings_prompt_{prompt}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CROSS)
def test_scores_of_cross_encoders(name):
    folder, golden = golden_encoder(name)
    ranker = Ranker.load(folder)
    pairs = expected_of(folder)["pairs"]
    scores = ranker.score_batch([a for a, _ in pairs], [[b] for _, b in pairs])
    np.testing.assert_allclose(np.concatenate(scores), golden["scores"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(ranker.score(*pairs[1][:1], [pairs[1][1]]), golden["scores"][1:2], atol=2e-5)
    # Before its activation, as evaluation and training see it.
    logits = ranker.scorer.score([[a] for a, _ in pairs], [[b] for _, b in pairs])
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ["ce_bert_identity", "ce_roberta"])
def test_a_cross_encoder_ranks_by_its_scores(name):
    folder, golden = golden_encoder(name)
    ranker = Ranker.load(folder)
    ((query, _),) = expected_of(folder)["pairs"][12:13]
    texts = [b for a, b in expected_of(folder)["pairs"] if a == query]
    scores = golden["scores"][[i for i, (a, _) in enumerate(expected_of(folder)["pairs"]) if a == query]]
    ranked = ranker.rank(query, texts)
    assert [found.index for found in ranked] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose([found.score for found in ranked], np.sort(scores)[::-1], atol=2e-5)


@pytest.mark.parametrize("name", [*FAULTY, "ce_bert_3_labels"])
def test_faulty_folders_are_one_line_that_names_the_fault(name):
    folder, _ = golden_encoder(name)
    for load in (Ranker.load, Ranker.from_encoder):
        with pytest.raises(InputError) as error:
            load(folder)
        message = str(error.value)
        assert "\n" not in message
        for wanted in expected_of(folder).get("message_should_name", ["id2label"]):
            assert wanted in message


@pytest.mark.parametrize(
    ("name", "tensor", "architecture"),
    [
        ("ce_roberta", "classifier.out_proj.weight", "RobertaForSequenceClassification"),
        ("ce_modernbert_mean", "classifier.weight", "ModernBertForSequenceClassification"),
    ],
)
def test_a_classifier_that_config_json_does_not_name_is_not_ignored(name, tensor, architecture, tmp_path):
    folder = shutil.copytree(golden_encoder(name)[0], tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("architectures") == [architecture]
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*modules.json"):  # with these, the kind of the model is known
        file.unlink()
    with pytest.raises(InputError) as error:
        Ranker.load(folder)
    assert tensor in error.value.problem and architecture in error.value.fix
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    assert Ranker.load(folder).scorer.settings.head.arch == "cross"


@pytest.mark.parametrize("name", ["st_bert_prompts_excluded", "modernbert", "st_mpnet_mean_dense"])
def test_company_and_padding_change_no_embedding(name):
    folder, _ = golden_encoder(name)
    texts = expected_of(folder)["texts"]
    ranker = Ranker.load(folder)
    together = ranker.embed(texts)
    for i in (1, 8, 9, 16):
        np.testing.assert_allclose(ranker.embed(texts[i : i + 1])[0], together[i], rtol=0, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(ranker.embed([texts[i] for i in order]), together[order], rtol=0, atol=1e-5)


def test_scores_are_cosines_of_embeddings_with_their_prompts():
    folder, golden = golden_encoder("st_bert_prompts")
    texts = expected_of(folder)["texts"][:5]
    ranker = Ranker.load(folder)
    query, documents = golden["embeddings_prompt_query"], golden["embeddings_prompt_document"]
    np.testing.assert_allclose(ranker.score(texts[0], texts), documents[:5] @ query[0], atol=2e-5)
    index = ranker.index(texts)
    found = index.search(texts[2], top_k=5)
    assert [one.text for one in found] == [one.text for one in ranker.rank(texts[2], texts)]


def test_vectors_that_are_not_normalised_are_compared_by_their_cosine():
    folder, golden = golden_encoder("st_bert_mean")
    texts = expected_of(folder)["texts"][:6]
    ranker = Ranker.load(folder)
    vectors = golden["embeddings"][:6]
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.abs(lengths - 1).min() > 0.5
    cosines = vectors @ vectors[0] / lengths / lengths[0]
    np.testing.assert_allclose(ranker.score(texts[0], texts), cosines, atol=2e-5)


def changed(name: str, tmp_path: Path, file: str, **entries) -> Path:
    """A copy of a folder with other entries in one of its JSON files."""
    folder, _ = golden_encoder(name)
    copy = tmp_path / name
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    path = copy / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | entries))
    return copy


MEAN, NORMALIZED = "st_bert_mean", "st_bert_cls_normalize_classic"


@pytest.mark.parametrize(
    ("file", "entries", "named"),
    [
        ("1_Pooling/config.json", {"pooling_mode_best_tokens": True}, "pooling_mode_best_tokens"),
        ("1_Pooling/config.json", {"temperature": 2}, "temperature"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "none"),
        ("1_Pooling/config.json", {"embedding_dimension": 24}, "24"),
        ("sentence_bert_config.json", {"query_length": 32}, "32"),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "text-generation"),
        ("sentence_bert_config.json", {"max_seq_length": "48"}, "48"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "euclidean"),
        ("config_sentence_transformers.json", {"default_prompt_name": "nobody"}, "nobody"),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim"),
        ("config_sentence_transformers.json", {"default_prompt_name": {"a": 1}}, "default_prompt_name"),
        ("config.json", {"hidden_act": "mish"}, "mish"),
        ("config.json", {"quantization_config": {"bits": 8}}, "quantization_config"),
        ("config.json", {"model_type": []}, "model_type"),
        ("config.json", {"architectures": 5}, "architectures"),
        ("adapter_config.json", {"r": 8}, "adapter"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, file, entries, named):
    folder = changed(MEAN, tmp_path, file, **entries)
    with pytest.raises(InputError) as error:
        Ranker.load(folder)
    assert error.value.argument.endswith(Path(file).name) or error.value.argument.endswith("modules.json")
    assert named in str(error.value)


def test_whole_numbers_as_weights_are_refused(tmp_path):
    folder = changed(MEAN, tmp_path, "config.json")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("dense.weight"))
    save_file(tensors | {name: tensors[name].astype(np.int8)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"{name} in a floating-point dtype, got int8"):
        Ranker.load(folder)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("nomic_bert", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ],
)
def test_scaled_rotary_positions_are_refused(tmp_path, name, entries):
    with pytest.raises(InputError, match="rope_scaling"):
        Ranker.load(changed(name, tmp_path, "config.json", **entries))


def test_the_base_of_rotary_positions_may_stand_above(tmp_path):
    folder = changed("nomic_bert", tmp_path, "config.json", rope_theta=5000.0, rope_parameters=None)
    assert Ranker.load(folder).scorer.settings.encoder.theta == 5000.0


def test_modules_in_another_order_are_refused(tmp_path):
    folder = changed(NORMALIZED, tmp_path, "config.json")
    modules = json.loads((folder / "modules.json").read_text())
    for wrong in (modules[:1], [modules[0], modules[2]], [*modules, modules[1]], modules[1:]):
        (folder / "modules.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError) as error:
            Ranker.load(folder)
        assert error.value.argument == str(folder / "modules.json")


def test_a_max_seq_length_beyond_the_positions_is_cut_to_them(tmp_path):
    folder = changed(MEAN, tmp_path, "sentence_bert_config.json", max_seq_length=512)
    assert Ranker.load(folder).scorer.text.config.candidate_tokens == 48


def test_a_pooling_without_a_mode_is_the_mean(tmp_path):
    folder = changed(MEAN, tmp_path, "config.json")
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    texts = expected_of(folder)["texts"][:3]
    vectors = Ranker.load(folder).embed(texts)
    np.testing.assert_allclose(vectors, golden_encoder(MEAN)[1]["embeddings"][:3], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("entries", "segments"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, False),
        ({"tokenizer_class": "TokenizersBackend", "model_input_names": ["token_type_ids"]}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids"]}, False),
    ],
)
def test_segments_of_pairs_are_those_of_the_tokenizers_class(tmp_path, entries, segments):
    folder = changed("ce_bert_identity_classic", tmp_path, "tokenizer_config.json", **entries)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if "model_input_names" not in entries:
        settings.pop("model_input_names", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert HuggingFaceTokenizer(folder / "tokenizer.json").pair_segments is segments


def test_a_dense_layer_without_an_activation_has_the_librarys_default(tmp_path):
    """tanh, which is also what the golden folder says."""
    name = "st_bert_cls_dense_normalize_classic"
    folder = changed(name, tmp_path, "config.json")
    path = next(path for path in folder.glob("*_Dense/config.json"))
    entries = json.loads(path.read_text())
    assert entries.pop("activation_function").endswith(".Tanh")
    path.write_text(json.dumps(entries))
    texts = expected_of(folder)["texts"][:3]
    vectors = Ranker.load(folder).embed(texts)
    np.testing.assert_allclose(vectors, golden_encoder(name)[1]["embeddings"][:3], rtol=0, atol=2e-5)


def test_dot_products_where_the_folder_says_so(tmp_path):
    folder = changed(MEAN, tmp_path, "config_sentence_transformers.json", similarity_fn_name="dot")
    golden = golden_encoder(MEAN)[1]["embeddings"]
    texts = expected_of(folder)["texts"][:4]
    np.testing.assert_allclose(Ranker.load(folder).score(texts[0], texts), golden[:4] @ golden[0], atol=2e-4)


def test_a_prompt_that_is_no_name_and_no_text_is_refused():
    folder, _ = golden_encoder("st_bert_prompts")
    with pytest.raises(InputError) as error:
        Ranker.load(folder).embed(["x"], prompt="qurey")
    assert error.value.argument == "prompt" and error.value.got == "qurey"


def test_a_cross_encoder_and_a_poly_encoder_embed_nothing():
    folder, _ = golden_encoder("ce_roberta")
    with pytest.raises(InputError):
        Ranker.load(folder).embed(["x"])
