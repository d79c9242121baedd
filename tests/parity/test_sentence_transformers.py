"""sentence-transformers itself loads what is exported, and what it wrote after training loads here.

It needs torch: `make test-torch`.
"""

import json
import shutil

import numpy as np
import pytest
from flax import nnx

from conftest import golden_encoder, tiny
from polyjax import BiConfig, CrossConfig, Ranker, make_scorer
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.inference.scorer import TextScorer
from polyjax.nn.heads import DenseConfig

pytestmark = pytest.mark.torch

TEXTS = ["how are you?", "I like tea with [SEP] and milk", "", "a b c d e f g", "Café"]
PAIRS = [(a, b) for a in TEXTS[:2] for b in TEXTS]
FAMILIES = {
    "bi": ("albert", "bert", "deberta_v2", "distilbert", "electra", "modernbert", "mpnet", "roberta")
    + ("xlm_roberta", "st_bert_cls_mean_concat", "st_lower_case_classic", "st_mpnet_mean_dense"),
    "cross": ("ce_bert_sigmoid_classic", "ce_deberta_v2", "ce_distilbert", "ce_electra", "ce_modernbert_cls")
    + ("ce_modernbert_mean", "ce_roberta", "ce_xlm_roberta"),
}
HEADS = {
    "unit": BiConfig(shared_encoder=True, normalize=True, score_scale=20.0),
    "order": BiConfig(shared_encoder=True, reduction="mean", also=("first", "last"), normalize=True),
    "weighted": BiConfig(shared_encoder=True, reduction="weighted_mean", also=("mean_sqrt", "max")),
    "dense": BiConfig(
        shared_encoder=True,
        dense=(DenseConfig(dim=8, bias=False), DenseConfig(dim=6, unit_input=True, activation="gelu")),
        normalize=True,
        raw_embeddings=True,
    ),
}


@pytest.fixture(scope="module")
def theirs():
    """The library, which is not a part of the usual tests."""
    return pytest.importorskip("sentence_transformers")


def untrained(head, **text) -> Ranker:
    """A model as a run from minilm leaves it: special tokens that a text spells out are text."""
    tokenizer = HuggingFaceTokenizer(golden_encoder("st_bert_mean")[0] / "tokenizer.json", config=False)
    scorer = make_scorer(tiny(vocab_size=tokenizer.vocab_size, n_segments=2), head, rngs=nnx.Rngs(3))
    lengths = TextConfig(context_tokens=32, candidate_tokens=32, **text)
    return Ranker(TextScorer(scorer, TextEncoder(tokenizer, lengths)))


@pytest.mark.parametrize("name", FAMILIES["bi"])
def test_an_exported_bi_encoder_of_each_family(theirs, name, tmp_path):
    ranker = Ranker.load(golden_encoder(name)[0])
    ranker.save_pretrained(tmp_path / "out")
    model = theirs.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), ranker.embed(TEXTS), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES["cross"])
def test_an_exported_cross_encoder_of_each_family(theirs, name, tmp_path):
    ranker = Ranker.load(golden_encoder(name)[0])
    ranker.save_pretrained(tmp_path / "out")
    model = theirs.CrossEncoder(str(tmp_path / "out"), device="cpu")
    scores = np.concatenate(ranker.score_batch([a for a, _ in PAIRS], [[b] for _, b in PAIRS]))
    np.testing.assert_allclose(model.predict(PAIRS), scores, rtol=0, atol=2e-5)
    ranked = [found["corpus_id"] for found in model.rank(TEXTS[0], TEXTS)]
    assert ranked == [found.index for found in ranker.rank(TEXTS[0], TEXTS)]


