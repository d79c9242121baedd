"""ParlAI's own outputs, from its files alone: ids, scores, ranks, and the first five updates.

Four of the fixtures are copies in tests/golden/parlai; the others are read from the shared folder, where
it is there.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyjax import Batch, CrossScorer, DualInputs, PairInputs, Ranker, Shared
from polyjax.interop.parlai.flags import Flags, beside, optim_config, read_opt, warmup
from polyjax.interop.parlai.model import load_parlai
from polyjax.train.losses import ranking_loss
from polyjax.train.optim import schedule
from polyjax.train.state import TrainState
from polyjax.train.trainer import Trainer

HERE = Path(__file__).parents[1] / "golden" / "parlai"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
FIXTURES = (
    "bi_project",
    "bi_shared_max_trained",
    "cross_prelayernorm_mean",
    "cross_project",
    "poly_codes16_project",
    "poly_codes64_fp16_legacy",
    "poly_codes_multihead_prelayernorm",
    "poly_nfirst_aiayn",
)
# float32 rounding; the golden files' own README finds this comfortable.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-5}


@pytest.fixture(scope="module", params=FIXTURES)
def fixture(request):
    folder = next((f / request.param for f in (HERE, SHARED) if (f / request.param).is_dir()), None)
    if folder is None:
        pytest.skip(f"{request.param} is not among the copies, and there is no shared/golden here")
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    return folder, golden, Ranker.from_parlai(folder / "model", padding="parlai")


def dialogues(golden, step: int) -> tuple[list[list[str]], list[list[str]]]:
    """Contexts and candidates of a turn of all dialogues; earlier turns are answered with their labels."""
    contexts, candidates = [], []
    for dialogue in golden["dialogs"]:
        turns = dialogue["turns"]
        before = [text for turn in turns[:step] for text in (turn["text"], turn["label"])]
        contexts.append([*before, turns[step]["text"]])
        candidates.append(turns[step]["label_candidates"])
    return contexts, candidates


def test_texts_become_the_same_ids(fixture):
    folder, golden, _ = fixture
    _, text, _ = load_parlai(folder / "model")
    for row in golden["tokenization"]:
        assert text.tokenizer.encode([row["text"]])[0] == row["ids"], row["text"]
    assert text.tokenizer.vocab_size == golden["special"]["vocab_size"]
    for i, step in enumerate(golden["steps"]):
        for row, context, candidates in zip(step["rows"], *dialogues(golden, i), strict=True):
            assert text.context(context).tolist() == row["text_vec"]
            assert [text.candidate(c).tolist() for c in candidates] == row["label_candidates_vecs"]


def test_scores_ranks_and_replies_are_parlais(fixture):
    _, golden, ranker = fixture
    for i, step in enumerate(golden["steps"]):
        contexts, candidates = dialogues(golden, i)
        ours = ranker.score_batch(contexts, candidates)
        for mine, theirs, row, texts in zip(ours, step["scores"], step["rows"], candidates, strict=True):
            np.testing.assert_allclose(mine, theirs[: len(texts)], **TOLERANCE)
            assert [texts[j] for j in np.argsort(-mine)] == row["text_candidates"]


def test_a_dialogue_alone(fixture):
    _, golden, ranker = fixture
    contexts, candidates = dialogues(golden, 0)
    for row in golden["alone"]:
        mine = ranker.score(contexts[row["dialog"]], candidates[row["dialog"]])
        np.testing.assert_allclose(mine, row["scores"], **TOLERANCE)


def test_fixed_candidates(fixture):
    folder, golden, ranker = fixture
    if not golden.get("fixed"):
        pytest.skip("a cross-encoder has no fixed candidates")
    lines = [
        line.strip() for line in (folder / "fixed_cands.txt").read_text("utf-8").rstrip("\n").split("\n")
    ]
    for row in golden["fixed"]["steps"]:
        context = dialogues(golden, row["turn"])[0][row["dialog"]]
        np.testing.assert_allclose(ranker.score(context, lines), row["scores"], **TOLERANCE)
        ranked = [r.text for r in ranker.rank(context, lines)]
        # ParlAI leaves out what was already said in the dialogue.
        assert [text for text in ranked if text not in context] == row["text_candidates"]


def test_without_parlais_padding_company_changes_nothing(fixture):
    folder, golden, _ = fixture
    ranker = Ranker.from_parlai(folder / "model")
    contexts, candidates = dialogues(golden, 1)
    together = ranker.score_batch(contexts, candidates)
    for context, texts, expected in zip(contexts, candidates, together, strict=True):
        np.testing.assert_allclose(ranker.score(context, texts), expected, atol=2e-5, rtol=1e-5)
        np.testing.assert_allclose(ranker.score(context, texts[:1]), expected[:1], atol=2e-5, rtol=1e-5)


def test_the_first_five_updates(fixture):
    folder, golden, _ = fixture
    path = folder / "model"
    if beside(path, ".before_training").exists():
        scorer, text, _ = load_parlai(path, weights=beside(path, ".before_training"), padding="parlai")
    else:
        scorer, text, _ = load_parlai(path, padding="parlai")
    flags = Flags(read_opt(beside(path, ".opt")), beside(path, ".opt"))
    optim, own = optim_config(flags), warmup(flags)
    rate = schedule(optim, 5) if own is None else own.schedule(optim, 5)
    shape = scorer.settings.encoder
    trainer = Trainer(scorer, ranking_loss, encoder=shape, n_steps=5, optim=optim, optimizer=own)
    state = trainer.state
    before = {name: np.asarray(value) for name, value in _flat(state.trained).items()}
    for i, step in enumerate(golden["train"]["steps"]):
        np.testing.assert_allclose(rate(i), step["lr_used"], rtol=1e-6)
        state, figures = _updated(
            trainer.update, state, _batch(scorer, text, step), step["grad_norm_before_clip"]
        )
        np.testing.assert_allclose(figures["loss"], step["mean_loss"], **TOLERANCE)
        np.testing.assert_allclose(figures["gradient_norm"], step["grad_norm_before_clip"], rtol=1e-4)
    after = _flat(state.trained)
    assert any(np.abs(after[name] - before[name]).max() > 1e-5 for name in before)
    expected = {k: v for k, v in golden["train"]["params_after"]["values"].items() if "ffn.lin1" in k}
    for name, (norm, change) in expected.items():
        mine = _ours(name)
        np.testing.assert_allclose(np.linalg.norm(after[mine]), norm, rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(after[mine] - before[mine]), change, rtol=1e-2)


def _updated(update, state: TrainState, batch: Batch, norm: float) -> tuple[TrainState, dict]:
    """The update whose gradient has the norm, from the parameters or from others that round to the same.

    A maximum hands the gradient to one of the places, and in one of the recorded steps two are 3e-7 apart,
    which is rounding: a processor's own arithmetic decides between them, and with that on the update.
    """
    draw = np.random.default_rng(0)
    exactly = found = update(jax.tree.map(jnp.copy, state), batch)  # it takes its state's memory
    for _ in range(8):
        if np.isclose(found[1]["gradient_norm"], norm, rtol=1e-4):
            return found
        nearby = jax.tree.map(
            lambda x: x * (1 + draw.choice([-1e-7, 1e-7], x.shape).astype(np.float32)), state.trained
        )
        found = update(dataclasses.replace(jax.tree.map(jnp.copy, state), trained=nearby), batch)
    return exactly


def _flat(state: nnx.State) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def _ours(name: str) -> str:
    """polyjax's name of a feed-forward parameter."""
    for theirs, mine in (
        ("encoder_ctxt", "context_encoder"),
        ("encoder_cand", "candidate_encoder"),
        ("cand_encoder.transformer", "context_encoder"),
        ("cand_encoder", "candidate_encoder"),
    ):
        if name.startswith(theirs):
            name = mine + name.removeprefix(theirs)
            break
    name = name.replace("layers.", "blocks.").replace("ffn.lin1", "mlp_in")
    return name.replace("weight", "kernel")


def _batch(scorer, text, step) -> Batch:
    contexts = [text.context([t]) for t in step["texts"]]
    label = np.array(step["target"], np.int32)
    if isinstance(scorer, CrossScorer):
        rows = [[text.candidate(c) for c in row] for row in step["label_candidates"]]
        width = max(map(len, contexts)) + max(len(c) for row in rows for c in row)
        pairs = [text.pair(context, c) for context, row in zip(contexts, rows, strict=True) for c in row]
        tokens = jax.tree.map(lambda x: x.reshape(len(rows), -1, width), text.pad_pairs(pairs, length=width))
        return Batch(PairInputs(tokens), label, np.ones((1, len(rows[0])), bool))
    candidates = text.pad_candidates([text.candidate(t) for t in step["labels"]])
    inputs = DualInputs(text.pad_contexts(contexts), Shared(candidates))
    return Batch(inputs, label, np.ones((1, len(label)), bool))
