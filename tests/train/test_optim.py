"""Schedules, plateau semantics, what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from conftest import DUAL_HEADS, tiny
from polyjax import InputError, make_scorer
from polyjax.train.optim import OptimConfig, make_optimizer, plateau, schedule, trainable_filter


def test_warm_up_reaches_the_full_rate_and_linear_decay_never_hits_zero_before_the_end():
    rate = schedule(OptimConfig(learning_rate=2.0, warmup=0.1, decay="linear"), 100)
    rates = np.array([rate(i) for i in range(100)])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates.max() == 2.0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] > 0
    assert rate(100) == 0


@pytest.mark.parametrize("decay", ["plateau", "none"])
def test_without_linear_decay_the_rate_stays(decay):
    rate = schedule(OptimConfig(learning_rate=2.0, warmup=0.0, decay=decay), 100)
    assert [float(rate(i)) for i in (0, 50, 99)] == [2.0] * 3


@pytest.mark.parametrize(
    ("patience", "losses", "expected"),
    [
        # torch.optim.lr_scheduler.ReduceLROnPlateau(factor=0.5, patience=...), stepped with the losses
        (0, [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]),
        (0, [3.0, 3.0, 2.0, 2.5, 2.5], [1.0, 0.5, 0.5, 0.25, 0.125]),
        (1, [3.0, 3.0, 3.0, 3.0, 3.0], [1.0, 1.0, 0.5, 0.5, 0.25]),
        (2, [3.0, 3.1, 3.2, 2.9, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]),
    ],
)
def test_patience_means_what_it_means_in_torch(patience, losses, expected):
    rule = plateau(OptimConfig(plateau_factor=0.5, plateau_patience=patience))
    state = rule.init(jnp.zeros((), jnp.float32))
    scales = []
    with jax.numpy_dtype_promotion("standard"):
        for loss in losses:
            _, state = rule.update(jnp.zeros((), jnp.float32), state, value=jnp.float32(loss))
            scales.append(float(state.scale))
    assert scales == expected


def params_of(name: str):
    scorer = make_scorer(tiny(n_layers=3), DUAL_HEADS[name], rngs=nnx.Rngs(0))
    return scorer, {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(scorer))}


@pytest.mark.parametrize("trainable", ["all", "all-but-embeddings", 0, 1, 3])
def test_layers_to_fine_tune(trainable):
    scorer, every = params_of("poly-basic")
    _, chosen, _ = nnx.split(scorer, trainable_filter(trainable, scorer.settings.encoder), ...)
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(chosen)}
    assert "head.codes" in names
    if trainable == "all":
        assert names == every
        return
    assert not any("embeddings" in name for name in names)
    layers = {int(name.split("blocks.")[1].split(".")[0]) for name in names if "blocks." in name}
    assert layers == set(range(3) if trainable == "all-but-embeddings" else range(3 - trainable, 3))


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(InputError) as error:
        trainable_filter(4, tiny(n_layers=3))
    assert (error.value.argument, error.value.got) == ("train.trainable", 4)
    assert "0 to 3 layers" in error.value.expected


def test_head_rate_and_weight_decay_touch_what_they_should():
    scorer, _ = params_of("poly-basic")
    params = nnx.state(scorer)
    config = OptimConfig(
        learning_rate=1.0, warmup=0.0, decay="none", head_rate=7.0, weight_decay=0.5, clip=1e9
    )
    optimizer = make_optimizer(config, 10)
    ones = jax.tree.map(jnp.ones_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(ones, optimizer.init(params), params)
    flat = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(updates)}
    values = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}
    np.testing.assert_allclose(flat["head.codes"], -7.0, rtol=1e-5)
    np.testing.assert_allclose(flat["context_encoder.embeddings.tokens"], -1.0, rtol=1e-5)
    np.testing.assert_allclose(flat["context_encoder.blocks.0.mlp_in.bias"], -1.0, rtol=1e-5)
    name = "context_encoder.blocks.0.mlp_in.kernel"
    np.testing.assert_allclose(flat[name], -1.0 - 0.5 * values[name], rtol=1e-5)


def test_adamax_is_the_published_update():
    """Kingma & Ba, algorithm 2: u = max(b2 u, |g|), step = rate / (1 - b1^t) m / u."""
    config = OptimConfig(
        optimizer="adamax", learning_rate=0.1, warmup=0.0, decay="none", weight_decay=0.0, clip=1e9
    )
    optimizer = make_optimizer(config, 10)
    params, gradients = {"a": jnp.array([1.0])}, [2.0, -1.0, 0.5]
    state, expected, m, u = optimizer.init(params), 1.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update({"a": jnp.array([g])}, state, params)
            params = optax.apply_updates(params, updates)
        m, u = 0.9 * m + 0.1 * g, max(0.999 * u, abs(g))
        expected -= 0.1 / (1 - 0.9**t) * m / u
        np.testing.assert_allclose(params["a"][0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("eps", np.inf),
        ("warmup", 1.0),
        ("plateau_factor", 1.5),
        ("weight_decay", -1.0),
    ],
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(InputError) as error:
        OptimConfig(**{name: value})
    assert (error.value.argument, error.value.got) == (f"optim.{name}", value)
