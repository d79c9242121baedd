"""The memory that training will take, before anything is run."""

import dataclasses
import math
import os
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.collate import CandidateSource
from polyjax.data.text import TextConfig
from polyjax.mesh.placement import (
    everywhere,
    one_device,
    path_name,
    placed_shapes,
    row_devices,
    shardings_of,
)
from polyjax.nn.heads import HeadSettings
from polyjax.nn.scorers import ModelConfig, Scorer, make_scorer
from polyjax.train.loop import TrainConfig
from polyjax.train.losses import cross_entropy, ranking_loss
from polyjax.train.objective import Objective
from polyjax.train.optim import OptimConfig, make_loss_scale, make_optimizer, plateau, trainable_filter
from polyjax.train.ranking import longest_batch
from polyjax.train.state import TrainState, init_state
from polyjax.train.step import make_train_step

_FEW = 8  # contexts of the smallest step; axes of length 1 are compiled otherwise
_FAST: dict[str, Any] = {"xla_backend_optimization_level": 0}  # nothing is run; buffers are assigned before


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while training.

    Attributes:
        parameters: float32 values of all parameters.
        optimizer: the optimiser's state.
        gradients: of the trained parameters.
        activations: what else a step keeps for a moment, for the largest padded batch.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.optimizer + self.gradients + self.activations


class MemoryEstimate:
    """Memory of training as the compiler counts it, for the longest texts.

    Four small steps are compiled on the mesh, of 1 and 2 layers and of 8 and 16 contexts on each device; a
    step's temporary memory is close to linear in both, and is extrapolated. Nothing is run.

    Args:
        model: its shape.
        text: lengths.
        optim: optimiser.
        config: which parameters are trained.
        source: of the candidates.
        listed: candidates of a context where they are not the batch's labels.
        mesh: devices, from ``make_mesh``; one where None.
    """

    def __init__(
        self,
        model: ModelConfig,
        text: TextConfig,
        optim: OptimConfig,
        config: TrainConfig,
        *,
        source: CandidateSource,
        listed: int,
        mesh: Mesh | None = None,
    ):
        self._model, self._text, self._optim, self._config = model, text, optim, config
        self._source: CandidateSource = source
        self._listed, self._mesh = listed, mesh or one_device()
        _, state = self._abstract(model.encoder.n_layers)
        self._rows = row_devices(self._mesh)
        self.n_parameters = _bytes((state.trained, state.frozen)) // 4
        self.parameters = held_bytes((state.trained, state.frozen), self._mesh)
        self._trained = held_bytes(state.trained, self._mesh)
        self._optimizer = held_bytes(state.optimizer, self._mesh)
        self._points = {
            (b, layers): self._temporary(b, layers) for b in (_FEW, 2 * _FEW) for layers in (1, 2)
        }
        # The steps that are compiled have no table of words; where it is split, it is put together.
        encoders = _bytes(model_tables(state)) if self._mesh.shape["fsdp"] > 1 else 0
        self._gathered = 2 * encoders if config.trainable == "all" else encoders

    def of(self, contexts: int, batch_size: int | None = None) -> Memory:
        """The memory where so many contexts' activations are kept at once, of a batch of more."""
        whole = batch_size or contexts
        contexts = -(-contexts // self._rows)
        layers, a, points = self._model.encoder.n_layers, _FEW, self._points
        x, y = (contexts - a) / a, layers - 1
        first, more = points[a, 1], points[2 * a, 1]
        deep, both = points[a, 2], points[2 * a, 2]
        temporary = first + x * (more - first) + y * (deep - first) + x * y * (both - more - deep + first)
        activations = max(int(temporary), 0)
        if self._source == "batch" and self._model.head.inputs == "dual":
            # Every context meets every candidate: this grows with the square, and is in the fit as a line.
            head = self._model.head, self._model.encoder.dim
            few, more = (_score_bytes(*head, b, b * self._rows) for b in (a, 2 * a))
            activations = max(activations - int(few + x * (more - few)), 0)
            scores = _score_bytes(*head, -(-whole // self._rows), whole)
            # In chunks, a chunk's activations and the scores are not there at the same time.
            chunked = contexts * self._rows < whole
            activations = max(activations, scores) if chunked else activations + scores
        return Memory(self.parameters, self._optimizer, self._trained, activations + self._gathered)

    @property
    def held(self) -> int:
        """Bytes on a device that no shorter text and no smaller chunk saves."""
        return self.parameters + self._optimizer + self._trained

    def chunk_that_fits(self, limit: int, batch_size: int) -> int | None:
        """The largest power of two of contexts below the batch size that fits; None where not even 1 does."""
        chunk = 1 << max(batch_size - 1, 1).bit_length() - 1
        while chunk >= self._rows and self.of(chunk, batch_size).total > limit:
            chunk //= 2
        return chunk if chunk >= self._rows else None

    def _abstract(self, n_layers: int, **changes: int) -> tuple[nnx.GraphDef, TrainState]:
        shape = dataclasses.replace(self._model.encoder, n_layers=n_layers, **changes)
        trainable = self._config.trainable
        if isinstance(trainable, int):
            trainable = min(trainable, n_layers)
        optimizer, rule = make_optimizer(self._optim, 100), plateau(self._optim)
        graphs: list[nnx.GraphDef] = []

        def build() -> TrainState:
            scorer: Scorer = make_scorer(shape, self._model.head, rngs=nnx.Rngs(0))
            chosen = trainable_filter(trainable, n_layers)
            graph, state = init_state(scorer, optimizer, rule, chosen, seed=0)
            graphs.append(graph)
            return state

        state = jax.eval_shape(build)
        return graphs[0], state

    def _temporary(self, contexts: int, n_layers: int) -> int:
        # A large table's gradient would hide the activations of few layers.
        graph, state = self._abstract(n_layers, vocab_size=1)
        shardings = shardings_of(state, self._mesh)
        rule, shared = make_optimizer(self._optim, 100), everywhere(self._mesh)
        step = make_train_step(graph, rule, ranking_loss, shardings=(shardings, shared))
        batch = longest_batch(
            self._model,
            self._text,
            self._mesh,
            batch_size=contexts * self._rows,
            source=self._source,
            listed=self._listed,
        )
        analysis = step.lower(placed_shapes(state, shardings), batch).compile(_FAST).memory_analysis()
        assert analysis is not None, "this backend does not tell the memory of its programs"
        return max(analysis.temp_size_in_bytes - held_bytes(state.trained, self._mesh), 0)


@lru_cache
def _score_bytes(config: HeadSettings, dim: int, b: int, n: int) -> int:
    """Temporary bytes of the loss of b contexts' vectors against n candidates', and of its gradients."""
    head = config.build(dim, rngs=nnx.Rngs(0))
    hidden = jax.ShapeDtypeStruct((1, 8, dim), jnp.float32), jax.ShapeDtypeStruct((1, 8), bool)
    m = jax.eval_shape(head.context, *hidden)[0].shape[1]

    def loss(vectors: jax.Array, candidates: jax.Array) -> jax.Array:
        scores = head.score(vectors, jnp.ones((b, m), bool), candidates[None])
        return cross_entropy(scores, jnp.arange(b), jnp.ones((1, n), bool)).mean()

    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, m, dim), (n, dim))]
    analysis = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs).compile(_FAST).memory_analysis()
    assert analysis is not None, "this backend does not tell the memory of its programs"
    return analysis.temp_size_in_bytes + 2 * _bytes(inputs)  # the vectors and their gradients


