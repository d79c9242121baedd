"""What benchmarks of training need: a batch of random tokens, and the update on one device."""

from collections.abc import Callable

import jax
import numpy as np

from polyjax import DualInputs, PairInputs, Shared, Tokens
from polyjax.mesh.placement import BatchPlacer, one_device
from polyjax.nn.scorers import Scorer
from polyjax.train import OptimConfig, Trainer
from polyjax.train.losses import ranking_loss
from polyjax.train.state import TrainState
from polyjax.types import Batch

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def random_batch(n: int, context: int, candidate: int, *, vocab_size: int = 3000) -> Batch:
    """n contexts and candidates of so many random tokens, without padding."""
    draw = np.random.default_rng(0)

    def tokens(length: int) -> Tokens:
        ids = draw.integers(1, vocab_size, (n, length)).astype(np.int32)
        return Tokens(ids, np.ones(ids.shape, bool), np.zeros_like(ids))

    inputs = DualInputs(tokens(context), Shared(tokens(candidate)))
    return Batch(inputs, np.arange(n, dtype=np.int32), np.ones((n, n), bool))


def random_pairs(n: int, c: int, length: int, *, vocab_size: int = 3000) -> Batch:
    """n contexts with c candidates each, as pairs of so many random tokens, without padding."""
    ids = np.random.default_rng(0).integers(1, vocab_size, (n, c, length)).astype(np.int32)
    segments = np.broadcast_to(np.arange(length) > length // 2, ids.shape).astype(np.int32)
    inputs = PairInputs(Tokens(ids, np.ones(ids.shape, bool), segments))
    return Batch(inputs, np.zeros(n, np.int32), np.ones((n, c), bool))


def one_device_update(
    scorer: Scorer, optim: OptimConfig, batch_size: int
) -> tuple[Step, TrainState, BatchPlacer]:
    """The update of all parameters as the loop makes it, its first state, and what places batches."""
    trainer = Trainer(
        scorer, ranking_loss, encoder=scorer.settings.encoder, n_steps=1000, optim=optim, mesh=one_device()
    )
    return trainer.update, trainer.state, BatchPlacer(trainer.mesh, batch_size)
