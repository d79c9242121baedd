"""What benchmarks of training need: a batch of random tokens, and the update on one device."""

from collections.abc import Callable

import jax
import numpy as np

from polyjax import DualInputs, Shared, Tokens
from polyjax.mesh.placement import BatchPlacer, everywhere, one_device, placed, shardings_of
from polyjax.nn.scorers import Scorer
from polyjax.train.losses import ranking_loss
from polyjax.train.optim import OptimConfig, make_optimizer, plateau, trainable_filter
from polyjax.train.state import TrainState, init_state
from polyjax.train.step import make_train_step
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


def one_device_update(
    scorer: Scorer, optim: OptimConfig, batch_size: int
) -> tuple[Step, TrainState, BatchPlacer]:
    """The update of all parameters as the loop makes it, its first state, and what places batches."""
    rule, mesh = make_optimizer(optim, 1000), one_device()
    graph, state = init_state(scorer, rule, plateau(optim), trainable_filter("all", 0), seed=0)
    shardings = shardings_of(state, mesh)
    step = make_train_step(graph, rule, ranking_loss, shardings=(shardings, everywhere(mesh)))
    return step, placed(state, shardings), BatchPlacer(mesh, batch_size)
