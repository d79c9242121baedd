"""The rows of a split, and what their labels are ranked among."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from polyjax.data.candidates import add_candidates, read_candidates
from polyjax.errors import InputError
from polyjax.types import Example


@dataclasses.dataclass(frozen=True)
class Rows:
    """The examples of a split.

    Attributes:
        examples: with the label alone, or with listed candidates.
        note: what a report says about the data, "" where there is nothing to say.
        shared: candidates of all rows, to which a row's label is added where it is not among them.
    """

    examples: Sequence[Example]
    note: str = ""
    shared: Sequence[str] = ()


def rows_digest(rows: Rows) -> str:
    """What tells these rows from others: contexts, candidates, labels and their order."""
    digest = hashlib.sha256("\0".join(rows.shared).encode("utf-8", "surrogatepass"))
    for example in rows.examples:
        counts = f"{len(example.context)} {len(example.candidates)} {example.label}"
        texts = "\0".join((counts, *example.context, *example.candidates, ""))
        digest.update(texts.encode("utf-8", "surrogatepass"))
    return f"{len(rows.examples)} rows, {digest.hexdigest()[:16]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankConfig:
    """What the labels of validation and test rows are ranked among.

    Attributes:
        candidates: ``task``, as the task has it; ``inline``, the candidates that a row lists; ``sampled``,
            the label and ``n - 1`` labels of other rows; ``batch``, the labels of ``n`` rows that
            are thrown together; ``fixed``, the lines of ``file``, which a row's label joins if it is none.
        n: candidates a row, with sampled and batch.
        file: candidates of all rows, one a line.
        seed: of the draw, with sampled and batch.
    """

    candidates: Literal["task", "inline", "sampled", "batch", "fixed"] = "task"
    n: int = 20
    file: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot work."""
        if self.n < 2:
            raise InputError(f"rank n must be at least 2, got {self.n}")
        if (self.candidates == "fixed") != (self.file is not None):
            raise InputError("rank candidates 'fixed' and rank file go together: give both or neither")


def ranked_among(rows: Rows, config: RankConfig) -> Rows:
    """The rows with other candidates.

    Raises:
        InputError: they cannot have them; the message says why.
    """
    match config.candidates:
        case "task":
            return rows
        case "inline":
            if any(len(example.candidates) < 2 for example in rows.examples):
                raise InputError(
                    "--rank.candidates inline: there are rows that list none but their label; choose sampled"
                )
            return dataclasses.replace(rows, shared=())
        case "sampled":
            alone = [_alone(example) for example in rows.examples]
            examples = add_candidates(alone, n_candidates=config.n, seed=config.seed, flag="--rank.n")
            return dataclasses.replace(rows, examples=examples, shared=())
        case "batch":
            return dataclasses.replace(
                rows, examples=_in_batches(rows.examples, config.n, config.seed), shared=()
            )
        case "fixed":
            assert config.file is not None
            examples = [_alone(example) for example in rows.examples]
            return dataclasses.replace(rows, examples=examples, shared=read_candidates(config.file))


def _alone(example: Example) -> Example:
    return dataclasses.replace(example, candidates=(example.label_text,), label=0)


def _in_batches(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """Each row with the labels of its batch; the last rows' batch takes rows of the one before it as well.

    Rows are shuffled first: successive ones are often of one dialogue, whose replies stand in the context.
    """
    if len(examples) < n:
        raise InputError(
            f"--rank.candidates batch: {len(examples)} rows make no batch of {n}; lower --rank.n"
        )
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    labels = [examples[i].label_text for i in order]
    found: list[Example] = list(examples)
    for place, i in enumerate(order):
        first = min(place // n * n, len(examples) - n)
        candidates = tuple(labels[first : first + n])
        found[i] = dataclasses.replace(examples[i], candidates=candidates, label=place - first)
    return found
