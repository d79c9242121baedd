"""The objective of pre-training: masked tokens and the next utterance (arXiv 1905.01969 §4.1)."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from polyjax.data.batches import load
from polyjax.data.corpora.corpus import Pairs
from polyjax.data.corpora.masking import MaskingCollator, PretrainBatch
from polyjax.data.corpora.packing import PairPlan, PretrainBatchConfig
from polyjax.errors import InputError, shown
from polyjax.mesh.placement import everywhere, one_device, own_rows, placed_rows, row_devices
from polyjax.nn.pretraining import Pretrainer, pretraining_sums
from polyjax.nn.scorers import in_chunks
from polyjax.runs import LeftOut, PretrainingCard, write_card
from polyjax.train.objective import Validation, Work

HELD_OUT_SEED = 0
"""Seed of masking and pairing of held-out pairs, so that every validation has the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the two losses.

    Attributes:
        masked: weight of the mean cross-entropy of masked tokens.
        next: weight of the mean cross-entropy of next-utterance prediction.
    """

    masked: float = 1.0
    next: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for invalid values."""
        if min(self.masked, self.next) < 0 or not self.masked + self.next:
            expected = "0 or more, and one of `loss.masked` and `loss.next` above 0"
            got = shown(f"{self.masked:g} and {self.next:g}")
            raise InputError("loss.masked", expected=expected, got=got)


