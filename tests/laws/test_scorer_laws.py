"""What holds for every scorer: a candidate's score depends on its context and itself alone."""

import dataclasses
from types import SimpleNamespace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import CROSS_HEADS, DUAL_HEADS, HEADS, random_tokens, tiny
from polyjax import DualInputs, InputError, PairInputs, PolyConfig, make_scorer
from polyjax.nn.abstract import abstract_model
from polyjax.nn.attention import attend
from polyjax.nn.heads import BiConfig, PolyHead, ProductForm
from polyjax.nn.reduce import Reduction, reduce
from polyjax.types import Listed, Shared


@pytest.fixture(params=DUAL_HEADS)
def dual(request, rngs):
    return make_scorer(tiny(), DUAL_HEADS[request.param], rngs=rngs)


@pytest.fixture(params=HEADS)
def inputs_and_scorer(request, rng, rngs):
    """A scorer with inputs of 3 contexts and 4 listed candidates each."""
    scorer = make_scorer(tiny(), HEADS[request.param], rngs=rngs)
    if request.param in CROSS_HEADS:
        pairs = random_tokens(rng, rng.integers(4, 12, (3, 4)), width=12)
        return PairInputs(
            dataclasses.replace(pairs, segments=(pairs.mask & (np.arange(12) > 5)).astype(np.int32))
        ), scorer
    context = random_tokens(rng, [9, 3, 6], width=9)
    return DualInputs(context, listed=Listed(random_tokens(rng, rng.integers(2, 6, (3, 4)), width=6))), scorer


def pick(inputs, rows, columns):
    """Some contexts and some candidates of an input with listed candidates."""
    listed = lambda tokens: jax.tree.map(lambda x: x[rows][:, columns], tokens)  # noqa: E731
    if isinstance(inputs, PairInputs):
        return PairInputs(listed(inputs.pairs))
    return DualInputs(jax.tree.map(lambda x: x[rows], inputs.context), listed=listed(inputs.listed))


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_a_reduction_reads_what_is_real_and_nothing_else(reduction, rng):
    """Wherever it lies in the row, and whatever the rest is; by hand for one token and for two."""
    hidden = rng.normal(size=(3, 6, 4)).astype(np.float32)
    mask = np.zeros((3, 6), bool)
    mask[0, 2:4] = mask[1, 5] = True
    other = np.where(mask[..., None], hidden, 1e3).astype(np.float32)
    found = np.asarray(reduce(jnp.asarray(hidden), jnp.asarray(mask), reduction))
    np.testing.assert_array_equal(found, reduce(jnp.asarray(other), jnp.asarray(mask), reduction))
    a, b = hidden[0, 2], hidden[0, 3]
    expected = {
        "first": a,
        "last": b,
        "mean": (a + b) / 2,
        "max": np.maximum(a, b),
        "mean_sqrt": (a + b) / np.sqrt(2),
        "weighted_mean": (3 * a + 4 * b) / 7,
    }
    np.testing.assert_allclose(found[0], expected[reduction], rtol=1e-6)
    np.testing.assert_allclose(found[1], hidden[1, 5], rtol=1e-6)
    assert not found[2].any()


def test_what_is_pooled_may_be_less_than_what_is_attended_to(rng, rngs):
    scorer = make_scorer(tiny(), BiConfig(reduction="first"), rngs=rngs)
    tokens = random_tokens(rng, [6], width=6)
    pooled = dataclasses.replace(tokens, pooled=tokens.mask & (np.arange(6) >= 2))
    hidden = scorer.context_encoder(tokens)
    np.testing.assert_allclose(scorer.encode_candidates(pooled)[0], hidden[0, 2], rtol=1e-6)
    np.testing.assert_allclose(scorer.encode_candidates(tokens)[0], hidden[0, 0], rtol=1e-6)


def test_embeddings_are_scaled_to_length_1_unless_they_are_asked_for_raw(rng):
    tokens = random_tokens(rng, [6, 3], width=6)
    settings = DUAL_HEADS["bi-dense"]
    raw, scaled = (
        make_scorer(tiny(), dataclasses.replace(settings, raw_embeddings=raw), rngs=nnx.Rngs(0)).embed(tokens)
        for raw in (True, False)
    )
    assert raw.shape == (2, 8) and make_scorer(tiny(), settings, rngs=nnx.Rngs(0)).settings.vector_dim == 8
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(scaled, raw / lengths, rtol=1e-4, atol=1e-6)


def test_only_a_bi_encoder_embeds_texts(rng, rngs):
    with pytest.raises(InputError) as error:
        make_scorer(tiny(), DUAL_HEADS["poly-basic"], rngs=rngs).embed(random_tokens(rng, [6], width=6))
    assert error.value.argument == "head"


