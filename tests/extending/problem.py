"""The problem that parts of one's own are tried on, and its training."""

import numpy as np
from flax import nnx

from polyjax import Example, make_scorer
from polyjax.data.batches import BatchConfig
from polyjax.data.rows import Rows
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.nn.encoders import EncoderConfig
from polyjax.nn.heads import BiConfig
from polyjax.runs import MetricsLog
from polyjax.train.loop import TrainConfig, train
from polyjax.train.optim import OptimConfig
from polyjax.train.ranking import Ranking

SHAPE = EncoderConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, mlp_dim=32, n_positions=32)
TEXT = TextConfig(context_tokens=16, candidate_tokens=8, buckets=(8, 16))


class Letters:
    """A tokenizer whose tokens are letters."""

    vocab_size, pad_id, start_id, end_id, separator_ids, mask_id = 40, 0, 1, 2, (3,), 4

    def encode(self, texts):
        """a -> 10, b -> 11, ..."""
        return [[ord(letter) - ord("a") + 10 for letter in text] for text in texts]

    def save(self, folder):
        """One file."""
        (folder / "letters").write_text("a-z")


def rows(n: int, candidates: int, seed: int) -> list[Example]:
    """The right answer, which comes first, starts with the context's letter."""
    draw, found = np.random.default_rng(seed), []
    for i in range(n):
        letters = ["abcdefghijklmnopqrst"[j] for j in draw.permutation(20)[:candidates]]
        texts = tuple(letter * 2 + "uvwxyz"[draw.integers(6)] for letter in letters)
        found.append(Example(str(i), ("wvu"[i % 3], letters[0] * 3), texts, 0, str(i)))
    return found


def trained(run_dir, *, encoder=SHAPE, head=None, examples=None, loss="softmax", batch=None, on_log=None):
    """A run of 40 steps; its lines of metrics."""
    run_dir.mkdir(exist_ok=True)
    objective = Ranking(
        make_scorer(encoder, head or BiConfig(), rngs=nnx.Rngs(0)),
        TextEncoder(Letters(), TEXT),
        examples or rows(60, 1, 0),
        Rows(rows(20, 6, 1)),
        batch=batch or BatchConfig(batch_size=12),
        validate_examples=20,
        loss=loss,
    )
    optim = OptimConfig(learning_rate=1e-2, decay="none", warmup=0.0, head_rate=1.0)
    config = TrainConfig(steps=40, validate_every_steps=20, save_every_steps=10)
    more = {} if on_log is None else {"callbacks": [on_log]}
    train(objective, run_dir, optim=optim, config=config, **more)
    return MetricsLog.read(run_dir)


def recall(lines) -> float:
    """The last validation's recall@1."""
    return [line for line in lines if line["kind"] == "valid"][-1]["recall@1/6"]
