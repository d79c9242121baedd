"""One update: a batch computed in chunks is the batch computed at once."""

import jax
import numpy as np
import pytest
from flax import nnx

from conftest import HEADS, random_tokens, tiny
from polyjax import BiConfig, CrossConfig, DualInputs, EncoderConfig, PairInputs, make_scorer
from polyjax.nn.scorers import in_chunks
from polyjax.train.losses import ranking_loss
from polyjax.types import Batch


def batch_of(rng, head, b: int, *, listed: int = 0) -> Batch:
    """A batch of b contexts, with shared candidates or ``listed`` of its own each."""
    label = np.arange(b, dtype=np.int32)
    context = random_tokens(rng, rng.integers(1, 13, b), width=12)
    if isinstance(head, CrossConfig) or listed:
        c = listed or 3
        texts = random_tokens(rng, rng.integers(1, 9, (b, c)), width=8)
        inputs = PairInputs(texts) if isinstance(head, CrossConfig) else DualInputs(context, texts)
        return Batch(inputs, label % c, np.ones((1, c), bool), None)
    candidates = random_tokens(rng, rng.integers(1, 9, b), width=8)
    return Batch(DualInputs(context, candidates), label, np.ones((1, b), bool), label // 2)


def loss_and_gradients(scorer, batch: Batch, chunk: int):
    graph, state = nnx.split(scorer)

    def loss(state):
        return ranking_loss(nnx.merge(graph, state), batch, None, chunk=chunk)[0]

    value, gradients = jax.device_get(jax.jit(jax.value_and_grad(loss))(state))
    return float(value), jax.tree.leaves(gradients)


def norm(arrays) -> float:
    return float(np.sqrt(sum((array.astype(float) ** 2).sum() for array in arrays)))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("listed", "chunks"), [(0, (10, 100)), (4, (8,))])  # 10 does not divide 64
def test_a_batch_of_64_in_chunks_has_the_same_loss_and_gradients(name, listed, chunks, rng):
    scorer = make_scorer(tiny(), HEADS[name], rngs=nnx.Rngs(0))
    batch = batch_of(rng, HEADS[name], 64, listed=listed)
    loss, gradients = loss_and_gradients(scorer, batch, 0)
    for chunk in chunks:
        chunked_loss, chunked = loss_and_gradients(scorer, batch, chunk)
        assert abs(chunked_loss - loss) < 1e-5 * loss
        difference = [x - y for x, y in zip(chunked, gradients, strict=True)]
        assert norm(gradients) > 1e-3 and norm(difference) < 1e-5 * norm(gradients), chunk


def test_memory_is_that_of_a_chunk(rng):
    """What a step keeps for a moment: a batch of 64 in chunks of 8 is about a batch of 8."""
    shape = EncoderConfig(vocab_size=50, dim=64, n_layers=4, n_heads=4, mlp_dim=256)
    graph, state = nnx.split(make_scorer(shape, BiConfig(), rngs=nnx.Rngs(0)))

    def temporary(b: int, chunk: int) -> int:
        batch = Batch(
            DualInputs(random_tokens(rng, [64] * b, width=64), random_tokens(rng, [32] * b, width=32)),
            np.arange(b, dtype=np.int32),
            np.ones((1, b), bool),
            None,
        )

        def loss(state):
            return ranking_loss(nnx.merge(graph, state), batch, None, chunk=chunk)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, chunked, whole = temporary(8, 0), temporary(64, 8), temporary(64, 0)
    assert chunked < 1.3 * small and whole > 5 * small


def test_each_chunk_draws_dropout_of_its_own(rng):
    scorer = make_scorer(tiny(dropout=0.5), BiConfig(), rngs=nnx.Rngs(0))
    same = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), random_tokens(rng, [6], width=6))
    vectors = in_chunks(scorer.encode_candidates, same, jax.random.key(0), 2)
    assert len(np.unique(np.asarray(vectors)[:, 0])) == 4
    again = in_chunks(scorer.encode_candidates, same, jax.random.key(0), 2)
    np.testing.assert_array_equal(vectors, again)


def test_recomputing_saves_memory_and_keeping_products_less(rng):
    def temporary(**changes) -> int:
        shape = EncoderConfig(vocab_size=50, dim=64, n_layers=6, n_heads=4, mlp_dim=256, scan=True, **changes)
        graph, state = nnx.split(make_scorer(shape, BiConfig(), rngs=nnx.Rngs(0)))
        batch = batch_of(rng, BiConfig(), 64)

        def loss(state):
            return ranking_loss(nnx.merge(graph, state), batch, None)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept, products, nothing = (
        temporary(),
        temporary(remat=True, remat_keeps="products"),
        temporary(remat=True),
    )
    assert nothing < 0.8 * products and products < 0.9 * kept
