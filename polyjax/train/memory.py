"""Estimates the device memory of training from the compiled program of a step, without running it."""

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.collate import CandidateSource
from polyjax.data.text import TextConfig
from polyjax.mesh.placement import one_device, path_name, row_devices, shardings_of
from polyjax.nn.abstract import abstract_model
from polyjax.nn.encoders import EncoderSettings
from polyjax.nn.heads import HeadSettings
from polyjax.nn.scorers import ModelConfig, make_scorer
from polyjax.train.config import TrainConfig
from polyjax.train.losses import cross_entropy, ranking_loss
from polyjax.train.objective import Objective
from polyjax.train.optim import OptimConfig
from polyjax.train.ranking import longest_batch
from polyjax.train.state import TrainState
from polyjax.train.trainer import Optimizer, Trainer

_FEW = 8  # contexts of the smallest step; axes of length 1 would compile to other programs
_FAST: dict[str, Any] = {"xla_backend_optimization_level": 0}  # buffers are assigned before the backend


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory on one device in training, in bytes.

    Attributes:
        parameters: all parameters, float32.
        optimizer: the optimiser's state.
        gradients: gradients of the trained parameters.
        activations: all other temporary arrays of a step, for the largest padded batch.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.parameters + self.optimizer + self.gradients + self.activations

    @property
    def held(self) -> int:
        """The part that neither shorter texts nor smaller chunks reduce."""
        return self.parameters + self.optimizer + self.gradients


def memory_of(trainer: Trainer, batch: Any, options: dict[str, Any] | None = None) -> Memory:
    """Memory on each device for a trainer's step.

    Args:
        trainer: the trainer, which may hold shapes only.
        batch: shapes and shardings of a batch.
        options: compiler options. With None, the compiled program is the one used in training, which then
            finds it in the compilation cache.
    """
    held = _held(trainer)
    temporary = _temporary_bytes(trainer.lowered(batch), options)
    return dataclasses.replace(held, activations=max(temporary - held.gradients, 0))


def step_memory(
    objective: Objective, optim: OptimConfig, config: TrainConfig, *, optimizer: Optimizer | None = None
) -> Memory:
    """Memory on each device for a training step with the largest batch; arguments as for ``train``.

    Args:
        objective: the model, its loss and its batches.
        optim: optimiser and schedule.
        config: number of steps, and which parameters are trained.
        optimizer: replaces the optimiser of ``optim``.
    """
    trainer = Trainer.of(objective, optim=optim, config=config, optimizer=optimizer, shapes_only=True)
    return memory_of(trainer, objective.largest_batch())