def test_permuting_contexts_and_candidates_permutes_scores(inputs_and_scorer):
    inputs, scorer = inputs_and_scorer
    rows, columns = np.array([2, 0, 1]), np.array([3, 1, 0, 2])
    np.testing.assert_allclose(
        scorer(pick(inputs, rows, columns)), scorer(inputs)[rows][:, columns], rtol=2e-5, atol=2e-6
    )


def test_a_score_does_not_depend_on_its_company(inputs_and_scorer):
    inputs, scorer = inputs_and_scorer
    scores = scorer(inputs)
    alone = np.array([[scorer(pick(inputs, [i], [j])).item() for j in range(4)] for i in range(3)])
    np.testing.assert_allclose(alone, scores, rtol=2e-5, atol=2e-6)


def test_padding_changes_no_score(inputs_and_scorer):
    inputs, scorer = inputs_and_scorer
    wide = jax.tree.map(lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 5)]), inputs)
    np.testing.assert_allclose(scorer(wide), scorer(inputs), rtol=2e-5, atol=2e-6)


def test_scores_are_float32_in_half_precision(inputs_and_scorer, rngs):
    inputs, scorer = inputs_and_scorer
    half = make_scorer(tiny(dtype="bfloat16"), scorer.head.config, rngs=nnx.Rngs(0))
    assert half(inputs).dtype == jnp.float32


def test_shared_candidates_equal_listed_ones(dual, rng):
    context = random_tokens(rng, [9, 3, 6], width=9)
    candidates = random_tokens(rng, [4, 2, 5, 6], width=6)
    listed = jax.tree.map(lambda x: np.broadcast_to(x, (3, *x.shape)), candidates)
    np.testing.assert_allclose(
        dual(DualInputs(context, Shared(candidates))),
        dual(DualInputs(context, listed=Listed(listed))),
        rtol=2e-5,
        atol=2e-6,
    )


def test_cached_candidates_give_the_same_scores(dual, rng):
    context = random_tokens(rng, [9, 3], width=9)
    candidates = random_tokens(rng, [4, 2, 5], width=6)
    vectors = dual.encode_candidates(candidates)
    cached = dual.score(*dual.encode_context(context), vectors[None])
    np.testing.assert_allclose(cached, dual(DualInputs(context, Shared(candidates))), rtol=1e-6)


@pytest.mark.parametrize("attention", ["basic", "sqrt"])
@pytest.mark.parametrize("sharpness", [1.0, 10.0])
@pytest.mark.parametrize("masked", [False, True])
def test_one_product_form_equals_the_textbook_form(rng, rngs, attention, sharpness, masked):
    """Attend over the context vectors, then take the dot product (arXiv 1905.01969 §4.4)."""
    config = PolyConfig(n_codes=7, candidate_attention=attention, candidate_sharpness=sharpness)
    head = PolyHead(config, 16, rngs=rngs)
    vectors, candidates = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 7, 16), (2, 5, 16)))
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [3 if masked else 7]]))
    scale = sharpness * (16**-0.5 if attention == "sqrt" else 1.0)
    attended = attend(candidates, vectors, mask, scale=scale)
    textbook = (attended * candidates).sum(-1)
    np.testing.assert_allclose(head.score(vectors, mask, candidates), textbook, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DUAL_HEADS)
def test_a_product_form_is_the_score(name, rng, rngs):
    """What certified search and first stages compute with, from the m products alone."""
    head = DUAL_HEADS[name].build(16, rngs=rngs)
    hidden, tokens = jnp.asarray(rng.normal(size=(3, 9, 16)), jnp.float32), np.array([9, 3, 6])
    vectors, real = head.context(hidden, jnp.asarray(np.arange(9) < tokens[:, None]))
    candidates = jnp.asarray(rng.normal(size=(4, vectors.shape[-1])), jnp.float32)
    form = head.product_form
    if form is None:
        assert head.config.candidate_attention == "multihead"
        return
    assert form.masked or real.all()
    products = np.einsum("bmd,cd->bcm", np.asarray(vectors, np.float64), np.asarray(candidates, np.float64))
    weights = np.where(np.asarray(real)[:, None], np.exp(form.sharpness * products), 0)
    expected = form.scale * (weights * products).sum(-1) / weights.sum(-1)
    np.testing.assert_allclose(head.score(vectors, real, candidates[None]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"scale": 0.0}, "scale"), ({"scale": np.nan}, "scale"), ({"sharpness": -1.0}, "sharpness")],
)
def test_a_product_form_without_bounds_is_refused(changes, field):
    with pytest.raises(InputError) as error:
        ProductForm(**changes)
    assert (error.value.argument, error.value.got) == (
        f"product_form.{field}",
        pytest.approx(changes[field], nan_ok=True),
    )