@pytest.mark.parametrize(
    ("name", "model_type"), [("albert", None), ("mpnet", None), ("roberta", "camembert")]
)
def test_classifiers_of_which_there_is_no_golden_folder(theirs, name, model_type, tmp_path):
    """transformers makes them from an encoder's folder; scores are equal both ways."""
    torch = pytest.importorskip("torch")
    import transformers

    folder = shutil.copytree(golden_encoder(name)[0], tmp_path / "in", copy_function=shutil.copyfile)
    entries = json.loads((folder / "config.json").read_text())
    entries |= {"num_labels": 1, "model_type": model_type or entries["model_type"]}
    (folder / "config.json").write_text(json.dumps(entries))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    made = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # biases and norms are 0 and 1 at first, which would hide them
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    ranker = Ranker.load(folder)
    scores = np.concatenate(ranker.score_batch([a for a, _ in PAIRS], [[b] for _, b in PAIRS]))
    expected = theirs.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)
    assert np.ptp(expected) > 1e-3
    ranker.save_pretrained(tmp_path / "out")
    model = theirs.CrossEncoder(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.predict(PAIRS), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_heads_prompts_and_spelled_markers_of_runs(theirs, name, tmp_path):
    ranker = untrained(HEADS[name], context_prompt="tea: ", candidate_prompt="milk: ")
    ranker.save_pretrained(tmp_path / "out")
    model = theirs.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), ranker.embed(TEXTS), rtol=0, atol=2e-5)
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    np.testing.assert_allclose(queries, ranker.embed(TEXTS, prompt="query"), rtol=0, atol=2e-5)
    np.testing.assert_allclose(documents, ranker.embed(TEXTS, prompt="document"), rtol=0, atol=2e-5)
    scores = np.asarray(model.similarity(queries[:1], documents))[0] * HEADS[name].score_scale
    np.testing.assert_allclose(scores, ranker.score(TEXTS[0], TEXTS), rtol=1e-5, atol=2e-4)


def test_a_run_of_a_cross_encoder(theirs, tmp_path):
    ranker = untrained(CrossConfig(reduction="first", dense="tanh"))
    ranker.save_pretrained(tmp_path / "out")
    model = theirs.CrossEncoder(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(
        model.predict([(TEXTS[0], text) for text in TEXTS]), ranker.score(TEXTS[0], TEXTS), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("name", ["st_bert_cls_dense_normalize_classic", "st_modernbert_cls"])
def test_a_folder_that_it_wrote_after_training_loads_here(theirs, name, tmp_path):
    torch = pytest.importorskip("torch")
    from sentence_transformers import losses

    folder, _ = golden_encoder(name)
    model = theirs.SentenceTransformer(str(folder), device="cpu")
    before, loss = model.encode(TEXTS), losses.MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = [model.tokenize(TEXTS[:4]), model.tokenize(TEXTS[1:])]
    for _ in range(5):
        optimizer.zero_grad()
        loss(rows, torch.zeros(4)).backward()
        optimizer.step()
    model.save_pretrained(str(tmp_path / "trained"))
    after = model.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(Ranker.load(tmp_path / "trained").embed(TEXTS), after, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["ce_bert_identity_classic", "ce_roberta"])
def test_a_cross_encoder_that_it_wrote_after_training_loads_here(theirs, name, tmp_path):
    torch = pytest.importorskip("torch")
    folder, _ = golden_encoder(name)
    model = theirs.CrossEncoder(str(folder), device="cpu")
    before = model.predict(PAIRS)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3)
    inputs = model.tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    for _ in range(5):
        optimizer.zero_grad()
        logits = model.model(**inputs).logits[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(len(PAIRS))).backward()
        optimizer.step()
    model.save_pretrained(str(tmp_path / "trained"))
    after = model.predict(PAIRS)
    assert np.abs(after - before).max() > 1e-3
    ranker = Ranker.load(tmp_path / "trained")
    scores = np.concatenate(ranker.score_batch([a for a, _ in PAIRS], [[b] for _, b in PAIRS]))
    np.testing.assert_allclose(scores, after, rtol=0, atol=2e-5)
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["architectures"]