def model_tables(state: TrainState) -> list[Any]:
    """The tables of words of a state's encoders."""
    leaves = jax.tree_util.tree_leaves_with_path((state.trained, state.frozen))
    return [leaf for path, leaf in leaves if path_name(path).endswith("embeddings.tokens")]


def held_bytes(tree: Any, mesh: Mesh) -> int:
    """Bytes of a state's arrays on one device of a mesh."""
    shardings = jax.tree.leaves(shardings_of(tree, mesh))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


def _bytes(tree: object) -> int:
    """Bytes of arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step_memory(objective: Objective, optim: OptimConfig, config: TrainConfig) -> Memory:
    """Memory on each device of the step that is about to be trained, for its largest batch.

    The step is compiled for it, and so is in the compilation cache when it is needed.
    """
    mesh, rule = objective.mesh, make_optimizer(optim, 100)
    chosen = trainable_filter(config.trainable, objective.encoder.n_layers)
    scale = make_loss_scale(optim, objective.encoder.dtype)
    graphs: list[nnx.GraphDef] = []

    def build() -> TrainState:
        graph, state = init_state(objective.model, rule, plateau(optim), chosen, seed=0, loss_scale=scale)
        graphs.append(graph)
        return state

    state = jax.eval_shape(build)
    shardings = shardings_of(state, mesh)
    step = make_train_step(graphs[0], rule, objective.loss, shardings=(shardings, everywhere(mesh)))
    batch = objective.largest_batch()
    analysis = step.lower(placed_shapes(state, shardings), batch).compile().memory_analysis()
    assert analysis is not None, "this backend does not tell the memory of its programs"
    gradients = held_bytes(state.trained, mesh)
    return Memory(
        held_bytes((state.trained, state.frozen), mesh),
        held_bytes(state.optimizer, mesh),
        gradients,
        max(analysis.temp_size_in_bytes - gradients, 0),
    )


def device_memory() -> tuple[int, str]:
    """Bytes that a device can use, and whose: the accelerator's, or its share of the machine's on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"], "this device"
    whole, n = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), jax.local_device_count()
    return whole // n, "this machine" if n == 1 else f"each of this machine's {n} devices"
