"""Time every encoder family against torch on the same weights: forward pass and training step.

    pip install -e '.[bench]'
    python benchmarks/encoders.py            # --quick for a look at whether it runs

Each family is made with random weights in one shape, written as transformers reads it, and loaded there. Both
read the same random ids in float32. They take turns, each after a pause (benchmarks/common.py); medians. The
process has huge pages, as polyjax's commands do: with small ones a pass of either faults in 30,000 to 260,000
pages, depending on what was computed before it. The last columns compare a family's ratio to torch with that
of bert: an interval above 1.1 says that the family costs here what it does not cost there. Prints a table and
writes results/encoders/HOST.json.
"""

import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]  (extra bench)
import tyro
from common import interval_of_quotient, print_table, take_turns
from flax import nnx
from record import RESULTS, Record
from safetensors.numpy import save_file
from transformers import AutoModel, logging  # pyright: ignore[reportMissingImports]

from polyjax import Tokens
from polyjax.evaluation.report import hardware
from polyjax.interop.huggingface import family_for, tensors_of
from polyjax.nn.encoders import (
    AlbertConfig,
    DebertaConfig,
    DistilBertConfig,
    ElectraConfig,
    EncoderConfig,
    GteConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    RobertaConfig,
)
from polyjax.runtime.memory import restart_with_huge_pages

MEASURES = ("polyjax/nn",)
RATE = 1e-5
MOST = 1.1
"""Ratio to torch over bert's; where its interval lies above, a profile has to say why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        families: by model_type; all where empty.
        layers: of each transformer.
        dim: width.
        rows: of a batch.
        tokens: of a row.
        threads: of torch; jax takes the cores it is given (``taskset``).
        repeats: timings of each.
        quick: a small shape and two timings, to see whether it runs; nothing is written.
        out: folder of the results.
    """

    families: tuple[str, ...] = ()
    layers: int = 6
    dim: int = 384
    rows: int = 32
    tokens: int = 128
    threads: int = os.cpu_count() or 1
    repeats: int = 7
    quick: bool = False
    out: Path = RESULTS


def shapes(config: BenchmarkConfig) -> dict[str, Any]:
    """Settings of every family in one shape, by model_type."""
    shape: dict[str, Any] = {
        "vocab_size": 8000,
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": max(config.dim // 32, 1),
        "mlp_dim": 4 * config.dim,
        "n_positions": 512,
    }
    return {
        "bert": EncoderConfig(**shape, n_segments=2),
        "roberta": RobertaConfig(**shape),
        "distilbert": DistilBertConfig(**shape),
        "electra": ElectraConfig(**shape, embedding_dim=config.dim),
        "mpnet": MPNetConfig(**shape),
        "albert": AlbertConfig(**shape, embedding_dim=128),
        "modernbert": ModernBertConfig(**shape),
        "deberta-v2": DebertaConfig(**shape, n_buckets=256, max_distance=512),
        "nomic_bert": NomicBertConfig(**shape),
        "gte": GteConfig(**shape),
    }


