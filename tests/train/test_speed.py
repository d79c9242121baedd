"""What a run tells of its speed, and the trace of its steps."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

import toy
from conftest import HEADS, random_tokens, tiny
from polyjax import InputError
from polyjax.nn.encoders import Encoder
from polyjax.runs import MetricsLog
from polyjax.train.config import TrainConfig
from polyjax.train.ranking import work_of
from polyjax.train.speed import Speed, model_flops, peaks_of
from polyjax.types import DualInputs, Shared
from test_step import batch_of


def test_operations_are_those_of_the_products(rng):
    """Three times what XLA counts of the products in a forward pass without padding."""
    config = tiny(dim=64, mlp_dim=256, n_heads=2)
    tokens = random_tokens(rng, [32] * 4, width=32)
    graph, state = nnx.split(Encoder(config, rngs=nnx.Rngs(0)))
    lowered = jax.jit(lambda state: nnx.merge(graph, state)(tokens)).lower(state)
    products = products_of(lowered.as_text())
    assert model_flops(config, tokens.mask.sum(-1)) == pytest.approx(3 * products, rel=1e-6)
    padded = random_tokens(rng, [16] * 4, width=32)
    lengths = tokens.mask.sum(-1)
    whole = model_flops(config, lengths)
    assert model_flops(config, padded.mask.sum(-1)) < 0.5 * whole, "padding does not count"
    assert model_flops(config, lengths, trained_layers=0) == pytest.approx(whole / 3), "forward alone"
    assert model_flops(config, lengths, trained_layers=1) == pytest.approx(whole * (2 + 2) / (3 * 2))


def products_of(text: str) -> int:
    """Operations of the products of a lowered program, in which blocks may call one function."""
    bodies = {part.split("@")[1].split("(")[0]: part for part in text.split("func.func ")[1:]}

    def count(name: str) -> int:
        total = 0
        for line in bodies[name].splitlines()[1:]:
            if "dot_general" in line:
                left, out = (
                    shape(part) for part in (line.split(" : (")[1].split(",")[0], line.split("-> ")[1])
                )
                rows = int(line.split("contracting_dims = [")[1].split("]")[0])
                total += 2 * math.prod(out) * left[rows]
            elif "call @" in line:
                total += count(line.split("call @")[1].split("(")[0])
        return total

    return count("main")


def shape(text: str) -> list[int]:
    return [int(n) for n in text.split("tensor<")[1].split(">")[0].split("x")[:-1]]


def test_speed_counts_tokens_and_padding(rng, monkeypatch):
    batch = batch_of(rng, HEADS["bi-mean"], 6)
    clock = iter([10.0, 12.0, 12.0])
    monkeypatch.setattr("polyjax.train.speed.time.monotonic", lambda: next(clock))
    speed = Speed(tiny(), n_devices=2, batch_size=12)
    speed.add(work_of(batch, 12))
    speed.add(work_of(batch, 12))
    found = speed.metrics()
    masks = [batch.inputs.context.mask, batch.inputs.shared.tokens.mask]
    tokens = sum(int(mask.sum()) for mask in masks)
    assert found["step_seconds"] == 1.0
    assert found["examples_per_second"] == 2 * 12 / 2.0, "each process sees its own part"
    assert found["tokens_per_second"] == 2 * 2 * tokens / 2.0
    assert found["padding"] == pytest.approx(1 - tokens / sum(mask.size for mask in masks))
    assert found["memory_gib"] > 0.01 and "mfu" not in found


def test_places_of_lists_without_a_candidate_are_waste(rng):
    batch = batch_of(rng, HEADS["cross-mean"], 4)
    assert batch.inputs.pairs.mask.ndim == 3
    where = np.arange(3) == np.zeros((4, 1), int)
    speed = Speed(tiny(), n_devices=1, batch_size=4)
    speed.add(work_of(dataclasses.replace(batch, where=where), 4))
    mask = np.asarray(batch.inputs.pairs.mask)
    assert speed.metrics()["padding"] == pytest.approx(1 - mask[:, 0].sum() / mask.size)


def test_work_of_both_kinds_of_candidates(rng):
    batch = batch_of(rng, HEADS["bi-mean"], 4, hard=2)
    context, shared, own = work_of(batch, 8)
    assert (context.share, shared.share, own.share) == (0.5, 0.5, 0.5)
    assert own.places == batch.inputs.listed.tokens.mask.size
    real = batch.inputs.listed.tokens.mask & batch.where[:, 4:, None]
    assert own.lengths.sum() == real.sum() < batch.inputs.listed.tokens.mask.sum()
    fixed = dataclasses.replace(
        batch, inputs=DualInputs(batch.inputs.context, Shared(batch.inputs.shared.tokens, of_rows=False))
    )
    assert [work.share for work in work_of(fixed, 8)] == [0.5, 1.0], "every process has them all"


def test_the_share_of_the_peak_is_that_of_the_arithmetic_in_use(rng, monkeypatch):
    monkeypatch.setattr("polyjax.train.speed.peaks_of", lambda kind: (1e12, 1e12))
    batch = batch_of(rng, HEADS["bi-mean"], 6)
    for dtype in ("float32", "bfloat16"):
        speed = Speed(tiny(dtype=dtype), n_devices=1, batch_size=6)
        speed.add(work_of(batch, 6))
        assert ("mfu" in speed.metrics()) == (dtype == "bfloat16"), "peaks are of half precision"


def test_peaks():
    assert peaks_of("Tesla V100-SXM2-32GB") == peaks_of("V100")
    assert peaks_of("NVIDIA L4") != peaks_of("NVIDIA L40S")


def test_a_run_logs_its_speed_and_a_trace(tmp_path):
    toy.run(tmp_path, "bi", steps=20, validate_every_steps=20, profile_steps="3-4")
    rows = [row for row in MetricsLog.read(tmp_path) if row["kind"] == "train"]
    for name in ("step_seconds", "examples_per_second", "tokens_per_second", "memory_gib", "learning_rate"):
        assert all(row[name] > 0 for row in rows), name
    assert all(0 <= row["padding"] < 1 for row in rows)
    assert rows[-1]["compilations"] >= 1
    traces = list((tmp_path / "profile").rglob("*"))
    assert any(path.name.endswith(".xplane.pb") for path in traces), "for TensorBoard and xprof"
    assert any(path.name == "perfetto_trace.json.gz" for path in traces), "for Perfetto"


@pytest.mark.parametrize("text", ["3", "4-3", "0-2", "a-b", "1-2-3"])
def test_steps_to_trace_that_cannot_be(text):
    with pytest.raises(InputError) as error:
        TrainConfig(profile_steps=text)
    assert (error.value.argument, error.value.got) == ("profile_steps", text)
