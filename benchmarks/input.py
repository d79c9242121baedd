"""Does reading slow training down? python benchmarks/input.py --data-dir data

A MiniLM-sized poly-encoder is trained on chitchat for some updates, with a new batch from the pipeline for
each, and after it once more on the same batch, held in memory. What the pipeline costs is the time spent
waiting for it, as a share of the updates on held batches. Also: how fast the pipeline is alone, the share of
padding, and the time of tokenising the training split beforehand. Prints a table, writes
results/input/HOST.json.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import tyro
from common import print_table
from flax import nnx
from record import RESULTS, Record
from training import one_device_update

from polyjax import EncoderConfig, PolyConfig, make_scorer
from polyjax.data.batches import BatchConfig, make_loader
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.evaluation.report import hardware
from polyjax.interop.huggingface import minilm_folder
from polyjax.nn.encoders import Dtype
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.memory import restart_with_huge_pages
from polyjax.train.optim import OptimConfig

MEASURES = ("polyjax/data", "polyjax/train", "polyjax/nn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        data_dir: the prepared chitchat task.
        updates: of each.
        layers: of the encoder; fewer make the update faster, and reading it harder to hide.
        dtype: of the arithmetic.
        workers: processes that collate, see BatchConfig.
        text: lengths and buckets.
        batch_size: contexts.
        out: folder of the results.
    """

    data_dir: Path = Path("data")
    updates: int = 60
    layers: int = 6
    dtype: Dtype = "bfloat16"
    workers: int = 0
    text: TextConfig = TextConfig()
    batch_size: int = 32
    out: Path = RESULTS


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    enable_compilation_cache()
    record = Record("input", measures=MEASURES, settings=config)
    examples = ChitchatConfig(data_dir=config.data_dir).read("train").examples
    text = TextEncoder(HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE), config.text)
    settings = BatchConfig(batch_size=config.batch_size, workers=config.workers)
    shape = EncoderConfig(
        vocab_size=30522, dim=384, n_layers=config.layers, n_heads=12, mlp_dim=1536, dtype=config.dtype
    )
    scorer = make_scorer(shape, PolyConfig(), rngs=nnx.Rngs(0))
    step, state, place = one_device_update(scorer, OptimConfig(), config.batch_size)

    began = time.perf_counter()
    loader, plan = make_loader(examples, text, settings, inputs="dual", n_batches=config.updates, seed=0)
    tokenised = time.perf_counter() - began
    alone, _ = make_loader(examples, text, settings, inputs="dual", n_batches=400, seed=0)
    next(alone)
    began = time.perf_counter()
    batches = list(alone)
    rate = len(batches) * config.batch_size / (time.perf_counter() - began)
    sides = [side for batch in batches for side in (batch.inputs.context, batch.inputs.shared.tokens)]
    masks = [tokens.mask for tokens in sides]
    padding = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    waits: list[float] = []
    compiled: set[tuple[int, ...]] = set()
    times: dict[str, list[float]] = {"pipeline": [], "held": []}
    for number in range(config.updates):
        began = time.perf_counter()
        batch = next(loader)
        waits.append(time.perf_counter() - began)
        shapes = (batch.inputs.context.ids.shape[1], batch.inputs.shared.tokens.ids.shape[1])
        if shapes not in compiled:
            state, figures = step(state, place(batch))
            jax.block_until_ready(figures)
            compiled.add(shapes)
        pairs = [("pipeline", waits[-1]), ("held", 0.0)]
        for name, extra in pairs if number % 2 else reversed(pairs):  # the first of a shape takes longer
            began = time.perf_counter()
            state, figures = step(state, place(batch))
            jax.block_until_ready(figures)
            times[name].append(extra + time.perf_counter() - began)
    case = {"steps": config.updates, "contexts": config.batch_size}
    taken = {name: [1e3 * t for t in values] for name, values in times.items()}
    medians = record.add(case, "ms", taken, to="held")
    record.add(
        case, "share of the steps", {"waiting": [sum(waits) / sum(times["held"])], "padding": [padding]}
    )
    record.add(case, "contexts/s", {"pipeline alone": [rate]})
    record.add(case, "s", {"tokenising": [tokenised]})
    row: dict[str, Any] = {
        "pipeline_ms": medians["pipeline"],
        "held_ms": medians["held"],
        "waiting": sum(waits) / sum(times["held"]),
        "waiting_shown": f"{sum(waits) / sum(times['held']):.2%}",
        "examples_per_second": rate,
        "padding": padding,
        "padding_shown": f"{padding:.1%}",
        "tokenising_s": tokenised,
        "examples": len(examples),
        "programs": len(compiled),
        "batches_per_epoch": plan.batches_per_epoch,
    }
    columns = {
        "update, new batch": "{pipeline_ms:,.0f}",
        "held batch": "{held_ms:,.0f}",
        "waiting": "{waiting_shown}",
        "pipeline alone, contexts/s": "{examples_per_second:,.0f}",
        "padding": "{padding_shown}",
        "tokenising all, s": "{tokenising_s:.1f}",
        "programs": "{programs}",
    }
    print_table(f"{config.updates} updates of {config.batch_size} contexts, ms", columns, [row])
    record.write(config.out, {"hardware": hardware(), "row": row})


if __name__ == "__main__":
    restart_with_huge_pages()
    main(tyro.cli(BenchmarkConfig))
