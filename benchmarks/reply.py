"""A whole reply, context to best candidates: a 12-layer, 768-wide poly-encoder over 100,000 candidates.

    python benchmarks/reply.py            # extra `bench`

Random weights and vectors, 143 context tokens, 64 codes. The peer stands for ParlAI's reply on this
machine: the same transformer's forward pass in PyTorch (a BERT of that size), the codes' attention, and the
textbook scoring of all candidates; ParlAI's own overhead is left out. They take turns, each after a pause;
medians. Prints a table and writes results/reply/HOST.json.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (extra bench)
import tyro
from common import in_turns
from flax import nnx
from record import RESULTS, Record
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]  (of sentence-transformers)

from polyjax import DualScorer, EncoderConfig, PolyConfig, Tokens
from polyjax.evaluation.report import hardware
from polyjax.inference.programs import for_inference
from polyjax.nn.encoders import Dtype
from polyjax.retrieval.index.store import in_memory
from polyjax.retrieval.search.coarse import CoarseRows
from polyjax.retrieval.search.quick import QuickSearch
from polyjax.retrieval.search.scan import Scan

MEASURES = ("polyjax/nn", "polyjax/retrieval", "polyjax/inference/programs.py")
VOCAB, TOP_K = 30522, 10
PARTS = ("encode", "score", "reply")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        candidates: to choose from.
        tokens: of the context.
        codes: context vectors.
        repeats: rounds, after one that compiles.
        out: folder of the results.
    """

    candidates: int = 100_000
    tokens: int = 143
    codes: int = 64
    repeats: int = 9
    out: Path = RESULTS


def torch_reply(ids: np.ndarray, candidates: np.ndarray, codes: int) -> Callable[[], dict[str, float]]:
    """Seconds of the encoder and of the scoring."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=VOCAB), add_pooling_layer=False).eval()
    learnt, c = torch.randn(codes, candidates.shape[1]), torch.from_numpy(candidates)

    def run() -> dict[str, float]:
        with torch.inference_mode():
            began = time.perf_counter()
            hidden = model(torch.from_numpy(ids).long()).last_hidden_state[0]
            context = torch.softmax(learnt @ hidden.T, 1) @ hidden
            encoded = time.perf_counter()
            attended = torch.softmax(c @ context.T, 1) @ context
            torch.topk((attended * c).sum(1), TOP_K).indices.numpy()
        return {"encode": encoded - began, "score": time.perf_counter() - encoded}

    return run


def our_reply(
    ids: np.ndarray, candidates: np.ndarray, codes: int, dtype: Dtype
) -> Callable[[], dict[str, float]]:
    """The same of polyjax; float32 by the scan, bfloat16 with products in bfloat16."""
    shape = EncoderConfig(
        vocab_size=VOCAB, dim=768, n_layers=12, n_heads=12, mlp_dim=3072, n_positions=512, dtype=dtype
    )
    scorer = DualScorer(shape, PolyConfig(n_codes=codes, shared_encoder=True), rngs=nnx.Rngs(0))
    graph, state = nnx.split(for_inference(scorer))
    index = in_memory([""] * len(candidates), candidates)
    scan = Scan(scorer.head, index)
    quick = QuickSearch(scan, CoarseRows(index))
    tokens = Tokens(ids, np.ones(ids.shape, bool), np.zeros_like(ids))

    @jax.jit
    def encode(state: nnx.State, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        merged = nnx.merge(graph, state)
        assert isinstance(merged, DualScorer)
        return merged.encode_context(tokens)

    def run() -> dict[str, float]:
        began = time.perf_counter()
        vectors, mask = jax.block_until_ready(encode(state, tokens))
        encoded = time.perf_counter()
        if dtype == "float32":
            scan(vectors, mask, 16)
        else:
            quick(vectors, mask, 16)
        return {"encode": encoded - began, "score": time.perf_counter() - encoded}

    return run


def main(config: BenchmarkConfig) -> None:
    """Time, print and write."""
    torch.set_num_threads(os.cpu_count() or 1)
    draw = np.random.default_rng(0)
    ids = draw.integers(1000, VOCAB, (1, config.tokens)).astype(np.int32)
    candidates = draw.standard_normal((config.candidates, 768), np.float32)
    runs = {
        "torch": torch_reply(ids, candidates, config.codes),
        "polyjax float32": our_reply(ids, candidates, config.codes, "float32"),
        "polyjax bfloat16": our_reply(ids, candidates, config.codes, "bfloat16"),
    }
    record = Record("reply", measures=MEASURES, settings=config, peers=("torch", "transformers"))
    parts: dict[str, dict[str, list[float]]] = {part: {name: [] for name in runs} for part in PARTS}
    for name, round_ in in_turns(runs, config.repeats + 1):
        runs[name]()  # after a pause threads and caches wake up; the first compiles
        taken = runs[name]()
        taken["reply"] = taken["encode"] + taken["score"]
        if round_:
            for part in PARTS:
                parts[part][name].append(1e3 * taken[part])
    case = {"candidates": config.candidates, "codes": config.codes, "tokens": config.tokens}
    medians = {
        part: record.add(case | {"part": part}, "ms", times, to="torch") for part, times in parts.items()
    }
    figures = {name: {part: medians[part][name] for part in PARTS} for name in runs}
    table = Table(title=f"ms, {config.candidates:,} candidates, {config.codes} codes", title_justify="left")
    for name in ("", "encoding", "scoring", "reply", "of torch"):
        table.add_column(name, justify="right")
    for name, row in figures.items():
        ratio = row["reply"] / figures["torch"]["reply"]
        table.add_row(name, *(f"{row[part]:.1f}" for part in ("encode", "score", "reply")), f"{ratio:.2f}")
    Console().print(table)
    shape = {name: getattr(config, name) for name in ("candidates", "tokens", "codes")}
    record.write(config.out, {"hardware": hardware(), **shape, "ms": figures})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
