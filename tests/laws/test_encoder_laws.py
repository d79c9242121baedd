"""What holds for every transformer that EncoderConfig can describe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import ENCODERS, random_tokens, tiny
from polyjax import Encoder, EncoderConfig, InputError, Tokens


@pytest.fixture(params=ENCODERS)
def encoder(request, rngs) -> Encoder:
    return Encoder(tiny(**ENCODERS[request.param]), rngs=rngs)


def padded(tokens: Tokens, *, left: int, right: int) -> Tokens:
    return jax.tree.map(lambda x: np.pad(x, ((0, 0), (left, right))), tokens)


@pytest.mark.parametrize(("left", "right"), [(0, 7), (3, 0), (2, 5)])
def test_padding_on_either_side_changes_nothing(encoder, rng, left, right):
    tokens = random_tokens(rng, [6, 6, 6], width=6)
    plain = encoder(tokens)
    wide = encoder(padded(tokens, left=left, right=right))[:, left : left + 6]
    np.testing.assert_allclose(wide, plain, atol=2e-6)


def test_padding_ids_do_not_matter(encoder, rng):
    tokens = random_tokens(rng, [4, 6], width=6)
    other = dataclasses.replace(tokens, ids=np.where(tokens.mask, tokens.ids, 33).astype(np.int32))
    np.testing.assert_allclose(encoder(other)[tokens.mask], encoder(tokens)[tokens.mask], atol=2e-6)


def test_rows_are_independent_and_permute(encoder, rng):
    tokens = random_tokens(rng, [6, 3, 5], width=6)
    order = np.array([2, 0, 1])
    permuted = encoder(jax.tree.map(lambda x: x[order], tokens))
    np.testing.assert_allclose(permuted, encoder(tokens)[order], atol=2e-6)


def test_a_packed_sequence_is_as_alone(encoder, rng):
    """In value and in the gradient of what is read from it; the others are not seen."""
    lengths = [5, 3, 6]
    alone = random_tokens(rng, lengths, width=6)
    flat = {
        name: np.concatenate([x[: lengths[i]] for i, x in enumerate(getattr(alone, name))])
        for name in ("ids", "mask", "segments")
    }
    row = jax.tree.map(lambda x: np.pad(x, (0, 2))[None], Tokens(**flat, packs=np.repeat([0, 1, 2], lengths)))
    packed = encoder(dataclasses.replace(row, packs=np.array(row.packs, np.int32)))[0]
    expected = encoder(alone)
    places = np.split(np.arange(14), np.cumsum(lengths)[:-1])
    for i, place in enumerate(places):
        np.testing.assert_allclose(packed[place], expected[i, : lengths[i]], atol=2e-6)
    graph, state = nnx.split(encoder)

    def read(state, tokens, rows, place):
        return (nnx.merge(graph, state)(tokens)[rows, place] ** 2).sum()

    together = jax.grad(read)(state, row, 0, places[1])
    apart = jax.grad(read)(state, alone, 1, np.arange(3))
    together, apart = (jax.tree.leaves(jax.device_get(gradients)) for gradients in (together, apart))
    largest = max(np.abs(gradient).max() for gradient in apart)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * largest)


def test_an_all_padding_row_stays_finite_in_value_and_gradient(encoder, rng):
    tokens = random_tokens(rng, [0, 6], width=6)
    graph, state = nnx.split(encoder)

    def total(state):
        return nnx.merge(graph, state)(tokens).sum()

    value, gradient = jax.value_and_grad(total)(state)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_scan_and_remat_change_nothing(encoder, rng):
    tokens = random_tokens(rng, [6, 3], width=6)
    _, state = nnx.split(encoder)
    weights = jnp.asarray(rng.normal(size=(2, 6, 16)), jnp.float32)

    def loss(changes):
        other = Encoder(dataclasses.replace(encoder.config, **changes), rngs=nnx.Rngs(0))
        graph, _ = nnx.split(other)
        return jax.value_and_grad(lambda state: (nnx.merge(graph, state)(tokens) * weights).sum())(state)

    value, gradient = loss({})
    for changes in (
        {"scan": True},
        {"remat": True},
        {"scan": True, "remat": True},
        {"remat": True, "remat_keeps": "products"},
    ):
        other_value, other_gradient = loss(changes)
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), other_gradient, gradient
        )


def test_dropout_needs_a_key_and_follows_it(rng, rngs):
    encoder = Encoder(tiny(dropout=0.5, attention_dropout=0.5), rngs=rngs)
    tokens = random_tokens(rng, [6], width=6)
    one, same, other = (encoder(tokens, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(encoder(tokens), encoder(tokens))


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_keeps_the_mean(rng, scan):
    encoder = Encoder(
        tiny(dropout=0.2, n_layers=1, scan=scan, embedding_norm=False, norm="pre"), rngs=nnx.Rngs(0)
    )
    tokens = random_tokens(rng, [6], width=6)
    draw = jax.jit(lambda key: encoder.embeddings(tokens) * 0 + encoder(tokens, key=key))
    mean = jnp.stack([draw(jax.random.key(i)) for i in range(400)]).mean(0)
    assert np.abs(mean - encoder(tokens)).mean() < 0.15


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_has_the_same_gradient(rng, dtype, processor):
    tokens = random_tokens(rng, [6, 4], width=6)
    weights = jax.random.normal(jax.random.key(0), (2, 6, 16))

    def run(dtype):
        encoder = Encoder(tiny(dtype=dtype), rngs=nnx.Rngs(0))
        graph, state = nnx.split(encoder)
        loss = lambda state: (nnx.merge(graph, state)(tokens).astype(jnp.float32) * weights).mean()  # noqa: E731
        gradient = jax.grad(loss)(state)
        return encoder(tokens), jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    (full, full_gradient), (half, half_gradient) = run("float32"), run(dtype)
    assert half.dtype == dtype
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05)
    cosine = (full_gradient @ half_gradient) / jnp.linalg.norm(full_gradient) / jnp.linalg.norm(half_gradient)
    assert cosine > 0.999


def test_sinusoidal_positions_by_hand():
    from polyjax.nn.encoders import sinusoidal_positions

    table = sinusoidal_positions(3, 4)
    np.testing.assert_allclose(table[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "n_heads must divide dim: 3 heads do not divide a width of 16"),
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dim": 9, "n_heads": 3, "positions": "sinusoidal"}, "even dim, got 9"),
    ],
)
def test_shapes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


def test_big_presets_have_the_published_size():
    encoder = nnx.eval_shape(lambda: Encoder(EncoderConfig.bert_base(), rngs=nnx.Rngs(0)))
    n = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder)))
    assert n == 108_891_648  # BERT base without its pooler: 109,482,240 - 590,592
