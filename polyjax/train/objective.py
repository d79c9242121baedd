"""The interface between the loop and what it trains."""

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
        loss: nats; a plateau of the learning rate watches it.
        metrics: for the log, the loss among them; every one that ``best_by`` may name is there.
        summary: a line for people.
    """

    loss: float
    metrics: dict[str, Any]
    summary: str


@dataclasses.dataclass(frozen=True)
class Work:
    """What a batch gives the transformer to do, of the whole batch of all processes.

    Attributes:
        lengths: tokens of each sequence, [n].
        places: of the arrays that they are in, padding included.
        share: of the whole batch that this is.
    """

    lengths: np.ndarray
    places: int
    share: float = 1.0


@runtime_checkable
class Objective(Protocol):
    """A model with its loss, its batches and its validation."""

    @property
    def model(self) -> nnx.Module:
        """With its initial parameters, which training leaves as they are."""
        ...

    @property
    def encoder(self) -> EncoderSettings:
        """The shape of its transformer."""
        ...

    @property
    def loss(self) -> BatchLoss:
        """Of the model on a batch."""
        ...

    @property
    def mesh(self) -> Mesh:
        """Devices that share the work."""
        ...

    @property
    def n_examples(self) -> int:
        """Of the training split."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples of a batch."""
        ...

    @property
    def compilations(self) -> int:
        """Programs compiled for validating so far."""
        ...

    @property
    def too_much(self) -> tuple[str, str]:
        """What does not fit in a step where memory is exhausted, and what to do."""
        ...

    def write_card(self, run_dir: Path) -> None:
        """Write what a loader of the run needs besides its checkpoints: a card, and the tokenizer."""
        ...

    def batches(self, first: int, n_batches: int, *, seed: int) -> Iterator[Any]:
        """This process's parts of the batches from number ``first`` up to ``n_batches``."""
        ...

    def place(self, batch: Any) -> Any:
        """The global batch, of which ``batch`` is this process's part, on the mesh."""
        ...

    def largest_batch(self) -> Any:
        """The shapes of the largest global batch, and where its arrays are."""
        ...

    def work(self, batch: Any) -> Iterable[Work]:
        """What this process's part of a batch gives the transformer to do."""
        ...

    def validate(self, model: nnx.Module) -> Validation:
        """The model on held-out rows; it has the initial one's shape."""
        ...
