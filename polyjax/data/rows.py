"""The rows of a split, and what their labels are ranked among."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from polyjax.data.candidates import add_candidates, read_candidates
from polyjax.data.identity import text_key, with_answers
from polyjax.errors import InputError
from polyjax.types import Example


@dataclasses.dataclass(frozen=True)
class Rows:
    """The examples of a split.

    Attributes:
        examples: with the label alone, or with listed candidates.
        note: a remark about the data for reports; "" for none.
        shared: candidates of all rows, no two of which are one text (``data.identity``); a row's label is
            added if it is not among them.
    """

    examples: Sequence[Example]
    note: str = ""
    shared: Sequence[str] = ()


def rows_digest(rows: Rows) -> str:
    """A digest of the rows: contexts, candidates, labels, negatives, scores and their order."""
    digest = hashlib.sha256("\0".join(rows.shared).encode("utf-8", "surrogatepass"))
    for example in rows.examples:
        counts = f"{len(example.context)} {len(example.candidates)} {example.label}"
        texts = "\0".join((counts, *example.context, *example.candidates, *example.answers, ""))
        digest.update(texts.encode("utf-8", "surrogatepass"))
        if example.negatives or example.scores is not None:
            digest.update(repr((example.negatives, example.scores)).encode("utf-8", "surrogatepass"))
    return f"{len(rows.examples)} rows, {digest.hexdigest()[:16]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankConfig:
    """What the labels of validation and test rows are ranked among.

    Attributes:
        candidates: ``task``, as the task has it; ``inline``, the candidates that a row lists; ``sampled``,
            the label and ``n - 1`` labels of other rows; ``batch``, the labels of ``n`` rows that
            are thrown together; ``fixed``, the lines of ``file``, which a row's label joins where it is not
            among them.
        n: candidates per row, for sampled and batch.
        file: candidates of all rows, one per line.
        seed: of the draw, for sampled and batch.
    """

    candidates: Literal["task", "inline", "sampled", "batch", "fixed"] = "task"
    n: int = 20
    file: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        if self.n < 2:
            raise InputError("rank.n", expected="at least 2", got=self.n)
        if (self.candidates == "fixed") != (self.file is not None):
            raise InputError(
                "rank.file", expected="a file if and only if `rank.candidates` is fixed", got=self.file
            )


def ranked_among(rows: Rows, config: RankConfig) -> Rows:
    """The rows with other candidates.

    Raises:
        InputError: the rows cannot have such candidates; the message says why.
    """
    match config.candidates:
        case "task":
            return rows
        case "inline":
            if any(len(example.candidates) < 2 for example in rows.examples):
                raise InputError(
                    "rank.candidates",
                    problem="some rows list no candidates but their label",
                    got=config.candidates,
                    fix="choose sampled",
                )
            return dataclasses.replace(rows, shared=())
        case "sampled":
            alone = [_alone(example) for example in rows.examples]
            examples = add_candidates(alone, n_candidates=config.n, seed=config.seed, argument="rank.n")
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
    """Each row with the labels of its batch; the last batch is filled up with rows of the one before it.

    Rows are shuffled first: successive ones are often of one dialogue, whose replies stand in the context.
    A label of the batch that is also right for the row, or is there already, is replaced by the next that is
    neither.
    """
    if len(examples) < n:
        raise InputError(
            "rank.n",
            expected=f"at most the {len(examples)} rows, of which batches are made",
            got=n,
        )
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    labels = [examples[i].label_text for i in order]
    keys = [text_key(label) for label in labels]
    right = with_answers(examples)
    found: list[Example] = list(examples)
    for place, i in enumerate(order):
        first = min(place // n * n, len(examples) - n)
        taken = {keys[place], *map(text_key, right[i].answers)}
        candidates = labels[first : first + n]
        others = (j % len(order) for j in range(first + n, first + len(order)))
        for k in range(n):
            if first + k == place:
                continue
            if keys[first + k] in taken:
                other = next((j for j in others if keys[j] not in taken), None)
                if other is None:
                    raise InputError(
                        "rank.n",
                        problem=f"too few labels are wrong for row {examples[i].id!r}",
                        got=n,
                        fix="lower it",
                    )
                candidates[k] = labels[other]
                taken.add(keys[other])
            else:
                taken.add(keys[first + k])
        found[i] = dataclasses.replace(examples[i], candidates=tuple(candidates), label=place - first)
    return found
