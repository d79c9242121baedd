"""A run small enough to be killed many times: python toy.py RUN_DIR ARCH [dtype=.. workers=.. mesh=..]

Contexts name a letter, labels repeat it: a problem that a tiny scorer learns.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from polyjax import BiConfig, CrossConfig, EncoderConfig, Example, PolyConfig, make_scorer
from polyjax.cli.flags import user_errors
from polyjax.data.batches import BatchConfig
from polyjax.data.rows import Rows
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.mesh.placement import make_mesh
from polyjax.mesh.processes import connect, leaving_at_once
from polyjax.nn.encoders import Dtype
from polyjax.runs import run_lock
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.train import (
    Callback,
    OptimConfig,
    Optimizer,
    Ranking,
    TrainConfig,
    TrainResult,
    train,
)
from polyjax.train.losses import Loss

SHAPE = EncoderConfig(vocab_size=40, dim=32, n_layers=2, n_heads=2, mlp_dim=64, n_positions=32, norm_eps=1e-5)
HEADS = {
    "bi": BiConfig(),
    "poly": PolyConfig(n_codes=4, codes_std=0.3),
    "cross": CrossConfig(reduction="mean"),
}


class Letters:
    """A tokenizer whose tokens are letters."""

    vocab_size, pad_id, start_id, end_id, separator_ids, mask_id = 40, 0, 1, 2, (3,), 4

    def encode(self, texts):
        """a -> 10, b -> 11, ..."""
        return [[ord(letter) - ord("a") + 10 for letter in text] for text in texts]

    def save(self, folder):
        """Nothing to save."""


def examples(n: int, *, candidates: int = 1, hard: int = 0, seed: int = 0) -> list[Example]:
    """Contexts of random letters whose right answer starts with the context's first letter.

    Rows have up to ``hard`` negatives of their own, which start with the letters after it.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        letters = draw.permutation(20)[: max(candidates, 1)]
        texts = tuple("abcdefghijklmnopqrst"[j] * 2 + "uvwxyz"[draw.integers(6)] for j in letters)
        context = (
            "uvwxyz"[draw.integers(6)] * int(draw.integers(1, 4)),
            texts[0][0] * 2 + "uvwxyz"[draw.integers(6)],
        )
        first = ord(texts[0][0]) - ord("a")
        own = tuple(
            "abcdefghijklmnopqrst"[(first + 1 + k) % 20] * 2 + "uvwxyz"[draw.integers(6)]
            for k in range(i % (hard + 1))
        )
        rows.append(Example(str(i), context, texts, 0, str(i // 3), negatives=own))
    return rows


OPTIM = {
    "bi": OptimConfig(learning_rate=3e-3, head_rate=1.0),
    "poly": OptimConfig(learning_rate=3e-3, head_rate=1.0),
    "cross": OptimConfig(learning_rate=1e-3, head_rate=10.0),
}


def run(
    run_dir: Path,
    arch: str,
    *,
    dropout: float = 0.1,
    batch_size: int = 10,
    dtype: Dtype = "float32",
    workers: int = 0,
    optim: OptimConfig | None = None,
    train_examples: list[Example] | None = None,
    mesh: str | None = None,
    buckets: int = 1,
    loss: str | Loss = "softmax",
    batch: BatchConfig | None = None,
    optimizer: Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **changes,
) -> TrainResult:
    """Train the architecture on the toy problem; ``changes`` are those of TrainConfig.

    Each bucket is a program more, which a short run spends most of its time on.
    """
    enable_compilation_cache()
    shape = dataclasses.replace(SHAPE, dropout=dropout, dtype=dtype)
    text = TextConfig(context_tokens=16, candidate_tokens=8, buckets=(8, 16, 24)[-buckets:])
    config = TrainConfig(steps=60, validate_every_steps=20, save_every_steps=7, validate_examples=30)
    run_dir.mkdir(parents=True, exist_ok=True)
    with run_lock(run_dir):
        objective = Ranking(
            make_scorer(shape, HEADS[arch], rngs=nnx.Rngs(0)),
            TextEncoder(Letters(), text),
            train_examples or examples(100),
            Rows(examples(30, candidates=8, seed=1)),
            batch=batch or BatchConfig(batch_size=batch_size, n_negatives=4, workers=workers),
            validate_examples=config.validate_examples,
            mesh=None if mesh is None else make_mesh(mesh),
            loss=loss,
        )
        return train(
            objective,
            run_dir,
            optim=optim or OPTIM[arch],
            config=dataclasses.replace(config, **changes),
            optimizer=optimizer,
            callbacks=callbacks,
            quiet=quiet,
        )


if __name__ == "__main__":
    folder, arch, *more = sys.argv[1:]
    given = dict(word.split("=", 1) for word in more)
    settings = {name: int(value) if value.isdecimal() else value for name, value in given.items()}
    with leaving_at_once(), user_errors():
        connect()
        print(run(Path(folder), arch, **settings))
