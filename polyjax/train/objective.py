"""The contract between the training loop and what it trains."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from polyjax.nn.encoders import EncoderSettings
from polyjax.train.step import BatchLoss


@dataclasses.dataclass(frozen=True)
class Validation:
    """A model's metrics on held-out rows.

    Attributes:
        loss: loss in nats, which the plateau rule of the learning rate uses.
        metrics: metrics for the log, including the loss and every metric that ``best_by`` may name.
        summary: one line for people.
    """

    loss: float
    metrics: dict[str, Any]
    summary: str


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a transformer on one array of tokens, or on a process's part of it.

    Attributes:
        lengths: number of real tokens of each sequence, [n].
        places: size of the array, padding included.
        share: this part's share of the global batch (of all processes).
    """

    lengths: np.ndarray
    places: int
    share: float = 1.0


@runtime_checkable
class Objective(Protocol):
    """A model with its loss, its batches and its validation."""

    @property
    def model(self) -> nnx.Module:
        """The model with its initial parameters; training does not change them."""
        ...

    @property
    def encoder(self) -> EncoderSettings:
        """Settings of its transformer."""
        ...

    @property
    def loss(self) -> BatchLoss:
        """The loss of the model on a batch."""
        ...

    @property
    def mesh(self) -> Mesh:
        """Devices that share the work."""
        ...

    @property
    def n_examples(self) -> int:
        """Number of training examples."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of examples in a batch."""
        ...

    @property
    def compilations(self) -> int:
        """Number of programs compiled for validation so far."""
        ...

    @property
    def too_much(self) -> tuple[str, str]:
        """For the error of exhausted memory: what does not fit in a step, and what to do."""
        ...

    def write_card(self, run_dir: Path) -> None:
        """Write the files that a loader needs besides the checkpoints: a card, and the tokenizer."""
        ...

    def batches(self, first: int, n_batches: int, *, seed: int) -> Iterator[Any]:
        """This process's parts of batches ``first`` to ``n_batches - 1``, in order."""
        ...

    def place(self, batch: Any) -> Any:
        """Place this process's part of a batch on the mesh; returns the global batch."""
        ...

    def largest_batch(self) -> Any:
        """Shapes and shardings of the largest global batch."""
        ...

    def work(self, batch: Any) -> Iterable[Work]:
        """The transformer's work on this process's part of a batch, one item per array of tokens."""
        ...

    def validate(self, model: nnx.Module) -> Validation:
        """Metrics of a model on held-out rows; its structure is that of ``model``."""
        ...
