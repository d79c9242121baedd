"""Memory and time of a large batch's gradients, at once and in chunks: python benchmarks/chunks.py

MiniLM-sized models, float32, no dropout: a poly-encoder with two encoders and 64 codes, on 80-token contexts
and 48-token candidates of the batch; a cross-encoder, on 2 pairs of 128 tokens a context. Memory is the
temporary memory that the compiler plans for loss and gradients; the difference is the norm of the gradients'
difference from those of the whole batch, as a share of their norm. Prints a table, writes
results/chunks/HOST.json.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from common import print_table, timed
from flax import nnx
from record import RESULTS, Record
from training import random_batch, random_pairs

from polyjax import CrossConfig, EncoderConfig, PolyConfig, make_scorer
from polyjax.evaluation.report import hardware
from polyjax.train.losses import ranking_loss
from polyjax.types import Batch

MEASURES = ("polyjax/nn", "polyjax/train")
HEADS = {"poly": PolyConfig(n_codes=64), "cross": CrossConfig()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is compared.

    Attributes:
        batch: contexts of the large batch.
        chunk: contexts of a chunk, and of the small batch.
        repeats: timings of each, after one that is not counted.
        out: folder of the results.
    """

    batch: int = 64
    chunk: int = 8
    repeats: int = 3
    out: Path = RESULTS


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    record = Record("chunks", measures=MEASURES, settings=config)
    rows = [row for arch in HEADS for row in measured(arch, config, record)]
    columns = {
        "arch": "{arch}",
        "contexts": "{contexts}",
        "chunk": "{chunk}",
        "temporary MB": "{temporary_mb:,.0f}",
        "s": "{seconds:.2f}",
        "difference": "{difference:.1e}",
    }
    print_table("loss and gradients", columns, rows)
    record.write(config.out, {"hardware": hardware(), "rows": rows})


def measured(arch: str, config: BenchmarkConfig, record: Record) -> list[dict[str, Any]]:
    """Memory and time of one architecture, for the large batch, the same in chunks, and a small batch."""
    shape = EncoderConfig(vocab_size=3000, dim=384, n_layers=6, n_heads=12, mlp_dim=1536)
    graph, state = nnx.split(make_scorer(shape, HEADS[arch], rngs=nnx.Rngs(0)))
    rows: list[dict[str, Any]] = []
    whole: Any = None
    for n, chunk in ((config.batch, 0), (config.batch, config.chunk), (config.chunk, 0)):

        def loss(state: nnx.State, batch: Batch, chunk: int = chunk) -> jax.Array:
            return ranking_loss(nnx.merge(graph, state), batch, None, chunk=chunk)[0]

        batch = random_pairs(n, 2, 128) if arch == "cross" else random_batch(n, 80, 48)
        compiled = jax.jit(jax.value_and_grad(loss)).lower(state, batch).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None, "this backend does not tell the memory of its programs"
        _, gradients = jax.block_until_ready(compiled(state, batch))
        case = {"arch": arch, "contexts": n, "chunk": chunk or n}
        times = [
            timed(lambda run=compiled, batch=batch: jax.block_until_ready(run(state, batch)))
            for _ in range(config.repeats)
        ]
        seconds = record.add(case, "ms", {"loss and gradients": times})["loss and gradients"] / 1e3
        record.add(case, "MB", {"temporary memory": [analysis.temp_size_in_bytes / 1e6]})
        difference = float("nan")
        if n == config.batch:
            whole = gradients if whole is None else whole
            apart = jax.tree.map(lambda x, y: x - y, gradients, whole)
            difference = float(optax.tree.norm(apart) / optax.tree.norm(whole))
        rows.append(
            {
                "arch": arch,
                "contexts": n,
                "chunk": chunk or n,
                "temporary_mb": analysis.temp_size_in_bytes / 1e6,
                "seconds": seconds,
                "difference": difference,
            }
        )
    return rows


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