def pretraining_loss(
    model: Pretrainer, batch: PretrainBatch, key: Array | None, *, weights: LossWeights, chunk: int = 0
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the two mean losses of a batch (nats), and the metrics.

    Args:
        model: an encoder with its pre-training heads.
        batch: rows of packed pairs.
        key: random key for dropout; None for no dropout.
        weights: weights of the two losses.
        chunk: number of rows to compute at a time, see ``polyjax.nn.scorers.in_chunks``; 0 for all.
    """
    sums = batch_sums(model, batch, key, chunk=chunk)
    metrics = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    loss = weights.masked * metrics["masked_loss"] + weights.next * metrics["next_loss"]
    return loss, {"loss": loss, **metrics}


def batch_sums(
    model: Pretrainer, batch: PretrainBatch, key: Array | None, *, chunk: int = 0
) -> dict[str, tuple[Array, Array]]:
    """The ``pretraining_sums`` of a batch, summed over its rows, float32 []; args as ``pretraining_loss``."""

    def of_rows(rows: PretrainBatch, *, key: Array | None) -> dict[str, tuple[Array, Array]]:
        logits, odds = model(rows.tokens, rows.masked, rows.first, key=key)
        return pretraining_sums(logits, odds, rows.targets, rows.follows)

    return jax.tree.map(lambda sums: sums.sum(), in_chunks(of_rows, batch, key, chunk))


class Pretraining:
    """Trains an encoder with its pre-training heads on the pairs of a corpus; see ``Objective``.

    Args:
        model: the model with its initial parameters.
        pairs: training pairs.
        held_out: pairs of other conversations, for validation.
        batch: how batches are drawn.
        weights: weights of the two losses.
        validate_batches: maximum number of batches of held-out pairs to validate on, always the same ones.
        mesh: devices that share the work, from ``make_mesh``; None for one device.
        left_out: tasks whose validation and test rows were excluded from the corpus, for the card.

    Raises:
        InputError: the corpus is too small for a batch, or the batch too small for the devices.
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
        left_out: Sequence[LeftOut] = (),
    ):
        self.model, self.encoder = model, model.encoder.config
        self.mesh = mesh or one_device()
        self._own = own_rows(self.mesh, row_devices(self.mesh))
        self._pairs, self._batch, self._weights = pairs, batch, weights
        self._left_out = tuple(left_out)
        rows, devices = batch.tokens // pairs.text.pair_limit(), row_devices(self.mesh)
        if rows < devices:
            raise InputError(
                "batch.tokens",
                expected=f"at least {devices * pairs.text.pair_limit()}: on each of {devices} devices a row "
                f"of {pairs.text.pair_limit()} tokens (`text.context_tokens` and `text.candidate_tokens`)",
                got=batch.tokens,
            )
        self._held_out = PairPlan(held_out, batch, seed=HELD_OUT_SEED, n_batches=validate_batches)
        self._validate_batches = min(validate_batches, self._held_out.batches_in(0))
        self._held_out_collator = self._collator(self._held_out, held_out, HELD_OUT_SEED)
        self.n_examples = len(pairs)
        self._plan: tuple[int, PairPlan] | None = None
        self.batch_size = max(len(pairs) // self._plan_of(0).batches_in(0), 1)
        self.compilations = 0
        self._graph, _ = nnx.split(model)
        self._sums = jax.jit(self._traced_sums, out_shardings=everywhere(self.mesh))

    def write_card(self, run_dir: Path) -> None:
        """Write the tokenizer and pretraining.json (encoder, text settings, excluded tasks)."""
        card = PretrainingCard(encoder=self.encoder, text=self._pairs.text, left_out=self._left_out)
        write_card(run_dir, card, self._pairs.tokenizer)

    def loss(
        self, model: Pretrainer, batch: PretrainBatch, key: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """Of the model on a batch."""
        return pretraining_loss(model, batch, key, weights=self._weights, chunk=self._chunk_of(batch))

    def _chunk_of(self, batch: PretrainBatch) -> int:
        """Number of rows of a batch that are computed at a time, a multiple of the devices; 0 for all."""
        if not self._batch.chunk:
            return 0
        devices = row_devices(self.mesh)
        return max(self._batch.chunk // batch.tokens.ids.shape[1] // devices, 1) * devices

    @property
    def too_much(self) -> tuple[str, str]:
        """For the error of exhausted memory: what does not fit in a step, and what to do."""
        tokens = self._batch.chunk or self._batch.tokens
        least = self._held_out.row_length * row_devices(self.mesh)
        if tokens <= least:
            fix = "in another `run_dir`, lower `text.context_tokens`, or choose a smaller encoder"
        else:
            chunk = max(tokens // 2, least)
            fix = f"resume with {chunk} as `batch.chunk`, which keeps the gradients the same"
        return f"{tokens} tokens", fix

    def _plan_of(self, seed: int) -> PairPlan:
        """The plan of training batches for a seed, cached because planning an epoch takes time."""
        if self._plan is None or self._plan[0] != seed:
            self._plan = seed, PairPlan(self._pairs, self._batch, seed=seed, n_batches=1)
        return self._plan[1]

    def _collator(self, plan: PairPlan, pairs: Pairs, seed: int) -> MaskingCollator:
        return MaskingCollator(
            pairs, self._batch, seed=seed, most=plan.most, part=(self._own, row_devices(self.mesh))
        )

    def batches(self, first: int, n_batches: int, *, seed: int) -> Iterator[PretrainBatch]:
        """This process's parts of batches ``first`` to ``n_batches - 1``, in order."""
        plan = self._plan_of(seed).of_length(n_batches)
        return load(plan, self._collator(plan, self._pairs, seed), first=first, workers=self._batch.workers)

    def place(self, batch: PretrainBatch) -> PretrainBatch:
        """Place this process's part of a batch on the mesh; returns the global batch."""
        return placed_rows(self.mesh, batch, round(len(batch.masked) / self._share))

    @property
    def _share(self) -> float:
        return len(self._own) / row_devices(self.mesh)

    def largest_batch(self) -> PretrainBatch:
        """A global batch, placed on the mesh; all batches have the same shapes."""
        return self.place(next(self.batches(0, 1, seed=0)))

    def work(self, batch: PretrainBatch) -> Iterator[Work]:
        """The transformer's work on this process's part of a batch."""
        mask = np.asarray(batch.tokens.mask)
        if batch.tokens.packs is None:
            lengths = mask.sum(-1)
        else:
            packs = np.asarray(batch.tokens.packs)
            lengths = ((packs[..., None] == np.arange(batch.first.shape[1])) & mask[..., None]).sum(1)
        yield Work(lengths, mask.size, self._share)

    def _traced_sums(self, state: nnx.State, batch: PretrainBatch) -> dict[str, tuple[Array, Array]]:
        self.compilations += 1  # runs only when a new shape is traced
        model = nnx.merge(self._graph, state)
        return batch_sums(model, batch, None, chunk=self._chunk_of(batch))

    def validate(self, model: nnx.Module) -> Validation:
        """Losses and accuracies on held-out pairs, which are masked in the same way every time."""
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
