"""The memory that training will take, before anything is run."""

import dataclasses
import math
import os
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from polyjax.data.collate import CandidateSource
from polyjax.data.text import TextConfig
from polyjax.losses import cross_entropy, ranking_loss
from polyjax.models import ModelConfig, Scorer, make_scorer
from polyjax.nn.heads import BiConfig, BiHead, CrossConfig, PolyConfig, PolyHead
from polyjax.train.loop import TrainConfig
from polyjax.train.optim import OptimConfig, make_optimizer, plateau, trainable_filter
from polyjax.train.sharding import MeshShape, path_name, spec_of
from polyjax.train.step import TrainState, init_state, make_train_step
from polyjax.types import Batch, DualInputs, PairInputs, Tokens

ONE_DEVICE = MeshShape(data=1)
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

    On a mesh the rows of a batch are split evenly, and parameters as the table of ``sharding`` says; what
    ``fsdp`` splits is also counted whole, as it is where it is used.

    Four small steps are compiled, of 1 and 2 layers and of 8 and 16 contexts; a step's temporary memory is
    close to linear in both, and is extrapolated. Nothing is run.

    Args:
        model: its shape.
        text: lengths.
        optim: optimiser.
        config: which parameters are trained.
        source: of the candidates.
        listed: candidates of a context where they are not the batch's labels.
        mesh: devices.
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
        mesh: MeshShape = ONE_DEVICE,
    ):
        self._model, self._text, self._optim, self._config = model, text, optim, config
        self._source: CandidateSource = source
        self._listed = listed
        _, state = self._abstract(model.encoder.n_layers)
        self._rows = mesh.data * mesh.fsdp
        self.n_parameters = _bytes((state.trained, state.frozen)) // 4
        self.parameters = _bytes((state.trained, state.frozen), mesh)
        self._trained = _bytes(state.trained, mesh)
        self._optimizer = _bytes(state.optimizer, mesh)
        self._gathered = 0
        if mesh.fsdp > 1:
            self._gathered = _bytes((state.trained, state.frozen), dataclasses.replace(mesh, fsdp=1))
        self._points = {
            (b, layers): self._temporary(b, layers) for b in (_FEW, 2 * _FEW) for layers in (1, 2)
        }

    def of(self, contexts: int, batch_size: int | None = None) -> Memory:
        """The memory where so many contexts' activations are kept at once, of a batch of more."""
        contexts = -(-contexts // self._rows)
        batch_size = None if batch_size is None else -(-batch_size // self._rows)
        layers, a, points = self._model.encoder.n_layers, _FEW, self._points
        x, y = (contexts - a) / a, layers - 1
        first, more = points[a, 1], points[2 * a, 1]
        deep, both = points[a, 2], points[2 * a, 2]
        temporary = first + x * (more - first) + y * (deep - first) + x * y * (both - more - deep + first)
        activations = max(int(temporary), 0)
        if self._source == "batch" and isinstance(self._model.head, BiConfig | PolyConfig):
            # Every context meets every candidate: this grows with the square, and is in the fit as a line.
            head = self._model.head, self._model.encoder.dim
            few, more = _score_bytes(*head, a), _score_bytes(*head, 2 * a)
            activations = max(activations - int(few + x * (more - few)), 0)
            # A device has its contexts' scores of the whole batch's candidates.
            scores = self._rows * _score_bytes(*head, batch_size or contexts)
            # In chunks, a chunk's activations and the scores are not there at the same time.
            chunked = batch_size is not None and contexts < batch_size
            activations = max(activations, scores) if chunked else activations + scores
        return Memory(self.parameters, self._optimizer, self._trained, activations + self._gathered)

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
        step = jax.jit(make_train_step(graph, make_optimizer(self._optim, 100), ranking_loss))
        batch = jax.eval_shape(lambda: self._batch(contexts))
        analysis = step.lower(state, batch).compile(_FAST).memory_analysis()
        assert analysis is not None, "this backend does not tell the memory of its programs"
        return max(analysis.temp_size_in_bytes - _bytes(state.trained), 0)

    def _batch(self, b: int) -> Batch:
        text, source = self._text, self._source
        shared = source == "batch" or source == "fixed"
        c = b if source == "batch" else self._listed
        if isinstance(self._model.head, CrossConfig):
            inputs = PairInputs(_tokens(b, c, text.pair_limit()))
        else:
            candidates = (c,) if shared else (b, c)
            inputs = DualInputs(_tokens(b, text.context_tokens), _tokens(*candidates, text.candidate_tokens))
        return Batch(inputs, jnp.zeros(b, jnp.int32), jnp.ones((b, c), bool), keys=None)


@lru_cache
def _score_bytes(config: BiConfig | PolyConfig, dim: int, b: int) -> int:
    """Temporary bytes of the loss of b contexts' vectors against b candidates', and of its gradients."""
    match config:
        case BiConfig():
            head, m = BiHead(config, dim, rngs=nnx.Rngs(0)), 1
        case PolyConfig():
            head, m = PolyHead(config, dim, rngs=nnx.Rngs(0)), config.n_codes

    def loss(vectors: jax.Array, candidates: jax.Array) -> jax.Array:
        scores = head.score(vectors, jnp.ones((b, m), bool), candidates[None])
        return cross_entropy(scores, jnp.arange(b), jnp.ones((1, b), bool)).mean()

    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, m, dim), (b, dim))]
    analysis = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs).compile(_FAST).memory_analysis()
    assert analysis is not None, "this backend does not tell the memory of its programs"
    return analysis.temp_size_in_bytes + 2 * _bytes(inputs)  # the vectors and their gradients


def _tokens(*shape: int) -> Tokens:
    ids = jnp.zeros(shape, jnp.int32)
    return Tokens(ids, jnp.ones(shape, bool), ids)


def _bytes(tree: object, mesh: MeshShape = ONE_DEVICE) -> int:
    """Bytes of arrays on one device of a mesh."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        axes = spec_of(path_name(path))[: leaf.ndim]
        total += leaf.size * leaf.dtype.itemsize // math.prod(getattr(mesh, a) for a in axes if a)
    return total


def device_memory() -> tuple[int, Literal["device", "machine"]]:
    """Bytes that a device can use: the accelerator's, or its share of the machine's on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"], "device"
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count(), "machine"
