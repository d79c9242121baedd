"""Fine-tuning and pre-training of every family of transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import ENCODERS, golden_encoder, random_tokens
from polyjax import BiConfig, DualScorer, InputError, Ranker, evaluate, fit
from polyjax.data.rows import RankConfig
from polyjax.interop.pretrained import encoder_shape, load_pretrainer
from polyjax.nn.encoders import AlbertConfig
from polyjax.nn.pretraining import Pretrainer, pretraining_sums
from polyjax.nn.scorers import make_scorer
from polyjax.train import trainable_filter

ROWS, LENGTH = 6, 10


def ranking_loss(model: Pretrainer, tokens) -> jax.Array:
    """In-batch negatives of a bi-encoder whose contexts are the candidates without their last tokens."""
    head = BiConfig(shared_encoder=True, normalize=True, score_scale=20.0)
    scorer = DualScorer(model.encoder.config, head, rngs=nnx.Rngs(0), context_encoder=model.encoder)
    context = jax.tree.map(lambda x: jnp.asarray(x)[:, : LENGTH - 3], tokens)
    vectors, mask = scorer.encode_context(context)
    scores = scorer.head.score(vectors, mask, scorer.encode_candidates(tokens)[None])
    return -jax.nn.log_softmax(scores, axis=-1)[jnp.arange(ROWS), jnp.arange(ROWS)].mean()


def masked_loss(model: Pretrainer, tokens) -> jax.Array:
    """Two tokens of each row are to be guessed, and whether the row is an even one."""
    places = jnp.broadcast_to(jnp.array([2, 5], jnp.int32), (ROWS, 2))
    targets = jnp.take_along_axis(jnp.asarray(tokens.ids), places, axis=1)
    ids = jnp.asarray(tokens.ids).at[:, jnp.array([2, 5])].set(1)
    hidden = type(tokens)(ids, jnp.asarray(tokens.mask), jnp.asarray(tokens.segments))
    logits, odds = model(hidden, places, jnp.zeros((ROWS, 1), jnp.int32))
    follows = jnp.arange(ROWS, dtype=jnp.int32)[:, None] % 2
    sums = pretraining_sums(logits, odds, targets, follows)
    return sum(total.sum() / n.sum() for total, n in (sums["masked_loss"], sums["next_loss"]))


def step_of(graph, tokens):
    """(state, share of ranking, length of a step) -> (losses [2], gradients, state), for both tasks."""

    def loss(state, share):
        model = nnx.merge(graph, state)
        losses = jnp.stack([ranking_loss(model, tokens), masked_loss(model, tokens)])
        return (jnp.stack([share, 1.0 - share]) * losses).sum(), losses

    @jax.jit
    def step(state, share, rate):
        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(state, share)
        size = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))
        return losses, gradients, jax.tree.map(lambda p, g: p - rate / size * g, state, gradients)

    return step


LAYERS = {"albert": 2, "modernbert": 3}
"""Fewer than the laws have: these compile for long."""
ONE_OF_EACH = {type(ENCODERS[name]): name for name in reversed(ENCODERS)}


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH.values()))
def test_a_few_steps_lower_either_loss_and_every_parameter_has_a_gradient(name, rng):
    settings = ENCODERS[name]
    settings = dataclasses.replace(settings, n_layers=LAYERS.get(name, settings.n_layers))
    graph, begin = nnx.split(Pretrainer(settings, rngs=nnx.Rngs(0)))
    step = step_of(graph, random_tokens(rng, [LENGTH] * ROWS, width=LENGTH))
    for task, share in enumerate((1.0, 0.0)):
        state, first = begin, None
        for _ in range(12):
            losses, gradients, state = step(state, jnp.float32(share), jnp.float32(0.05))
            if first is None:
                first = float(losses[task])
                flat = {".".join(map(str, path)): g.get_value() for path, g in nnx.to_flat_state(gradients)}
                used = {n for n in flat if n.startswith("encoder.") or task == 1}
                assert [n for n in used if not np.abs(flat[n]).max() > 0] == []
        last, _, _ = step(state, jnp.float32(share), jnp.float32(0.0))
        assert float(last[task]) < 0.95 * first, (name, task)


ALBERT = {"vocab_size": 9, "dim": 4, "n_heads": 1, "mlp_dim": 4, "embedding_dim": 4, "n_positions": 8}


@pytest.mark.parametrize(
    ("groups", "trainable", "expected"),
    [(1, 1, {0, 1}), (1, 0, set()), (2, 1, {2, 3}), (2, 4, {0, 1, 2, 3}), (2, 3, {2, 3})],
)
def test_weights_that_layers_share_are_trained_with_the_top_ones(groups, trainable, expected):
    """ALBERT: 6 layers of 1 or 2 groups, each of two blocks."""
    shape = AlbertConfig(**ALBERT, n_layers=6, n_groups=groups, blocks_per_layer=2)
    scorer = make_scorer(shape, BiConfig(shared_encoder=True), rngs=nnx.Rngs(0))
    _, chosen, _ = nnx.split(scorer, trainable_filter(trainable, shape), ...)
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(chosen)]
    assert {int(name.split("blocks.")[1].split(".")[0]) for name in names if "blocks." in name} == expected
    with pytest.raises(InputError):
        trainable_filter(7, shape)


@pytest.mark.parametrize("name", ["albert", "deberta_v2", "distilbert", "modernbert", "mpnet", "roberta"])
def test_pretraining_starts_from_the_folder_of_a_family(name):
    folder, golden = golden_encoder(name)
    model = Pretrainer(encoder_shape(folder), rngs=nnx.Rngs(0))
    load_pretrainer(model, folder)
    ids, mask = golden["input_ids"].astype(np.int32), golden["attention_mask"] == 1
    tokens = random_tokens(np.random.default_rng(0), [1] * len(ids), width=ids.shape[1])
    hidden = model.encoder(type(tokens)(ids, mask, golden.get("token_type_ids", 0 * ids).astype(np.int32)))
    np.testing.assert_allclose(np.asarray(hidden)[mask], golden["hidden"], rtol=0, atol=5e-5)


def test_a_cross_encoders_folder_is_fine_tuned_saved_and_loaded(tmp_path, capsys):
    folder, _ = golden_encoder("ce_roberta")
    letters = "abcdefgh"
    rows = [{"context": f"{a} {b}", "label": f"{b} {a}"} for a in letters for b in letters if a != b]
    run = fit(
        rows,
        arch="cross",
        encoder=folder,
        steps=6,
        run_dir=tmp_path / "run",
        valid=rows[:28],
        test=rows[28:],
        text={"context_tokens": 16, "candidate_tokens": 16, "buckets": (32,)},
        batch={"batch_size": 8, "n_negatives": 3},
        train={"validate_every_steps": 3},
        quiet=True,
    )
    notes = (tmp_path / "run" / "report.md").read_text()
    assert "warning: training does not use" not in notes
    run.save_pretrained(tmp_path / "out", name="org/letters")
    back, trained = Ranker.load(tmp_path / "out"), run.ranker(dtype="float32")
    texts = [row["label"] for row in rows[:5]]
    np.testing.assert_allclose(back.score("a b", texts), trained.score("a b", texts), rtol=0, atol=1e-5)
    assert np.abs(trained.score("a b", texts) - Ranker.load(folder).score("a b", texts)).max() > 1e-4
    # Renamed and written once more, it is still known what the model was trained on.
    back.save_pretrained(tmp_path / "again")
    asked = [*rows[:5], {"context": "new", "label": "one"}]
    sampled = RankConfig(candidates="sampled", n=3)
    for model, known in ((Ranker.load(tmp_path / "again"), True), (tmp_path / "out", True), (folder, False)):
        evaluate(model, asked, rank=sampled)
        warned = "warning: the model was trained on 5 of these 6 rows" in capsys.readouterr().out
        assert warned == known, model
