"""Training from folders of other libraries: what a run takes of them, and what it says that it leaves out."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import golden_encoder
from polyjax import BiConfig, InputError, PolyConfig, Ranker
from polyjax.cli.training_flags import parse_run
from polyjax.data.tasks import task_named
from polyjax.data.text import TextEncoder
from polyjax.inference.scorer import TextScorer
from polyjax.interop.pretrained import encoder_tokenizer
from polyjax.recipes.encoder_folder import encoder_lines, encoder_notes, for_encoder
from polyjax.recipes.presets import demo, for_task
from polyjax.recipes.start import encoder_config, initial_scorer

GOLDEN = Path(__file__).parent / "golden"
CONTEXT, CANDIDATES = ["tea?"], ["yes, Milk", "no", "a cup"]


def pooled(folder: Path, **modes: bool) -> Path:
    """The tiny BERT of the golden files as a folder of sentence-transformers with a pooling."""
    shutil.copytree(GOLDEN / "tiny_bert", folder)
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    modules = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else "1_Pooling", "type": kind}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **modes}))
    return folder


def settings(arch: str, folder: Path, *more: str):
    return parse_run(
        ["--arch", arch, "--encoder", str(folder), "--encoder.dtype", "float32", *more], prog="run"
    )


def started(config, folder: Path) -> TextScorer:
    """The scorer before training."""
    tokenizer = encoder_tokenizer(folder)
    shape = encoder_config(config, folder, tokenizer.vocab_size)
    return TextScorer(initial_scorer(config, shape, folder), TextEncoder(tokenizer, config.text))


@pytest.mark.parametrize("arch", ["bi", "poly", "cross"])
def test_an_encoders_own_reduction_is_the_default(arch, tmp_path):
    """A model that was trained on its first token ranks worse by the mean."""
    folder = pooled(tmp_path / "st", pooling_mode_cls_token=True)
    config = settings(arch, folder)
    assert config.head.reduction == "first" and encoder_notes(config, folder) == []
    config = settings(arch, folder, "--head.reduction", "mean")
    assert config.head.reduction == "mean"
    (note,) = encoder_notes(config, folder)
    assert note.startswith("warning: ") and "reduction first; this run reduces by mean" in note


@pytest.mark.parametrize(
    "name",
    [
        *("st_bert_cls_dense_normalize_classic", "st_bert_cls_mean_concat", "st_bert_prompts_excluded"),
        *("st_lower_case_classic", "st_xlm_roberta_mean_normalize", "st_mpnet_mean_dense"),
    ],
)
def test_a_bi_encoder_starts_with_the_scores_of_its_folder(name):
    """Pooling, Dense, Normalize, prompts, lower-casing, all of it."""
    folder, _ = golden_encoder(name)
    config = settings("bi", folder)
    assert encoder_notes(config, folder) == []
    scores = started(config, folder).score([CONTEXT], [CANDIDATES])
    ranker = Ranker.load(folder)
    np.testing.assert_allclose(scores[0] / 20, ranker.score(CONTEXT, CANDIDATES), rtol=0, atol=1e-5)
    limit = ranker.scorer.text.config.context_tokens
    assert config.text.context_tokens <= limit and config.text.candidate_tokens <= limit


@pytest.mark.parametrize("name", ["ce_bert_identity", "ce_roberta", "ce_modernbert_mean", "ce_deberta_v2"])
def test_a_cross_encoder_starts_with_the_classifier_of_its_folder(name):
    folder, _ = golden_encoder(name)
    config = settings("cross", folder)
    assert config.head == Ranker.load(folder).scorer.settings.head and encoder_notes(config, folder) == []
    scores = started(config, folder).score([CONTEXT], [CANDIDATES])
    there = Ranker.load(folder).scorer.score([CONTEXT], [CANDIDATES])
    np.testing.assert_allclose(scores, there, rtol=0, atol=2e-5)
    text = config.text
    assert text.pair_limit() <= Ranker.load(folder).scorer.text.config.pair_tokens


def test_pairs_at_their_limit_fit_with_templates_of_more_tokens():
    """RoBERTa has two tokens between the texts of a pair; the candidate gives way."""
    folder, _ = golden_encoder("ce_roberta")
    config = settings("cross", folder, "--text.context-tokens", "12", "--text.candidate-tokens", "8")
    text = TextEncoder(encoder_tokenizer(folder), config.text)
    context, candidate = text.context(["tea " * 30]), text.candidate("milk " * 30)
    row, _ = text.pair(context, candidate)
    assert (len(context), len(candidate), len(row)) == (12, 8, config.text.pair_limit())
    assert row[-1] == text.tokenizer.end_id and len(row) == text.pair_length(12, 8)
    scores = started(config, folder).score([["tea " * 30]], [["milk " * 30, "no"]])
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("head", ["gated", "joint"])
def test_the_longest_pairs_fit_into_the_positions_of_a_small_encoder(head):
    """Apart, both texts of a pair have a start token of their own."""
    folder, _ = golden_encoder("st_bert_mean")
    config = settings("cross", folder, "--head", head)
    positions = encoder_config(config, folder, 400).n_positions
    config.text.check_positions(positions, paired=True)
    assert config.text.pair_limit() == positions == 48
    scores = started(config, folder).score([["tea " * 99]], [["milk " * 99, "no"]])
    assert np.isfinite(scores).all()
    with pytest.raises(InputError) as refused:
        dataclasses.replace(config.text, context_tokens=30).check_positions(positions, paired=True)
    assert refused.value.argument == "text.context_tokens"


@pytest.mark.parametrize(
    ("name", "named"),
    [("st_mpnet_mean_dense", "Dense modules"), ("st_bert_cls_mean_concat", "several pooling modes")],
)
def test_what_a_poly_encoder_cannot_do_is_refused_by_name(name, named):
    folder, _ = golden_encoder(name)
    with pytest.raises(InputError) as error:
        settings("poly", folder)
    assert error.value.argument == "encoder" and named in error.value.got
    config = dataclasses.replace(demo("poly"), head=PolyConfig(n_codes=3))
    assert for_encoder(config, str(folder), own_head=True).head == config.head


def test_what_training_leaves_out_of_a_folder_is_said():
    folder, _ = golden_encoder("st_bert_prompts")
    (note,) = encoder_notes(settings("cross", folder), folder)
    assert note.startswith("warning: ") and "prompts" in note
    (note,) = encoder_notes(settings("bi", folder, "--text.context-prompt", ""), folder)
    assert "prompts" in note
    folder, _ = golden_encoder("ce_roberta")
    (note,) = encoder_notes(settings("bi", folder), folder)
    assert "its classifier" in note
    (note,) = encoder_notes(settings("cross", folder, "--head.dense", "none"), folder)
    assert "its classifier" in note
    folder, _ = golden_encoder("st_mpnet_mean_dense")
    config = dataclasses.replace(settings("bi", folder), head=BiConfig(shared_encoder=True))
    assert any("dense layers" in note for note in encoder_notes(config, folder))
    folder, _ = golden_encoder("st_bert_mean_normalize_classic")
    (note,) = encoder_notes(settings("bi", folder, "--text.context-tokens", "40"), folder)
    assert "reads 36 tokens (sentence_bert_config.json); this run reads 40" in note


def test_a_task_with_lengths_of_its_own_keeps_the_prompts():
    folder, _ = golden_encoder("st_bert_prompts")
    config = for_encoder(for_task(demo("bi"), task_named("convai2")), str(folder))
    assert config.text.context_prompt and config.text.candidate_prompt
    assert max(config.text.context_tokens, config.text.candidate_tokens) <= 48


def test_the_lines_of_doctor_begin_a_training():
    folder, _ = golden_encoder("ce_roberta")
    config = settings("cross", folder)
    assert [line.split(":")[0] for line in encoder_lines(config, folder)][:3] == [
        "kind",
        "encoder",
        "tokenizer",
    ]
    assert encoder_lines(parse_run(["--encoder", "tiny"], prog="run"), None) == []
