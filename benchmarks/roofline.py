"""What an update should take on named GPUs, and what it takes here: python benchmarks/roofline.py

XLA's cost analysis of the compiled update gives its operations and the bytes that it moves. On a device of P
operations and B bytes a second it cannot take less than max(operations / P, bytes / B): the roofline. The
model's own operations, as ``polyjax.train.speed`` counts them, over P times that are the utilisation (MFU)
that it allows. On a device whose peaks are known the update is run too, and the measured time stands beside
the expected one; on others (a CPU) pass --measure to have it run anyway. XLA counts bytes of each fused
loop's inputs and outputs for the device it compiles for: those of a CPU's program are an upper bound, as GPUs
fuse more. Prints a table, writes results/roofline/HOST.json.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from common import print_table, timed
from flax import nnx
from record import RESULTS, Record
from training import one_device_update, random_batch

from polyjax import BiConfig, DualInputs, EncoderConfig, PolyConfig, make_scorer
from polyjax.evaluation.report import hardware
from polyjax.train.optim import OptimConfig
from polyjax.train.speed import PEAKS, model_flops, peaks_of

MEASURES = ("polyjax/nn", "polyjax/train")
ENCODERS = {
    "minilm": EncoderConfig(vocab_size=30522, dim=384, n_layers=6, n_heads=12, mlp_dim=1536),
    "paper": EncoderConfig.paper(54_944),
}
HEADS = {"bi": BiConfig(), "poly": PolyConfig()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Which update.

    Attributes:
        encoder: ``minilm`` or ``paper`` (12 layers of 768).
        arch: ``bi`` or ``poly``.
        batch: contexts.
        context: tokens of a context.
        candidate: tokens of a candidate.
        dtype: of the arithmetic; the peaks are those of half precision.
        measure: run it here, whatever the device.
        repeats: timings.
        out: folder of the results.
    """

    encoder: str = "minilm"
    arch: str = "poly"
    batch: int = 32
    context: int = 80
    candidate: int = 24
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    measure: bool = False
    repeats: int = 10
    out: Path = RESULTS


def main(config: BenchmarkConfig) -> None:
    """Compile, analyse, run where that can be compared, print, write."""
    shape = dataclasses.replace(ENCODERS[config.encoder], dtype=config.dtype)
    batch = random_batch(config.batch, config.context, config.candidate)
    scorer = make_scorer(shape, HEADS[config.arch], rngs=nnx.Rngs(0))
    step, state, place = one_device_update(scorer, OptimConfig(), config.batch)
    there = place(batch)
    costs = jax.jit(step).lower(state, there).compile().cost_analysis()
    assert costs is not None, "this backend does not tell the costs of its programs"
    operations, moved = costs["flops"], costs["bytes accessed"]
    assert isinstance(batch.inputs, DualInputs) and batch.inputs.shared is not None
    sides = batch.inputs.context, batch.inputs.shared.tokens
    own = sum(model_flops(shape, np.asarray(side.mask).sum(-1)) for side in sides)

    device = jax.local_devices()[0]
    kind = device.device_kind
    accelerator = None if device.platform == "cpu" else kind
    record = Record("roofline", measures=MEASURES, settings=config, device=accelerator)
    case = {"arch": config.arch, "encoder": config.encoder, "contexts": config.batch, "dtype": config.dtype}
    record.add(case, "GFLOP", {"XLA": [operations / 1e9], "model": [own / 1e9]})
    record.add(case, "GB", {"moved": [moved / 1e9]})
    measured = None
    if config.measure or peaks_of(kind):
        held = [state]

        def run() -> None:
            held[0], figures = step(held[0], there)
            jax.block_until_ready(figures)

        run()  # compiles
        times = [timed(run) for _ in range(config.repeats)]
        measured = record.add(case, "ms", {"step": times})["step"] / 1e3
    rows: list[dict[str, Any]] = []
    for name, (peak, bandwidth) in PEAKS.items():
        compute, memory = operations / peak, moved / bandwidth
        seconds = max(compute, memory)
        rows.append(
            {
                "gpu": name,
                "compute_s": compute,
                "memory_s": memory,
                "expected_s": seconds,
                "bound": "compute" if compute > memory else "memory",
                "mfu": own / (peak * seconds),
                "examples_per_second": config.batch / seconds,
                "measured_s": measured if peaks_of(kind) == (peak, bandwidth) else None,
            }
        )
    expected = {row["gpu"]: [1e3 * row["expected_s"]] for row in rows}
    record.add(case | {"time": "expected"}, "ms", expected)
    for row in rows:
        row["shown"] = "-" if row["measured_s"] is None else f"{1e3 * row['measured_s']:.2f}"
        row["ms"] = 1e3 * row["expected_s"]
        row["mfu_shown"] = f"{row['mfu']:.0%}"
    print_table(
        f"{config.arch} x {config.encoder}, {config.dtype}, {config.batch} contexts: "
        f"{operations / 1e9:,.0f} GFLOP by XLA, {own / 1e9:,.0f} of the model, {moved / 1e9:.1f} GB moved",
        {
            "GPU": "{gpu}",
            "expected ms": "{ms:.2f}",
            "bound by": "{bound}",
            "MFU": "{mfu_shown}",
            "contexts/s": "{examples_per_second:,.0f}",
            "measured ms": "{shown}",
        },
        rows,
    )
    if measured is not None:
        print(f"{kind}: {1e3 * measured:.1f} ms, {own / measured / 1e9:,.0f} GFLOP/s of the model's own")
    record.write(
        config.out,
        {
            "hardware": hardware(),
            "operations": operations,
            "model_operations": own,
            "bytes": moved,
            "measured_s": measured,
            "device": kind,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
