"""Planned rows -> arrays: pairs side by side, some of their tokens masked (arXiv 1810.04805 §3.1)."""

import dataclasses
import math
import typing

import jax
import numpy as np
from jaxtyping import Int

from polyjax.data.corpora.corpus import Pairs
from polyjax.data.corpora.packing import PlannedRows, PretrainBatchConfig
from polyjax.data.grain_library import grain
from polyjax.types import AnyArray, Tokens


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PretrainBatch:
    """Rows of pairs, and the masked tokens to predict.

    Attributes:
        tokens: pairs side by side, some tokens replaced; segment 0 is the context, 1 the label. [b, t]
        masked: places of the masked tokens, int32 [b, k]; 0 in unused places.
        targets: those tokens, int32 [b, k]; -1 in unused places.
        first: places of the pairs' first tokens, int32 [b, p]; 0 in unused places.
        follows: 1 where the label follows the context, 0 where it is another's, int32 [b, p]; -1 where there
            is no pair.
    """

    tokens: Tokens
    masked: Int[AnyArray, "b k"]
    targets: Int[AnyArray, "b k"]
    first: Int[AnyArray, "b p"]
    follows: Int[AnyArray, "b p"]


class MaskingCollator(grain.transforms.Map):
    """Planned rows -> PretrainBatch of numpy arrays.

    Masked tokens are drawn for each pair in each epoch, so that they do not depend on the batch.

    Args:
        pairs: of the corpus.
        config: shares of masked tokens.
        seed: of the draws.
        most: pairs of a row at most.
        part: a batch's rows, and empty ones where they are too few for that, are cut into so many equal
            pieces (the second), of which these are wanted (the first, int [p]); all if None.
    """

    def __init__(
        self,
        pairs: Pairs,
        config: PretrainBatchConfig,
        *,
        seed: int,
        most: int,
        part: tuple[np.ndarray, int] | None = None,
    ):
        self._pairs, self._config, self._seed, self._most, self._part = pairs, config, seed, most, part
        tokenizer = pairs.tokenizer
        self._special = np.unique(
            [
                tokenizer.pad_id,
                tokenizer.start_id,
                tokenizer.end_id,
                *tokenizer.separator_ids,
                tokenizer.mask_id,
            ]
        )
        self._ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), self._special).astype(np.int32)

    # grain's abstract ``map`` has no annotations, so its result is inferred to be None.
    def map(self, element: PlannedRows) -> PretrainBatch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batch's arrays."""
        rows = np.arange(len(element.pairs))
        if self._part is not None:
            chosen, n = self._part
            rows = np.arange(math.ceil(len(element.pairs) / n) * n).reshape(n, -1)[chosen].ravel()
        b, t, p = len(rows), element.length, self._most
        # Every pair of a row may round its share up.
        k = math.ceil(self._config.masked * t) + p
        ids = np.full((b, t), self._pairs.tokenizer.pad_id, np.int32)
        mask, segments, packs = np.zeros((b, t), bool), np.zeros_like(ids), np.full((b, t), -1, np.int32)
        masked, targets = np.zeros((b, k), np.int32), np.full((b, k), -1, np.int32)
        first, follows = np.zeros((b, p), np.int32), np.full((b, p), -1, np.int32)
        for row, number in enumerate(rows):
            if number >= len(element.pairs):
                continue
            place = hidden = 0
            members, labels = element.pairs[number].tolist(), element.labels[number].tolist()
            for i, (pair, label) in enumerate(zip(members, labels, strict=True)):
                context, answer = self._pairs.context(pair), self._pairs.label_tokens(label)
                whole = np.concatenate([context, answer])
                end = place + len(whole)
                chosen, now = self._hide(whole, pair, element.epoch)
                n = len(chosen)
                masked[row, hidden : hidden + n] = place + chosen
                targets[row, hidden : hidden + n] = whole[chosen]
                ids[row, place:end] = now
                mask[row, place:end], packs[row, place:end] = True, i
                segments[row, place + len(context) : end] = 1
                first[row, i], follows[row, i] = place, pair == label
                place, hidden = end, hidden + n
        return PretrainBatch(
            Tokens(ids, mask, segments, packs if self._config.packing else None),
            masked,
            targets,
            first,
            follows,
        )

    def _hide(self, ids: np.ndarray, pair: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the masked tokens, in order, and the tokens with those replaced."""
        config = self._config
        draw = np.random.default_rng([self._seed, epoch, 2, pair])
        open_ = np.flatnonzero(~np.isin(ids, self._special))
        n = min(max(round(config.masked * len(open_)), 1), len(open_)) if config.masked else 0
        chosen = np.sort(draw.permutation(open_)[:n])
        kind, now = draw.random(n), ids.copy()
        now[chosen[kind < config.replaced]] = self._pairs.tokenizer.mask_id
        other = (kind >= config.replaced) & (kind < config.replaced + config.random)
        now[chosen[other]] = draw.choice(self._ordinary, int(other.sum()))
        return chosen, now
