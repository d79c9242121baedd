"""A step on many devices is the step on one: any mesh, any architecture."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from conftest import ENCODERS, HEADS, random_tokens, tiny
from polyjax import BiConfig, CrossConfig, InputError, PolyConfig, make_scorer
from polyjax.mesh.placement import (
    BatchPlacer,
    MeshShape,
    make_mesh,
    row_devices,
    shardings_of,
    spec_of,
)
from polyjax.train import Trainer
from polyjax.train.losses import ranking_loss
from polyjax.train.optim import OptimConfig
from polyjax.types import Shared
from test_step import batch_of

MESHES = ["data=8", "data=4,fsdp=2", "data=2,model=4"]
# A gradient that is nothing but rounding moves a parameter by the whole rate where eps is small.
OPTIM = OptimConfig(learning_rate=1e-3, eps=1e-3, warmup=0.0)
SHAPE = {"dim": 32, "mlp_dim": 64, "n_heads": 4}
B = 16


def start(name: str, mesh: str, *, chunk=0, **shape) -> Trainer:
    """A training before the first step, on a mesh."""
    encoder = tiny(**SHAPE, **shape)
    scorer = make_scorer(encoder, HEADS[name], rngs=nnx.Rngs(0))
    loss = functools.partial(ranking_loss, chunk=chunk)
    return Trainer(scorer, loss, encoder=encoder, n_steps=10, optim=OPTIM, mesh=make_mesh(mesh))


def step(name: str, mesh: str, batch, *, chunk=0, **shape):
    """Loss, gradients and updated parameters of one step, on the host."""
    trainer = start(name, mesh, chunk=chunk, **shape)
    graph, state = trainer.graph, trainer.state
    batch = BatchPlacer(trainer.mesh, len(batch.label))(batch)

    def loss(trained):
        return ranking_loss(nnx.merge(graph, trained, state.frozen), batch, None, chunk=chunk)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(state.trained)
    metrics = trainer.step(batch)
    return jax.device_get((value, gradients, trainer.state.trained, metrics["loss"]))


def assert_close(one, other):
    """The outcomes of two steps, to 1e-5: of values, and of each gradient's largest entry.

    Gradients of a hundredth of the largest and less are compared as if they had that size: among them are
    some that are nothing but rounding, as that of a bias which a softmax takes no notice of.
    """
    for i in (0, 2, 3):  # losses and parameters
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), one[i], other[i])
    largest = max(float(np.abs(y).max()) for y in jax.tree.leaves(other[1]))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(one[1]), jax.tree.leaves(other[1]), strict=True
    ):
        size = max(float(np.abs(y).max()), 1e-2 * largest)
        np.testing.assert_allclose(x / size, y / size, rtol=0, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize(
    ("name", "hard"),
    [("bi-mean", 0), ("poly-basic", 0), ("poly-basic", 2), ("cross-first", 0), ("cross-gated", 0)],
)
def test_a_step_on_eight_devices_is_that_on_one(name, hard, rng):
    batch = batch_of(rng, HEADS[name], B, hard=hard)
    expected = step(name, "data=1", batch)
    before = jax.device_get(start(name, "data=1").state.trained)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected[2], before)
    assert max(jax.tree.leaves(moved)) > 1e-4
    for mesh in MESHES:
        assert_close(step(name, mesh, batch), expected)


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,model=2"])
def test_chunks_and_dropout_are_the_same_on_any_mesh(mesh, rng):
    batch = batch_of(rng, HEADS["poly-basic"], B, hard=2)
    dropped = step("poly-basic", "data=1", batch, chunk=8, dropout=0.3)
    assert_close(step("poly-basic", mesh, batch, chunk=8, dropout=0.3), dropped)
    assert abs(dropped[3] - dropped[0]) > 1e-3, "the update's loss is drawn with dropout"


def test_negatives_are_those_of_the_whole_batch(rng):
    """One context's loss grows when a negative on the farthest device comes nearer to it."""
    batch = batch_of(rng, HEADS["bi-mean"], B)
    trainer = start("bi-mean", "data=8")
    place, scorer = BatchPlacer(trainer.mesh, B), trainer.model

    def losses(batch):
        return jax.device_get(jax.jit(lambda batch: scorer(batch.inputs))(place(batch)))

    before = losses(batch)
    assert before.shape == (B, B)
    tokens = batch.inputs.shared.tokens
    ids = np.array(tokens.ids)
    ids[-1] = ids[0]
    mask = np.array(tokens.mask)
    mask[-1] = mask[0]
    copied = dataclasses.replace(tokens, ids=ids, mask=mask)
    inputs = dataclasses.replace(batch.inputs, shared=Shared(copied))
    after = losses(dataclasses.replace(batch, inputs=inputs))
    np.testing.assert_allclose(after[:, -1], before[:, 0], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_device_is_given_the_tokens_of_all(dtype, rng, processor):
    """What is exchanged are gradients and vectors, not the activations of the whole batch."""
    batch = batch_of(rng, HEADS["bi-mean"], 32)
    trainer = start("bi-mean", "data=8", dtype=dtype)
    program = trainer.lowered(BatchPlacer(trainer.mesh, 32)(batch)).compile().as_text()
    gathered = re.findall(r"= \(?\w+\[([\d,]+)\].* all-gather\(", program)
    sizes = [math.prod(map(int, shape.split(","))) for shape in gathered]
    rows, tokens = 32 * SHAPE["dim"], 32 * 8 * SHAPE["dim"]
    assert sizes and max(sizes) <= 2 * rows < tokens, gathered


def test_parameters_and_moments_are_split_as_the_table_says():
    state = start("poly-basic", "data=2,fsdp=2,model=2").state
    moments = next(part for part in state.optimizer if hasattr(part, "mu"))
    for tree in (state.trained, moments.mu, moments.nu):
        kernel = tree["context_encoder"]["blocks"][0]["mlp_in"]["kernel"].get_value()
        assert kernel.sharding.spec == P("fsdp", "model")
        assert kernel.addressable_shards[0].data.shape == (16, 32)
        norm = tree["context_encoder"]["blocks"][0]["mlp_norm"]["scale"].get_value()
        assert norm.sharding.is_fully_replicated
    on_one = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.trained))
    assert on_one < 0.5 * sum(x.size for x in jax.tree.leaves(state.trained))


