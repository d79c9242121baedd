"""What holds for every family of transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import ENCODERS, random_tokens
from polyjax import Encoder, EncoderConfig, InputError, Tokens
from polyjax.nn.encoders import FAMILIES, EncoderSettings, TokenEncoder
from polyjax.nn.encoders.deberta import relative_rows
from polyjax.nn.encoders.mpnet import distance_buckets
from polyjax.nn.linear import apply_dropout


@pytest.fixture(params=ENCODERS)
def encoder(request, rngs) -> TokenEncoder:
    """Of every family, its norms, offsets and tables moved off their initial values."""
    built = ENCODERS[request.param].build(rngs=rngs)
    draw = np.random.default_rng(1)
    state = nnx.state(built, nnx.Param)
    state = jax.tree.map(lambda x: x + 0.2 * draw.normal(size=x.shape).astype(np.float32), state)
    nnx.update(built, state)
    return built


def test_every_family_is_under_law():
    assert {family.settings for family in FAMILIES} == {type(settings) for settings in ENCODERS.values()}
    assert all(isinstance(settings, EncoderSettings) for settings in ENCODERS.values())


def test_an_encoder_keeps_the_contract(encoder):
    assert isinstance(encoder, TokenEncoder)


def padded(tokens: Tokens, *, left: int, right: int) -> Tokens:
    return jax.tree.map(lambda x: np.pad(x, ((0, 0), (left, right))), tokens)


@pytest.mark.parametrize(("left", "right"), [(0, 7), (3, 2)])
def test_padding_on_either_side_changes_nothing(encoder, rng, left, right):
    tokens = random_tokens(rng, [6, 6, 6], width=6)
    plain = encoder(tokens)
    wide = encoder(padded(tokens, left=left, right=right))[:, left : left + 6]
    np.testing.assert_allclose(wide, plain, atol=1e-5)


def test_padding_ids_do_not_matter(encoder, rng):
    tokens = random_tokens(rng, [4, 6], width=6)
    other = dataclasses.replace(tokens, ids=np.where(tokens.mask, tokens.ids, 33).astype(np.int32))
    np.testing.assert_allclose(encoder(other)[tokens.mask], encoder(tokens)[tokens.mask], atol=1e-5)


def test_rows_are_independent_and_permute(encoder, rng):
    tokens = random_tokens(rng, [6, 3, 5], width=6)
    order = np.array([2, 0, 1])
    permuted = encoder(jax.tree.map(lambda x: x[order], tokens))
    np.testing.assert_allclose(permuted, encoder(tokens)[order], atol=1e-5)


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
        np.testing.assert_allclose(packed[place], expected[i, : lengths[i]], atol=1e-5)
    graph, state = nnx.split(encoder)

    def read(state, tokens, rows, place):
        return (nnx.merge(graph, state)(tokens)[rows, place] ** 2).sum()

    together = jax.grad(read)(state, row, 0, places[1])
    apart = jax.grad(read)(state, alone, 1, np.arange(3))
    together, apart = (jax.tree.leaves(jax.device_get(gradients)) for gradients in (together, apart))
    largest = max(np.abs(gradient).max() for gradient in apart)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * largest)


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
        other = dataclasses.replace(encoder.config, **changes).build(rngs=nnx.Rngs(0))
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


def test_layers_that_share_weights_take_no_more_memory():
    """XLA would keep every shared bias, broadcast to all tokens, from the first layer to the last."""
    ids = np.ones((64, 64), np.int32)
    tokens = Tokens(ids, np.ones_like(ids, bool), np.zeros_like(ids))
    shape = {"dim": 32, "mlp_dim": 128, "n_layers": 6, "blocks_per_layer": 1}

    def temporary(n_groups: int) -> int:
        config = dataclasses.replace(ENCODERS["albert"], **shape, n_groups=n_groups)
        graph, state = nnx.split(config.build(rngs=nnx.Rngs(0)))
        compiled = (
            jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens)).lower(state, tokens).compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1) <= 1.1 * temporary(6)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_dropout_needs_a_key_and_follows_it(encoder, rng, rate):
    dropping = dataclasses.replace(encoder.config, **{rate: 0.5}).build(rngs=nnx.Rngs(0))
    nnx.update(dropping, nnx.state(encoder))
    tokens = random_tokens(rng, [6], width=6)
    one, same, other = (np.asarray(dropping(tokens, key=jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    scale = np.abs(one).max()
    assert np.abs(one - other).max() > 1e-3 * scale
    np.testing.assert_array_equal(dropping(tokens), encoder(tokens))


def test_dropout_keeps_the_mean():
    """What is kept is scaled up: the mean over many draws is the number itself."""
    x = jnp.arange(1.0, 5.0)
    draws = jax.vmap(lambda key: apply_dropout(x, 0.2, key))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(draws.mean(0), x, rtol=0.015)
    np.testing.assert_allclose((draws == 0).mean(0), 0.2, atol=0.015)


@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_has_the_same_gradient(rng, dtype, name, processor):
    tokens = random_tokens(rng, [6, 4], width=6)
    weights = jax.random.normal(jax.random.key(0), (2, 6, 16))

    def run(dtype):
        encoder = dataclasses.replace(ENCODERS[name], dtype=dtype).build(rngs=nnx.Rngs(0))
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
    ("name", "changes", "argument"),
    [
        ("bert", {"n_heads": 3}, "n_heads"),
        ("bert", {"n_layers": 0}, "n_layers"),
        ("bert", {"dropout": 1.0}, "dropout"),
        ("bert", {"dim": 9, "n_heads": 3, "positions": "sinusoidal"}, "dim"),
        ("roberta", {"pad_id": -1}, "pad_id"),
        ("electra", {"embedding_dim": 0}, "embedding_dim"),
        ("albert", {"n_groups": 0}, "n_groups"),
        ("modernbert", {"n_heads": 16}, "n_heads"),
        ("modernbert", {"window": 0}, "window"),
        ("deberta-v2", {"n_buckets": 5}, "n_buckets"),
        ("deberta-v2", {"max_distance": 3}, "max_distance"),
        ("deberta-v2", {"terms": ()}, "terms"),
        ("gte", {"theta": 0.0}, "theta"),
    ],
)
def test_shapes_that_cannot_work_are_refused(name, changes, argument):
    with pytest.raises(InputError) as error:
        dataclasses.replace(ENCODERS[name], **changes)
    assert error.value.argument == f"encoder.{argument}"
    assert error.value.has_value


def test_longer_tokens_than_positions_are_refused(encoder, rng):
    longest = encoder.config.n_positions
    with pytest.raises(InputError) as error:
        encoder(random_tokens(rng, [longest + 1], width=longest + 1))
    assert error.value.argument == "tokens" and error.value.got == longest + 1
    assert np.isfinite(encoder(random_tokens(rng, [longest], width=longest))).all()


def test_buckets_of_mpnet_on_their_edges():
    """Distances of 16, 32 and 64 begin a bucket: a rounded logarithm may put them into the one before."""
    row = distance_buckets(300)[0]
    assert row[[7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 299]].tolist() == [
        16 + bucket for bucket in (7, 8, 9, 10, 11, 12, 13, 14, 15, 15, 15)
    ]
    assert (distance_buckets(300)[:, 0][1:] == row[1:] - 16).all()


def test_buckets_of_deberta_on_their_edges():
    """The farthest distance, max_distance - 1, is in the last bucket but one of its side's table rows."""
    rows = relative_rows(64, 16, 64) - 16
    assert rows[63 + 8] == 8 and rows[63 + 9] == 9
    assert rows[63 + 63] == 15 and rows[0] == -15
    assert (np.diff(rows) >= 0).all() and rows[63] == 0


def test_big_presets_have_the_published_size():
    encoder = nnx.eval_shape(lambda: Encoder(EncoderConfig.bert_base(), rngs=nnx.Rngs(0)))
    n = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder)))
    assert n == 108_891_648  # BERT base without its pooler: 109,482,240 - 590,592