def written(encoder: Any, folder: Path) -> None:
    """An encoder as transformers reads it."""
    family = family_for(encoder.config)
    entries = family.entries(encoder.config)
    entries["architectures"] = [f"{family.architectures[entries['model_type']]}Model"]
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0, **entries}))
    flat = nnx.to_flat_state(nnx.state(encoder))
    values = {".".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in flat}
    save_file(
        tensors_of(family.stored(encoder.config), values),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


Calls = Mapping[str, Callable[[], object]]


def ours(encoder: Any, ids: np.ndarray) -> tuple[np.ndarray, Calls]:
    """The hidden states, and calls of a forward pass and a training step."""
    graph, state = nnx.split(encoder)
    tokens = Tokens(ids, np.ones_like(ids, bool), np.zeros_like(ids))
    rule = optax.adamw(RATE)

    @jax.jit
    def forward(state: nnx.State, tokens: Tokens) -> jax.Array:
        return nnx.merge(graph, state)(tokens)

    def loss(state: nnx.State, tokens: Tokens) -> jax.Array:
        return jnp.square(nnx.merge(graph, state)(tokens).mean(1)).mean()

    @jax.jit
    def step(state: nnx.State, kept: Any, tokens: Tokens) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            updates, kept = rule.update(jax.grad(loss)(state, tokens), kept, state)
            return optax.apply_updates(cast(Any, state), updates), kept

    held = [state, rule.init(state)]  # pyright: ignore[reportArgumentType]

    def train() -> None:
        held[:] = jax.block_until_ready(step(held[0], held[1], tokens))

    calls = {"forward": lambda: jax.block_until_ready(forward(state, tokens)), "step": train}
    return np.asarray(forward(state, tokens)), calls


def theirs(folder: Path, ids: np.ndarray) -> tuple[np.ndarray, Calls]:
    """The same of torch."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tensor = torch.from_numpy(ids).long()
    inputs = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
    rule = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)

    def forward() -> Any:
        with torch.inference_mode():
            return model(**inputs).last_hidden_state

    hidden = forward().numpy().copy()

    def train() -> None:
        rule.zero_grad()
        model(**inputs).last_hidden_state.mean(1).square().mean().backward()
        rule.step()

    return hidden, {"forward": forward, "step": train}


def main(config: BenchmarkConfig) -> None:
    """Check that the two agree, time them, print and write the table."""
    if config.quick:
        config = dataclasses.replace(config, layers=3, dim=64, rows=4, tokens=32, repeats=2)
    torch.set_num_threads(config.threads)
    logging.set_verbosity_error()  # of poolers that are not in the files
    logging.disable_progress_bar()
    record = Record("encoders", measures=MEASURES, settings=config, peers=("torch", "transformers"))
    ids = np.random.default_rng(0).integers(5, 8000, (config.rows, config.tokens)).astype(np.int32)
    chosen = {n: s for n, s in shapes(config).items() if n in ("bert", *(config.families or shapes(config)))}
    figures: list[dict[str, Any]] = []
    ratios: dict[tuple[str, str], list[float]] = {}  # to torch in each turn, by family and part
    first = (
        True  # torch's first timings in a process are a fifth slower: those of the first family are dropped
    )
    for name, shape in chosen.items():
        encoder = shape.build(rngs=nnx.Rngs(0))
        with tempfile.TemporaryDirectory() as place:
            written(encoder, Path(place))
            expected, torch_calls = theirs(Path(place), ids)
        hidden, calls = ours(encoder, ids)
        np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-4)
        for part in ("forward", "step"):
            if first:
                take_turns({"polyjax": calls[part], "torch": torch_calls[part]}, config.repeats)
            turns = take_turns({"polyjax": calls[part], "torch": torch_calls[part]}, config.repeats)
            case = {"family": name, "part": part}
            medians = record.add(case, "ms", turns.samples, to="torch", alone=turns.alone)
            ratio = medians["polyjax"] / medians["torch"]
            pairs = zip(turns.samples["polyjax"], turns.samples["torch"], strict=True)
            ratios[name, part] = [ours / torchs for ours, torchs in pairs]
            low, high = interval_of_quotient(ratios[name, part], ratios["bert", part])
            to_bert = statistics.median(ratios[name, part]) / statistics.median(ratios["bert", part])
            figures.append({**case, "ms": medians["polyjax"], "torch_ms": medians["torch"], "ratio": ratio})
            figures[-1] |= {"to_bert": to_bert, "low": low, "high": high, "within": low <= MOST}
        first = False
    columns = {"family": "{family}", "part": "{part}", "polyjax ms": "{ms:.1f}", "torch ms": "{torch_ms:.1f}"}
    columns |= {
        "ratio": "{ratio:.2f}",
        "to bert's": "{to_bert:.2f}",
        "95% interval": "{low:.2f} to {high:.2f}",
    }
    print_table("encoder families, float32", columns, figures)
    if not config.quick:
        own = {"hardware": hardware(), "threads": config.threads, "figures": figures}
        print(json.dumps({"written": str(record.write(config.out, own))}))


if __name__ == "__main__":
    restart_with_huge_pages()
    main(tyro.cli(BenchmarkConfig))