@pytest.mark.parametrize(
    "head",
    [
        BiConfig,  # the class, not settings
        SimpleNamespace(arch="x", inputs="dual", build=print),  # dual, without shared_encoder
        SimpleNamespace(arch="x", inputs="both", build=print),
    ],
)
def test_what_is_no_head_is_refused(head, rngs):
    with pytest.raises(InputError) as error:
        make_scorer(tiny(), head, rngs=rngs)
    assert error.value.argument == "head"


def test_one_code_is_a_bi_encoder_with_attention_pooling(rng, rngs):
    scorer = make_scorer(tiny(), PolyConfig(n_codes=1, codes_std=1.0), rngs=rngs)
    context, candidates = random_tokens(rng, [9, 3], width=9), random_tokens(rng, [4, 2, 5], width=6)
    pooled = attend(scorer.head.codes[...][None], scorer.context_encoder(context), jnp.asarray(context.mask))[
        :, 0
    ]
    expected = pooled @ scorer.encode_candidates(candidates).T
    scores = scorer(DualInputs(context, Shared(candidates)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_codes_of_zero_start_as_the_mean_pooled_bi_encoder(rng):
    """So a poly-encoder put on pretrained weights starts no worse than the bi-encoder."""
    shared = {"shared_encoder": True, "normalize": True, "score_scale": 20.0}
    poly = make_scorer(
        tiny(), PolyConfig(codes_std=0.0, candidate_sharpness=10.0, **shared), rngs=nnx.Rngs(0)
    )
    bi = make_scorer(tiny(), BiConfig(**shared), rngs=nnx.Rngs(0))
    inputs = DualInputs(random_tokens(rng, [9, 3], width=9), Shared(random_tokens(rng, [4, 2, 5], width=6)))
    np.testing.assert_allclose(poly(inputs), bi(inputs), rtol=1e-4)


def test_first_codes_of_a_short_context_equal_fewer_codes(rng):
    """A context of 3 tokens has 3 context vectors, however many codes are asked for."""
    context, candidates = random_tokens(rng, [3], width=3), random_tokens(rng, [4, 2], width=6)
    scores = [
        make_scorer(tiny(), PolyConfig(codes="first", n_codes=n), rngs=nnx.Rngs(0))(
            DualInputs(context, Shared(candidates))
        )
        for n in (3, 8)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_unit_vectors_bound_the_score(rng, rngs):
    scorer = make_scorer(tiny(), DUAL_HEADS["poly-unit-shared"], rngs=rngs)
    inputs = DualInputs(random_tokens(rng, [9, 3], width=9), Shared(random_tokens(rng, [4, 2, 5], width=6)))
    assert np.abs(scorer(inputs)).max() <= 20.0 + 1e-4


def test_separate_encoders_are_two_and_a_shared_one_is_one(rngs):
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(make_scorer(tiny(), head, rngs=rngs))))
        for name, head in DUAL_HEADS.items()
        if name in ("bi-mean", "bi-shared")
    }
    assert sizes["bi-mean"] == 2 * sizes["bi-shared"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolyConfig(n_codes=0), "head.n_codes: expected at least 1 .*, got 0"),
        (lambda: PolyConfig(score_scale=0.0), "head.score_scale: expected a positive number, got 0.0"),
        (lambda: PolyConfig(codes_std=-1.0), "head.codes_std: expected at least 0, got -1.0"),
        (
            lambda: make_scorer(
                tiny(), PolyConfig(codes_attention="multihead", codes_heads=3), rngs=nnx.Rngs(0)
            ),
            "head.codes_heads: expected a divisor of the encoder's width of 16, got 3",
        ),
        (
            lambda: make_scorer(tiny(n_segments=1), CROSS_HEADS["cross-first"], rngs=nnx.Rngs(0)),
            "encoder.n_segments: expected 2, for a cross-encoder, got 1",
        ),
    ],
)
def test_heads_that_cannot_work_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_mean_is_one_more_context_vector(rng):
    """Beside codes of any values; with padding it is the mean of what is real."""
    head = PolyConfig(n_codes=3, codes_std=1.0, with_mean=True).build(16, rngs=nnx.Rngs(0))
    plain = PolyConfig(n_codes=3, codes_std=1.0).build(16, rngs=nnx.Rngs(0))
    hidden = jnp.asarray(rng.normal(size=(2, 6, 16)), jnp.float32)
    mask = jnp.asarray(np.arange(6) < np.array([[6], [2]]))
    vectors, real = head.context(hidden, mask)
    assert vectors.shape == (2, 4, 16) and real.all()
    np.testing.assert_array_equal(vectors[:, :3], plain.context(hidden, mask)[0])
    np.testing.assert_allclose(vectors[1, 3], hidden[1, :2].mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        jnp.einsum("bmt,btd->bmd", head.reads(hidden, mask), hidden), vectors, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("attention", ["basic", "sqrt"])
def test_a_learnt_sharpness_starts_as_given_and_is_a_constant_of_the_product_form(attention, rng):
    settings = {"n_codes": 5, "codes_std": 1.0, "candidate_sharpness": 3.0, "candidate_attention": attention}
    head = PolyConfig(**settings, learnt_sharpness=True).build(16, rngs=nnx.Rngs(0))
    fixed = PolyConfig(**settings).build(16, rngs=nnx.Rngs(0))
    assert head.product_form.sharpness == pytest.approx(fixed.product_form.sharpness, rel=1e-6)
    vectors, candidates = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 16), (1, 4, 16)))
    real = jnp.ones((2, 5), bool)
    np.testing.assert_allclose(
        head.score(vectors, real, candidates), fixed.score(vectors, real, candidates), rtol=1e-6
    )
    head.sharper[...] = jnp.float32(np.log(2.0))
    twice = PolyConfig(**settings | {"candidate_sharpness": 6.0}).build(16, rngs=nnx.Rngs(0))
    assert head.product_form.sharpness == pytest.approx(twice.product_form.sharpness, rel=1e-6)
    for shared in (candidates, jnp.broadcast_to(candidates, (2, 4, 16))):
        np.testing.assert_allclose(
            head.score(vectors, real, shared), twice.score(vectors, real, shared), rtol=1e-5, atol=1e-5
        )
    graph, state = nnx.split(head)
    gradient = jax.grad(lambda state: nnx.merge(graph, state).score(vectors, real, candidates).sum())(state)
    assert abs(float(gradient["sharper"][...])) > 1e-3, "it is learnt"


