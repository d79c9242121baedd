"""Pre-training: its losses, its step on any mesh, learning, and an exact end after a stop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyjax.data.corpora.corpus import Conversation, Pairs, tokenise
from polyjax.data.corpora.packing import PretrainBatchConfig
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.mesh.placement import make_mesh, placed, shardings_of
from polyjax.nn.pretraining import Pretrainer
from polyjax.runs import Checkpoints, MetricsLog
from polyjax.train import TrainConfig, train
from polyjax.train.optim import OptimConfig
from polyjax.train.pretraining import LossWeights, Pretraining, pretraining_loss
from toy import SHAPE, Letters

TEXT = TextConfig(max_turns=2, context_tokens=20, candidate_tokens=12, buckets=(8, 16, 24))
BATCH = PretrainBatchConfig(tokens=31 * 16)
OPTIM = OptimConfig(learning_rate=3e-3, head_rate=1.0, decay="none", warmup_steps=10)


def pairs(n: int, seed: int) -> Pairs:
    """Conversations that go on with the letter they began with."""
    draw = np.random.default_rng(seed)
    corpus = []
    for i in range(n):
        letter = "abcdefgh"[draw.integers(8)]
        corpus.append(Conversation(str(i), tuple(letter * int(draw.integers(3, 6)) for _ in range(3))))
    return Pairs(tokenise(corpus, Letters()), TEXT, Letters())


def objective(mesh=None, *, shape=SHAPE, batch=BATCH, weights=LossWeights()) -> Pretraining:  # noqa: B008
    return Pretraining(
        Pretrainer(shape, rngs=nnx.Rngs(0)),
        pairs(200, 0),
        pairs(40, 1),
        batch=batch,
        weights=weights,
        validate_batches=3,
        mesh=None if mesh is None else make_mesh(mesh),
    )


@pytest.mark.parametrize("packing", [True, False])
def test_losses_are_those_of_each_pair_computed_apart(packing):
    """Pair by pair, with plain numpy for everything behind the encoder."""
    config = dataclasses.replace(BATCH, packing=packing)
    found = objective(batch=config)
    batch = next(found.batches(0, 1, seed=0))
    loss, figures = pretraining_loss(found.model, batch, None, weights=LossWeights(masked=0.7, next=0.3))
    model, table = found.model, np.asarray(found.model.encoder.embeddings.tokens[...], np.float64)
    head = model.head
    masked, following = [], []
    for row in range(len(batch.first)):
        packs = batch.tokens.packs[row] if packing else np.where(batch.tokens.mask[row], 0, -1)
        for i in range(packs.max() + 1):
            places = np.flatnonzero(packs == i)
            alone = jax.tree.map(lambda x, row=row, places=places: x[row, places][None], batch.tokens)
            hidden = model.encoder(dataclasses.replace(alone, packs=None))[0]
            for place, target in zip(batch.masked[row], batch.targets[row], strict=True):
                if target >= 0 and place in places:
                    state = hidden[place - places[0]][None]
                    inner = head.norm(jax.nn.gelu(head.transform(state), approximate=False))
                    logits = np.asarray(inner[0], np.float64) @ table.T + np.asarray(head.bias[...])
                    masked.append(np.log(np.exp(logits).sum()) - logits[target])
            odds = head.follows(jnp.tanh(head.pooler(hidden[:1])))[0, 0]
            right = 1 / (1 + np.exp(-float(odds)))
            following.append(-np.log(right if batch.follows[row, i] else 1 - right))
    assert len(masked) > 20 and len(following) > 15
    np.testing.assert_allclose(figures["masked_loss"], np.mean(masked), rtol=2e-5)
    np.testing.assert_allclose(figures["next_loss"], np.mean(following), rtol=2e-5)
    np.testing.assert_allclose(loss, 0.7 * np.mean(masked) + 0.3 * np.mean(following), rtol=2e-5)


def step_on(mesh, **changes):
    """Loss and gradients of one batch on a mesh."""
    found = objective(mesh, batch=dataclasses.replace(BATCH, **changes))
    graph, state = nnx.split(found.model)
    state = placed(state, shardings_of(state, found.mesh))
    batch = found.place(next(found.batches(0, 1, seed=0)))

    def loss(state):
        return found.loss(nnx.merge(graph, state), batch, None)[0]

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(state))


@pytest.mark.parametrize("mesh", ["data=8", "data=4,fsdp=2", "data=4,model=2"])
def test_a_step_on_many_devices_is_that_of_one(mesh):
    one, many = step_on("data=1"), step_on(mesh)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(many[1]), jax.tree.leaves(one[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, np.abs(y).max()))


def test_a_batch_does_not_depend_on_the_devices():
    """Eleven rows on eight devices: five empty ones join them, and change nothing."""
    rows = {"tokens": 31 * 11}
    assert (
        len(next(objective("data=1", batch=dataclasses.replace(BATCH, **rows)).batches(0, 1, seed=0)).first)
        == 11
    )
    one, many = step_on("data=1", **rows), step_on("data=8", **rows)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(many[1]), jax.tree.leaves(one[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, np.abs(y).max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32_and_its_logits_are_float32(dtype):
    """Products are summed to float32: the losses differ by the rounding of hidden states only."""
    exact, half = objective(), objective(shape=dataclasses.replace(SHAPE, dtype=dtype))
    batch = next(exact.batches(0, 1, seed=0))
    logits, odds = half.model(batch.tokens, batch.masked, batch.first)
    assert logits.dtype == odds.dtype == jnp.float32
    rounded = logits.astype(dtype).astype(jnp.float32) == logits
    assert float(rounded.mean()) < 0.2, "they are not what half precision holds"
    one, other = (
        pretraining_loss(found.model, batch, None, weights=LossWeights())[0] for found in (exact, half)
    )
    np.testing.assert_allclose(other, one, rtol={"bfloat16": 5e-3, "float16": 1e-3}[dtype])


@pytest.mark.parametrize(
    ("mesh", "chunk"), [("data=1", 31 * 3), ("data=1", 1), ("data=8", 1), ("data=2", 31 * 5)]
)
def test_chunks_change_neither_loss_nor_gradients(mesh, chunk):
    whole, parts = step_on("data=1"), step_on(mesh, chunk=chunk)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, np.abs(y).max()))


def test_chunks_take_the_memory_of_one():
    def temporary(chunk):
        found = objective(batch=dataclasses.replace(BATCH, tokens=31 * 32, chunk=chunk))
        graph, state = nnx.split(found.model)
        batch = next(found.batches(0, 1, seed=0))
        step = jax.jit(jax.grad(lambda state: found.loss(nnx.merge(graph, state), batch, None)[0]))
        return step.lower(state).compile().memory_analysis().temp_size_in_bytes

    assert temporary(31 * 4) < 0.4 * temporary(0)


def test_what_to_do_where_memory_is_exhausted():
    def fix(chunk):
        return objective(batch=dataclasses.replace(BATCH, chunk=chunk)).too_much[1]

    for chunk, smaller in ((0, 248), (124, 62), (32, 31)):
        assert f"resume with {smaller} as `batch.chunk`" in fix(chunk)
    assert "`text.context_tokens`" in fix(31)
    with pytest.raises(InputError, match="at most the 496 tokens"):
        dataclasses.replace(BATCH, chunk=497)


def run(folder, *, callbacks=(), **changes):
    settings = {"steps": 60, "validate_every_steps": 20, "save_every_steps": 7, "best_by": "loss"}
    shape = dataclasses.replace(SHAPE, dropout=0.1)
    folder.mkdir(exist_ok=True)
    config = TrainConfig(**(settings | changes))
    return train(objective(shape=shape), folder, optim=OPTIM, config=config, callbacks=callbacks)


def test_it_learns_both(tmp_path):
    run(tmp_path, steps=300, validate_every_steps=100)
    rows = [row for row in MetricsLog.read(tmp_path) if row["kind"] == "valid"]
    # One corrupted pair of eight continues with the same letter by chance.
    assert rows[-1]["masked_accuracy"] > 0.9 and rows[-1]["next_accuracy"] > 0.8
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    logged = [row for row in MetricsLog.read(tmp_path) if row["kind"] == "train"]
    assert all(row["tokens_per_second"] > 0 and row["padding"] < 0.25 for row in logged)
    assert logged[-1]["compilations"] == 2, "packed rows have one shape: a step and a validation"


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path):
    run(tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(stopped, callbacks=[interrupt_after_33])
    assert run(stopped).steps == 60
    first, second = (
        Checkpoints(folder, read_only=True).restore_parameters(Pretrainer(SHAPE, rngs=nnx.Rngs(3)), 60)
        for folder in (tmp_path / "whole", stopped)
    )
    for x, y in zip(jax.tree.leaves(nnx.state(first)), jax.tree.leaves(nnx.state(second)), strict=True):
        np.testing.assert_array_equal(x, y)


def interrupt_after_33(step, kind, metrics):
    if step > 33:
        raise KeyboardInterrupt


def test_validation_is_the_same_whatever_the_devices():
    found = [objective(mesh).validate(Pretrainer(SHAPE, rngs=nnx.Rngs(0))) for mesh in (None, "data=8")]
    assert found[0].metrics["pairs"] > 40
    assert found[0].metrics == pytest.approx(found[1].metrics, rel=1e-5)
    assert abs(found[0].loss - np.log(40) - np.log(2)) < 0.3, "an untrained model knows nothing"


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(InputError) as error:
        LossWeights(masked=0.0, next=0.0)
    assert (error.value.argument, error.value.got) == ("loss.masked", "0 and 0")
    with pytest.raises(InputError) as error:
        objective("data=8", batch=PretrainBatchConfig(tokens=31 * 7))
    assert (error.value.argument, error.value.got) == ("batch.tokens", 31 * 7)
    assert "at least 248" in error.value.expected