def test_every_large_matrix_is_in_the_table():
    """Whatever head: what has two axes of the encoder's width or more is split."""
    for head in (
        BiConfig(),
        PolyConfig(n_codes=16, codes_attention="multihead", candidate_attention="multihead"),
        CrossConfig(),
    ):
        state = nnx.state(make_scorer(tiny(dim=32), head, rngs=nnx.Rngs(0)))
        for path, leaf in nnx.to_flat_state(state):
            large = leaf.get_value().ndim == 2 and min(leaf.get_value().shape) >= 32
            assert not large or spec_of(".".join(map(str, path))) != P(), path


@pytest.mark.parametrize("name", ENCODERS)
def test_every_matrix_of_a_family_is_in_the_table(name):
    state = nnx.state(ENCODERS[name].build(rngs=nnx.Rngs(0)))
    for path, leaf in nnx.to_flat_state(state):
        where = ".".join(map(str, path))
        small = leaf.get_value().ndim < 2 or where == "distances"  # a number for each distance and head
        assert small or spec_of(where) != P(), where


@pytest.mark.parametrize(
    ("text", "n", "shape"),
    [
        ("", 8, (8, 1, 1)),
        ("data=8", 8, (8, 1, 1)),
        ("fsdp=4", 8, (2, 4, 1)),
        ("data=2, model=2", 8, (2, 1, 2)),
        ("data=2, fsdp=3", 8, (2, 3, 1)),
        ("", 1, (1, 1, 1)),
    ],
)
def test_mesh_in_words(text, n, shape):
    parsed = MeshShape.parse(text, n)
    assert (parsed.data, parsed.fsdp, parsed.model) == shape
    assert MeshShape.parse(str(parsed), n) == parsed