def test_codes_start_from_clusters_of_outputs(rng):
    """Each at its own cluster, as long as a draw; the same ones for the same outputs and seed."""
    d, away = 16, 5 * np.eye(16, dtype=np.float32)[:4]
    outputs = np.concatenate([centre + 0.01 * rng.normal(size=(50, d)) for centre in away]).astype(np.float32)
    config = PolyConfig(n_codes=4, codes_std=0.5, codes_start="clusters")

    def codes(seed):
        head = config.build(d, rngs=nnx.Rngs(0))
        assert head.wants_outputs and not PolyConfig().build(d, rngs=nnx.Rngs(0)).wants_outputs
        head.start_from(outputs, seed=seed)
        return np.asarray(head.codes[...])

    found = codes(0)
    np.testing.assert_array_equal(found, codes(0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 0.5 * 4, rtol=1e-5)
    directions = away - away.mean(0)
    cosines = found @ directions.T / (2 * np.linalg.norm(directions, axis=1))
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2, 3] and cosines.max(1).min() > 0.99
    with pytest.raises(InputError) as error:
        PolyConfig(n_codes=3, codes_start="clusters").build(d, rngs=nnx.Rngs(0)).start_from(
            outputs[:2], seed=0
        )
    assert (error.value.argument, error.value.got) == ("head.n_codes", 3)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"codes": "first", "codes_start": "clusters"}, "codes_start"),
        ({"candidate_attention": "multihead", "learnt_sharpness": True}, "learnt_sharpness"),
    ],
)
def test_poly_settings_that_would_do_nothing_are_refused(settings, name):
    with pytest.raises(InputError) as error:
        PolyConfig(**settings)
    assert error.value.argument == f"head.{name}"


@pytest.mark.parametrize("name", HEADS)
def test_an_abstract_model_has_the_shapes_of_a_real_one(name):
    def shapes(model):
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        return {path: (leaf.shape, leaf.dtype) for path, leaf in flat}

    abstract = abstract_model(lambda rngs: make_scorer(tiny(), HEADS[name], rngs=rngs))
    assert shapes(abstract) == shapes(make_scorer(tiny(), HEADS[name], rngs=nnx.Rngs(0)))


def test_a_module_that_keeps_random_numbers_draws_different_ones_later():
    """As flax's Dropout does, and as a user's own head may."""

    class Kept(nnx.Module):
        def __init__(self, rngs):
            self.dropout, self.all, self.stream = nnx.Dropout(0.5, rngs=rngs), rngs, rngs.dropout

    abstract = abstract_model(Kept)
    assert type(abstract.dropout.rngs) is type(abstract.stream) is nnx.RngStream
    assert type(abstract.all) is nnx.Rngs
    real = nnx.merge(nnx.graphdef(abstract), nnx.state(Kept(nnx.Rngs(0))))
    assert len({float(jax.random.uniform(real.all.params())) for _ in range(5)}) == 5