class PlannedStep:
    """A planned training step of a ranker, from settings alone: neither data nor device memory is needed.

    ``memory`` compiles the program for one batch size and the longest texts. ``estimate`` interpolates
    between four small programs, of 1 and 2 layers and of 8 and 16 contexts on each device, because the
    temporary memory of a step is close to linear in both. So many sizes can be tried.

    Args:
        model: settings of encoder and head.
        text: maximum lengths of texts.
        optim: optimiser.
        config: which parameters are trained.
        source: where candidates come from.
        listed: candidates per context, unless they are the labels of the batch.
        hard: hard negatives per context, in addition.
        mesh: devices, from ``make_mesh``; None for one device.
        optimizer: replaces the optimiser of ``optim``.
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
        hard: int = 0,
        mesh: Mesh | None = None,
        optimizer: Optimizer | None = None,
    ):
        self._model, self._text, self._optim, self._config = model, text, optim, config
        self._source: CandidateSource = source
        self._listed, self._hard = listed, hard
        self._mesh, self._optimizer = mesh or one_device(), optimizer
        self._rows = row_devices(self._mesh)
        self._whole = self._trainer(model.encoder)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model."""
        state = self._whole.state
        return _bytes((state.trained, state.frozen)) // 4

    def memory(self, batch_size: int, chunk: int = 0) -> Memory:
        """The memory of a step. Compiling takes seconds, for BERT base a minute.

        Args:
            batch_size: number of contexts in the batch.
            chunk: number of contexts whose activations are kept at a time; 0 for all.
        """
        trainer = self._trainer(self._model.encoder, chunk=chunk) if chunk else self._whole
        return memory_of(trainer, self._batch(batch_size), _FAST)

    def estimate(self, contexts: int, batch_size: int) -> Memory:
        """An estimate of ``memory``.

        Args:
            contexts: number of contexts whose activations are kept at a time.
            batch_size: number of contexts in the batch.
        """
        on_each = -(-contexts // self._rows)
        layers, a, points = self._model.encoder.n_layers, _FEW, self._points
        x, y = (on_each - a) / a, layers - 1
        first, more = points[a, 1], points[2 * a, 1]
        deep, both = points[a, 2], points[2 * a, 2]
        temporary = first + x * (more - first) + y * (deep - first) + x * y * (both - more - deep + first)
        activations = max(int(temporary), 0)
        if self._source == "batch" and self._model.head.inputs == "dual":
            # Every context is scored with every candidate: the scores grow with the square of the batch. The
            # linear fit includes them, so replace its share by their real size.
            head = self._model.head, self._model.encoder.dim
            few, more = (_score_bytes(*head, b, b * self._rows) for b in (a, 2 * a))
            activations = max(activations - int(few + x * (more - few)), 0)
            scores = _score_bytes(*head, -(-batch_size // self._rows), batch_size)
            # With chunks, the activations of a chunk and the scores are not in memory at the same time.
            chunked = on_each * self._rows < batch_size
            activations = max(activations, scores) if chunked else activations + scores
        return dataclasses.replace(_held(self._whole), activations=activations + self._gathered)

    def chunk_that_fits(self, limit: int, batch_size: int) -> int | None:
        """The largest chunk that fits: a power of two below the batch size, at least one context per device.

        For a custom encoder without settings ``n_layers`` and ``vocab_size``, each chunk is compiled instead
        of estimated.

        Args:
            limit: available memory on each device, bytes.
            batch_size: number of contexts in the batch.

        Returns:
            The number of contexts; None if no chunk fits.
        """
        shape: Any = self._model.encoder
        fields = {field.name for field in dataclasses.fields(shape)}
        estimable = {"n_layers", "vocab_size"} <= fields
        chunk = 1 << max(batch_size - 1, 1).bit_length() - 1
        while chunk >= self._rows:
            needed = self.estimate(chunk, batch_size) if estimable else self.memory(batch_size, chunk)
            if needed.total <= limit:
                return chunk
            chunk //= 2
        return None

    @functools.cached_property
    def _points(self) -> dict[tuple[int, int], int]:
        """Temporary bytes of the four small programs, by (contexts on each device, layers)."""
        return {
            (contexts, layers): self._temporary(contexts, layers)
            for contexts in (_FEW, 2 * _FEW)
            for layers in (1, 2)
        }

    @property
    def _gathered(self) -> int:
        """Bytes of token tables gathered from their shards; the small programs have no such tables."""
        if self._mesh.shape["fsdp"] == 1:
            return 0
        tables = _bytes(_token_tables(self._whole.state))
        return 2 * tables if self._config.trainable == "all" else tables

    def _temporary(self, contexts: int, n_layers: int) -> int:
        # With a large token table, its gradient would hide the activations of so few layers.
        shape: Any = self._model.encoder
        small = self._trainer(dataclasses.replace(shape, n_layers=n_layers, vocab_size=1))
        lowered = small.lowered(self._batch(contexts * self._rows))
        return max(_temporary_bytes(lowered, _FAST) - _held(small).gradients, 0)

    def _trainer(self, shape: EncoderSettings, *, chunk: int = 0) -> Trainer:
        trainable, n_layers = self._config.trainable, shape.n_layers
        return Trainer(
            abstract_model(lambda rngs: make_scorer(shape, self._model.head, rngs=rngs)),
            functools.partial(ranking_loss, chunk=chunk),
            encoder=shape,
            n_steps=100,  # only changes a constant in the program
            optim=self._optim,
            trainable=min(trainable, n_layers) if isinstance(trainable, int) else trainable,
            mesh=self._mesh,
            optimizer=self._optimizer,
        )

    def _batch(self, batch_size: int) -> Any:
        return longest_batch(
            self._model,
            self._text,
            self._mesh,
            batch_size=batch_size,
            source=self._source,
            listed=self._listed,
            hard=self._hard,
        )


@functools.lru_cache
def _score_bytes(config: HeadSettings, dim: int, b: int, n: int) -> int:
    """Temporary bytes of the loss of b contexts with n candidate vectors, and of its gradients."""
    head = config.build(dim, rngs=nnx.Rngs(0))
    hidden = jax.ShapeDtypeStruct((1, 8, dim), jnp.float32), jax.ShapeDtypeStruct((1, 8), bool)
    m = jax.eval_shape(head.context, *hidden)[0].shape[1]

    def loss(vectors: jax.Array, candidates: jax.Array) -> jax.Array:
        scores = head.score(vectors, jnp.ones((b, m), bool), candidates[None])
        return cross_entropy(scores, jnp.arange(b), jnp.ones((1, n), bool)).mean()

    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, m, dim), (n, dim))]
    # Add the vectors and their gradients.
    return _temporary_bytes(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs), _FAST) + 2 * _bytes(
        inputs
    )


def _temporary_bytes(lowered: jax.stages.Lowered, options: dict[str, Any] | None) -> int:
    analysis = lowered.compile(options).memory_analysis()
    assert analysis is not None, "this backend does not report the memory of its programs"
    return analysis.temp_size_in_bytes


def _held(trainer: Trainer) -> Memory:
    """The memory of a trainer's state and gradients, without activations."""
    state, mesh = trainer.state, trainer.mesh
    return Memory(
        held_bytes((state.trained, state.frozen), mesh),
        held_bytes(state.optimizer, mesh),
        held_bytes(state.trained, mesh),
        0,
    )


def _token_tables(state: TrainState) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path((state.trained, state.frozen))
    return [leaf for path, leaf in leaves if path_name(path).endswith("embeddings.tokens")]


def held_bytes(tree: Any, mesh: Mesh) -> int:
    """Bytes of a state's arrays on one device of a mesh."""
    shardings = jax.tree.leaves(shardings_of(tree, mesh, optional=True))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


def _bytes(tree: object) -> int:
    """Bytes of arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_memory() -> tuple[int, str]:
    """Bytes of memory that a device can use, and a name for it.

    For an accelerator this is its own memory, on a CPU the machine's memory divided by the number of devices.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"], "this device"
    whole, n = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), jax.local_device_count()
    return whole // n, "this machine" if n == 1 else f"each of this machine's {n} devices"
