"""The memory that is reported before a run is what the compiler says of the run itself."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from polyjax import BiConfig, CrossConfig, EncoderConfig, PolyConfig, make_scorer
from polyjax.data.text import TextConfig
from polyjax.mesh.placement import BatchPlacer, make_mesh
from polyjax.nn.scorers import ModelConfig
from polyjax.train import PlannedStep, TrainConfig, Trainer, device_memory
from polyjax.train.losses import ranking_loss
from polyjax.train.optim import OptimConfig
from polyjax.types import Batch, DualInputs, Listed, PairInputs, Shared, Tokens

SHAPE = EncoderConfig(
    vocab_size=500, dim=64, n_layers=4, n_heads=4, mlp_dim=256, n_positions=192, dropout=0.1, dtype="bfloat16"
)
TEXT = TextConfig(context_tokens=96, candidate_tokens=32, buckets=(32, 96, 127))
OPTIM = OptimConfig()


def tokens(*shape: int) -> Tokens:
    ids = np.ones(shape, np.int32)
    return Tokens(ids, np.ones(shape, bool), np.zeros(shape, np.int32))


@functools.cache  # an estimate is four programs
def planned(head, *, source="batch", listed=0, trainable="all") -> PlannedStep:
    model = ModelConfig(encoder=SHAPE, head=head)
    return PlannedStep(model, TEXT, OPTIM, TrainConfig(trainable=trainable), source=source, listed=listed)


def true_memory(
    head, b: int, c: int, *, trainable="all", chunk: int = 0, mesh: str = "data=1", **shape
) -> tuple[int, int]:
    """Temporary bytes and bytes of the state of a real step of b contexts, on a device."""
    devices = make_mesh(mesh)
    scorer = make_scorer(dataclasses.replace(SHAPE, **shape), head, rngs=nnx.Rngs(0))
    trainer = Trainer(
        scorer,
        functools.partial(ranking_loss, chunk=chunk),
        encoder=scorer.settings.encoder,
        n_steps=100,
        optim=OPTIM,
        trainable=trainable,
        mesh=devices,
    )
    if isinstance(head, CrossConfig):
        inputs = PairInputs(tokens(b, c, 127))
    else:
        kinds = {"shared": Shared(tokens(b, 32))} if c == b else {"listed": Listed(tokens(b, c, 32))}
        inputs = DualInputs(tokens(b, 96), **kinds)
    batch = Batch(inputs, np.zeros(b, np.int32), np.ones((b, c), bool))
    analysis = trainer.lowered(BatchPlacer(devices, b)(batch)).compile().memory_analysis()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(trainer.state))
    return analysis.temp_size_in_bytes, held


@pytest.mark.parametrize(
    ("head", "source", "listed", "b"),
    [
        (PolyConfig(n_codes=8), "batch", 0, 24),
        (BiConfig(), "sampled", 4, 12),
        (CrossConfig(), "inline", 5, 6),
    ],
)
def test_a_planned_steps_memory_is_what_the_whole_step_takes(head, source, listed, b):
    """Compiled without data or parameters it is that of the step; estimated it is near."""
    step = planned(head, source=source, listed=listed)
    temporary, held = true_memory(head, b, b if source == "batch" else listed)
    for found, rel in ((step.memory(b), 0.02), (step.estimate(b, b), 0.15)):
        assert found.parameters + found.optimizer == pytest.approx(held, rel=0.01)
        assert found.gradients + found.activations == pytest.approx(temporary, rel=rel)
        assert found.total == sum(dataclasses.astuple(found)) == found.held + found.activations
    scorer = make_scorer(SHAPE, head, rngs=nnx.Rngs(0))
    assert step.n_parameters == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(scorer)))


@pytest.mark.parametrize(
    ("mesh", "dtype", "head", "chunk"),
    [
        ("fsdp=8", "bfloat16", "bi", 0),
        ("data=4,model=2", "float32", "poly", 16),
    ],
)
def test_on_a_mesh_it_is_what_a_device_takes(mesh, dtype, head, chunk):
    b, shape = 64, {"vocab_size": 8000, "dtype": dtype, "n_layers": 3}
    config = {"bi": BiConfig(shared_encoder=True), "poly": PolyConfig(n_codes=16)}[head]
    model = ModelConfig(encoder=dataclasses.replace(SHAPE, **shape), head=config)
    step = PlannedStep(model, TEXT, OPTIM, TrainConfig(), source="batch", listed=0, mesh=make_mesh(mesh))
    temporary, held = true_memory(config, b, b, chunk=chunk, mesh=mesh, **shape)
    for found, rel in ((step.memory(b, chunk), 0.02), (step.estimate(chunk or b, b), 0.15)):
        assert found.parameters + found.optimizer == pytest.approx(held, rel=0.01)
        assert found.gradients + found.activations == pytest.approx(temporary, rel=rel)


def test_the_chunk_that_is_advised_fits_and_the_next_does_not():
    step = planned(BiConfig())
    limit = (step.estimate(8, 64).total + step.estimate(16, 64).total) // 2
    assert step.chunk_that_fits(limit, 64) == 8
    assert step.chunk_that_fits(step.estimate(1, 64).total - 1, 64) is None
    temporary, held = true_memory(BiConfig(), 64, 64, chunk=8)
    assert temporary + held < 1.1 * limit


@pytest.mark.parametrize(("b", "chunk"), [(96, 8), (96, 0)])
def test_scores_of_all_contexts_against_all_candidates_are_counted(b, chunk):
    """With many codes they are what fills the memory, in chunks above all."""
    head = PolyConfig(n_codes=128)
    temporary, _ = true_memory(head, b, b, chunk=chunk)
    found = planned(head).estimate(chunk or b, b)
    assert found.gradients + found.activations == pytest.approx(temporary, rel=0.15)


def test_frozen_parameters_need_no_gradients_and_no_moments():
    whole, top = (planned(BiConfig(), trainable=trainable).memory(8) for trainable in ("all", 1))
    assert top.parameters == whole.parameters
    assert top.gradients < 0.4 * whole.gradients and top.optimizer < 0.4 * whole.optimizer
    assert top.activations < whole.activations


def test_the_machines_memory_is_known():
    size, whose = device_memory()
    assert size > 2**30 and whose == f"each of this machine's {jax.local_device_count()} devices"
