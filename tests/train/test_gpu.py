"""What will run on GPUs lowers for them, on a machine without one."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import HEADS, random_tokens, tiny
from polyjax import PolyConfig, Tokens, make_scorer
from polyjax.mesh.placement import BatchPlacer, make_mesh
from polyjax.nn.attention import cudnn_suits
from polyjax.nn.encoders import Encoder
from polyjax.nn.heads import PolyHead
from polyjax.retrieval.index.store import in_memory
from polyjax.retrieval.search.scan import Scan
from polyjax.train import Trainer
from polyjax.train.losses import ranking_loss
from test_step import batch_of

HALF = ["bfloat16", "float16"]


def lowered(function, *arguments) -> str:
    """The program for CUDA."""
    exported = jax.export.export(function, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    return exported.mlir_module()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["bi-mean", "poly-basic", "cross-first"])
@pytest.mark.parametrize("mesh", ["data=1", "data=4,fsdp=2"])
def test_the_train_step_lowers(name, dtype, mesh, rng):
    scorer = make_scorer(tiny(dtype=dtype, dropout=0.1), HEADS[name], rngs=nnx.Rngs(0))
    devices = make_mesh(mesh, jax.devices()[: 1 if mesh == "data=1" else 8])
    trainer = Trainer(scorer, ranking_loss, encoder=scorer.settings.encoder, n_steps=10, mesh=devices)
    assert (trainer.state.loss_scale is not None) == (dtype == "float16")
    batch = BatchPlacer(devices, 8)(batch_of(rng, HEADS[name], 8))
    program = lowered(trainer.update, trainer.state, batch)
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert sum(f"x{short}>" in line for line in products) > len(products) / 2, (
        "products are in half precision"
    )


@pytest.mark.parametrize("dtype", HALF)
def test_the_encoder_lowers(dtype, rng):
    encoder = Encoder(tiny(dtype=dtype), rngs=nnx.Rngs(0))
    graph, state = nnx.split(encoder)
    tokens = random_tokens(rng, [3, 7], width=8)
    program = lowered(jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens)), state, tokens)
    assert f"tensor<2x8x16x{'bf16' if dtype == 'bfloat16' else 'f16'}>" in program


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_scan_lowers(dtype, rng):
    head = PolyHead(PolyConfig(n_codes=4), 16, rngs=nnx.Rngs(0))
    index = in_memory([str(i) for i in range(40)], rng.standard_normal((40, 16)).astype(np.float32), dtype)
    scan = Scan(head, index, rows=32)
    vectors, mask = jnp.zeros((2, 4, 16)), jnp.ones((2, 4), bool)
    best = jnp.full((2, 3), -jnp.inf), jnp.full((2, 3), -1, jnp.int32)
    program = lowered(scan.programs.merge.jitted, scan.programs.head, vectors, mask, *best, scan.blocks[0])
    assert "top_k" in program


def device(kind="NVIDIA A100-SXM4-40GB", platform="gpu", capability="8.0"):
    return types.SimpleNamespace(device_kind=kind, platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
    ("suits", "change"),
    [
        (True, {}),
        (True, {"dtype": jnp.float16}),
        (True, {"device": device("NVIDIA H100 80GB HBM3", capability="9.0")}),
        (False, {"dtype": jnp.float32}),
        (False, {"width": 20}),
        (False, {"width": 256}),
        (False, {"n_queries": 81}),
        (False, {"n_keys": 81}),
        (False, {"device": device("Tesla V100-SXM2-32GB", capability="7.0")}),
        (False, {"device": device("AMD Instinct MI300X")}),
        (False, {"device": device("cpu", platform="cpu")}),
    ],
)
def test_cudnn_is_chosen_where_its_conditions_hold(suits, change):
    arguments = {"dtype": jnp.bfloat16, "width": 32, "n_queries": 80, "n_keys": 80, "device": device()}
    assert cudnn_suits(**(arguments | change)) is suits


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_takes_what_it_is_given(dtype, packed, rng, monkeypatch):
    """Its own checks of shapes and layouts, forward and backward, and the program that calls it."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn

    import polyjax.nn.attention as attention

    monkeypatch.setattr(attention, "cudnn_suits", lambda *_, **__: True)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_: False)
    encoder = Encoder(tiny(dtype=dtype), rngs=nnx.Rngs(0))
    graph, state = nnx.split(encoder)
    tokens = random_tokens(rng, [3, 7], width=8)
    if packed:
        tokens = dataclasses.replace(tokens, packs=np.where(tokens.mask, np.arange(8) // 4, -1))

    def loss(state: nnx.State, tokens: Tokens) -> jax.Array:
        return nnx.merge(graph, state)(tokens).astype(jnp.float32).sum()

    calls = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    with jax.numpy_dtype_promotion("standard"):
        exported = jax.export.export(
            jax.jit(jax.value_and_grad(loss)),
            platforms=["cuda"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(call) for call in calls],
        )(state, tokens)
    program = exported.mlir_module()
    assert all(f"@{call}(" in program for call in calls)


@pytest.mark.parametrize("dtype", HALF)
def test_jax_attention_is_ours(dtype, rng, monkeypatch):
    """The branch of cuDNN, with jax's own implementation in its place, gives what the plain one does."""
    import polyjax.nn.attention as attention

    q, k, v = (jnp.asarray(rng.standard_normal((2, 8, 32)), dtype) for _ in range(3))
    mask = jnp.arange(8)[None] < jnp.array([[5], [8]])
    plain = attention.multi_head(q, k, v, mask, n_heads=4)
    original = jax.nn.dot_product_attention

    def instead(*arrays, implementation, **settings):
        assert implementation == "cudnn"
        return original(*arrays, implementation="xla", **settings)

    monkeypatch.setattr(attention, "cudnn_suits", lambda *_, **__: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    with jax.numpy_dtype_promotion("standard"):
        fused = attention.multi_head(q, k, v, mask, n_heads=4)
    np.testing.assert_allclose(
        np.asarray(fused, np.float32),
        np.asarray(plain, np.float32),
        atol=2e-2 if dtype == "bfloat16" else 3e-3,
    )