@pytest.mark.parametrize(
    "text", ["rows=8", "data", "data=0", "data=x", "data=2,data=4", "data=16", "fsdp=16", "fsdp=3"]
)
def test_a_mesh_that_cannot_be(text):
    with pytest.raises(InputError) as error:
        MeshShape.parse(text, 8)
    assert (error.value.argument, error.value.got) == ("mesh", text)


def test_what_cannot_be_split_is_an_error_that_names_it(rng):
    with pytest.raises(InputError) as error:
        BatchPlacer(make_mesh("data=8"), 12)
    assert (error.value.argument, error.value.got) == ("batch.batch_size", 12)
    assert "multiple of 8" in error.value.expected and "`mesh`" in error.value.fix
    state = nnx.state(make_scorer(tiny(), BiConfig(), rngs=nnx.Rngs(0)))
    mesh = make_mesh("model=5", jax.devices()[:5])
    with pytest.raises(InputError) as error:
        shardings_of(state, mesh)
    assert (error.value.argument, error.value.got) == ("mesh", "model=5")
    assert "divisor of" in error.value.expected and "kernel" in error.value.expected
    whole = jax.tree.leaves(shardings_of(state, mesh, optional=True))
    assert all(sharding.is_fully_replicated for sharding in whole), "an optimiser's may be of any shape"
    with pytest.raises(InputError) as error:
        make_mesh("data=9")
    assert "8" in error.value.expected and error.value.got == "data=9"


def test_a_batch_is_placed_by_rows(rng):
    mesh = make_mesh("data=2,fsdp=2,model=2")
    batch = batch_of(rng, HEADS["bi-mean"], B)
    place = BatchPlacer(mesh, B)
    np.testing.assert_array_equal(place.rows, np.arange(B))
    there = place(batch)
    assert row_devices(mesh) == 4
    assert there.inputs.context.ids.addressable_shards[0].data.shape[0] == B // 4
    jax.tree.map(np.testing.assert_array_equal, there, batch)
    # Candidates that all contexts share are on all devices, whatever their number.
    three = Shared(random_tokens(rng, [2, 3, 4], width=5), of_rows=False)
    shared = dataclasses.replace(
        batch, inputs=dataclasses.replace(batch.inputs, shared=three), where=np.ones((B, 3), bool)
    )
    there = place(shared)
    assert there.inputs.shared.tokens.ids.sharding.is_fully_replicated
    assert not there.where.sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, there, shared)


def test_a_scorer_on_a_mesh_scores_as_on_one_device():
    from polyjax.data.text import TextConfig, TextEncoder
    from polyjax.inference.scorer import TextScorer
    from toy import SHAPE as TOY_SHAPE
    from toy import Letters, examples

    text = TextEncoder(Letters(), TextConfig(context_tokens=16, candidate_tokens=8, buckets=(8, 16, 24)))
    rows = examples(21, candidates=5)
    contexts, candidates = [e.context for e in rows], [e.candidates for e in rows]
    for head in (BiConfig(), PolyConfig(n_codes=4), CrossConfig()):
        scorer = make_scorer(TOY_SHAPE, head, rngs=nnx.Rngs(0))
        expected = TextScorer(scorer, text).score(contexts, candidates)
        for mesh in ("data=8", "data=3", "data=2,model=2"):
            there = TextScorer(scorer, text, mesh=make_mesh(mesh))
            np.testing.assert_allclose(there.score(contexts, candidates), expected, atol=1e-5)
            if there.is_dual:
                texts = ["ab", "cde", "f"]
                vectors = there.encode_candidates(texts)
                np.testing.assert_allclose(
                    vectors, TextScorer(scorer, text).encode_candidates(texts), atol=1e-5
                )
                assert there.compile_contexts()[0].shape[0] == 1


def test_lists_of_one_row_are_not_taken_for_common_ones(rng):
    batch = batch_of(rng, HEADS["cross-first"], 1, listed=3)
    there = BatchPlacer(make_mesh("data=1", jax.devices()[:1]), 1)(batch)
    assert there.where.sharding.spec == P(("data", "fsdp"))
