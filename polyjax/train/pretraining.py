"""The objective of pre-training: hidden tokens and the next utterance (arXiv 1905.01969 §4.1)."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from polyjax.data.pipeline import load
from polyjax.data.pretraining.corpus import Pairs
from polyjax.data.pretraining.masking import MaskingCollator, PretrainBatch
from polyjax.data.pretraining.packing import PairPlan, PretrainBatchConfig
from polyjax.nn.pretraining import Pretrainer, pretraining_sums
from polyjax.train.objective import Validation, Work
from polyjax.train.sharding import everywhere, one_device, own_rows, placed_rows, row_devices
from polyjax.types import InputError

HELD_OUT_SEED = 0
"""Of the draws on held-out pairs, which are the same at every validation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What the two losses count for.

    Attributes:
        masked: of the hidden tokens' mean cross-entropy.
        next: of the pairs' mean cross-entropy.
    """

    masked: float = 1.0
    next: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for values that cannot work."""
        if min(self.masked, self.next) < 0 or not self.masked + self.next:
            raise InputError(
                f"loss masked of {self.masked:g} and next of {self.next:g}: expected 0 or more, one above 0"
            )


def pretraining_loss(
    model: Pretrainer, batch: PretrainBatch, key: Array | None, *, weights: LossWeights
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of a batch's two mean losses (nats), and its figures."""
    logits, odds = model(batch.tokens, batch.masked, batch.first, key=key)
    sums = pretraining_sums(logits, odds, batch.targets, batch.follows)
    figures = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    loss = weights.masked * figures["masked_loss"] + weights.next * figures["next_loss"]
    return loss, {"loss": loss, **figures}


class Pretraining:
    """Trains an encoder with its pre-training heads on a corpus's pairs; see ``Objective``.

    Args:
        model: with its initial parameters; they are given away.
        pairs: to learn from.
        held_out: pairs of other conversations, to validate on.
        batch: how batches are drawn.
        weights: of the losses.
        validate_batches: so many batches of the held-out pairs are looked at, always the same ones.
        mesh: devices that share the work, from ``make_mesh``; one device where None.

    Raises:
        InputError: the corpus is too small for a batch, or the batch for the devices.
    """

    def __init__(
        self,
        model: Pretrainer,
        pairs: Pairs,
        held_out: Pairs,
        *,
        batch: PretrainBatchConfig,
        weights: LossWeights,
        validate_batches: int,
        mesh: Mesh | None = None,
    ):
        self.model, self.encoder = model, model.encoder.config
        self.mesh = mesh or one_device()
        self._own = own_rows(self.mesh, row_devices(self.mesh))
        self._pairs, self._batch, self._weights = pairs, batch, weights
        self._held_out = self._plan(held_out, HELD_OUT_SEED, validate_batches)
        self._validate_batches = min(validate_batches, self._held_out.batches_in(0))
        self._held_out_collator = self._collator(self._held_out, held_out, HELD_OUT_SEED)
        self.n_examples = len(pairs)
        self.batch_size = max(len(pairs) // self._plan(pairs, 0, 1).batches_in(0), 1)
        self.compilations = 0
        self._graph, _ = nnx.split(model)
        self._sums = jax.jit(self._traced_sums, out_shardings=everywhere(self.mesh))

    def loss(
        self, model: Pretrainer, batch: PretrainBatch, key: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """Of the model on a batch."""
        return pretraining_loss(model, batch, key, weights=self._weights)

    @property
    def at_once(self) -> tuple[str, str]:
        """What was too much where memory is exhausted, and the way out of it."""
        return f"{self._batch.tokens} tokens", (
            f"in another --run-dir, try --batch.tokens {self._batch.tokens // 2}, or --encoder.remat"
        )

    def _plan(self, pairs: Pairs, seed: int, n_batches: int) -> PairPlan:
        return PairPlan(pairs, self._batch, seed=seed, n_batches=n_batches, multiple=row_devices(self.mesh))

    def _collator(self, plan: PairPlan, pairs: Pairs, seed: int) -> MaskingCollator:
        return MaskingCollator(
            pairs, self._batch, seed=seed, most=plan.most, part=(self._own, row_devices(self.mesh))
        )

    def batches(self, first: int, n_batches: int, *, seed: int) -> Iterator[PretrainBatch]:
        """This process's parts of the batches from number ``first`` up to ``n_batches``."""
        plan = self._plan(self._pairs, seed, n_batches)
        return load(plan, self._collator(plan, self._pairs, seed), first=first, workers=self._batch.workers)

    def place(self, batch: PretrainBatch) -> PretrainBatch:
        """The global batch, of which ``batch`` is this process's part, on the mesh."""
        return placed_rows(self.mesh, batch, round(len(batch.masked) / self._share))

    @property
    def _share(self) -> float:
        return len(self._own) / row_devices(self.mesh)

    def work(self, batch: PretrainBatch) -> Iterator[Work]:
        """What this process's part of a batch gives the transformer to do."""
        mask = np.asarray(batch.tokens.mask)
        if batch.tokens.packs is None:
            lengths = mask.sum(-1)
        else:
            packs = np.asarray(batch.tokens.packs)
            lengths = ((packs[..., None] == np.arange(batch.first.shape[1])) & mask[..., None]).sum(1)
        yield Work(lengths, mask.size, self._share)

    def _traced_sums(self, state: nnx.State, batch: PretrainBatch) -> dict[str, tuple[Array, Array]]:
        self.compilations += 1  # runs when a new shape is traced only
        model = nnx.merge(self._graph, state)
        logits, odds = model(batch.tokens, batch.masked, batch.first)
        return pretraining_sums(logits, odds, batch.targets, batch.follows)

    def validate(self, model: nnx.Module) -> Validation:
        """The losses on held-out pairs, whose draws are always the same, and how many are guessed right."""
        state = nnx.state(model)
        totals: dict[str, np.ndarray] = {}
        for number in range(self._validate_batches):
            batch = self._held_out_collator.map(self._held_out[number])
            for name, pair in jax.device_get(self._sums(state, self.place(batch))).items():
                totals[name] = totals.get(name, np.zeros(2)) + np.array(pair, np.float64)
        means = {name: float(total / max(count, 1.0)) for name, (total, count) in totals.items()}
        loss = self._weights.masked * means["masked_loss"] + self._weights.next * means["next_loss"]
        counts = {"masked_tokens": int(totals["masked_loss"][1]), "pairs": int(totals["next_loss"][1])}
        return Validation(
            loss,
            {"loss": loss, **means, **counts},
            f"masked tokens {means['masked_loss']:.3f} ({means['masked_accuracy']:.1%} right), next "
            f"utterance {means['next_loss']:.3f} ({means['next_accuracy']:.1%} right), "
            f"on {counts['pairs']:,} pairs",
        )
