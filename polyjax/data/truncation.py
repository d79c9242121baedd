"""What is lost between texts and tokens: contexts and labels that are cut, labels that become equal."""

import dataclasses
from collections.abc import Iterable

from polyjax.data.identity import Keys
from polyjax.data.text import TextEncoder
from polyjax.errors import InputError
from polyjax.types import Example

TRIAL_STEPS = 10
"""A run of at most this many steps is a trial, which need not learn anything and is not refused."""


@dataclasses.dataclass(frozen=True)
class Losses:
    """What a split's rows lose when they become tokens.

    Attributes:
        rows: how many there are.
        cut_contexts: rows whose context is cut.
        cut_labels: rows whose label is cut.
        labels: different labels, by the rule of ``data.identity``.
        token_rows: different rows of tokens that these labels become.
        context_tokens: the limit of a context.
        candidate_tokens: the limit of a label.
    """

    rows: int
    cut_contexts: int
    cut_labels: int
    labels: int
    token_rows: int
    context_tokens: int
    candidate_tokens: int


def losses(examples: Iterable[Example], text: TextEncoder) -> Losses:
    """What the contexts and labels of a split lose when they become tokens."""
    keys, seen = Keys(), set()
    sequences: set[bytes] = set()
    rows = cut_contexts = cut_labels = 0
    for example in examples:
        rows += 1
        cut_contexts += text.cuts_context(example.context)
        cut_labels += text.cuts_candidate(example.label_text)
        key = keys[example.label_text]
        if key not in seen:
            seen.add(key)
            sequences.add(text.candidate(example.label_text).tobytes())
    config = text.config
    return Losses(
        rows,
        cut_contexts,
        cut_labels,
        len(seen),
        len(sequences),
        config.context_tokens,
        config.candidate_tokens,
    )


def loss_notes(found: Losses) -> list[str]:
    """What a report says about it; nothing if nothing is lost."""
    notes = []
    if found.cut_contexts or found.cut_labels:
        notes.append(
            f"{found.cut_contexts:,} of {found.rows:,} training contexts are cut to {found.context_tokens} "
            f"tokens, {found.cut_labels:,} labels to {found.candidate_tokens}"
        )
    if found.token_rows < found.labels:
        notes.append(
            f"warning: {found.labels:,} different training labels are {found.token_rows:,} for the model: "
            "the others have the same tokens"
        )
    return notes


def check_losses(found: Losses, *, steps: int) -> None:
    """Check that there is anything to learn.

    Args:
        found: of the training split.
        steps: of the training.

    Raises:
        InputError: all labels, several different texts, are one row of tokens.
    """
    if found.labels > 1 and found.token_rows == 1 and steps > TRIAL_STEPS:
        raise InputError(
            "text.candidate_tokens",
            problem=f"all {found.labels:,} different training labels have the same tokens: nothing can be "
            f"learnt ({found.cut_labels:,} of {found.rows:,} labels are cut)",
            got=found.candidate_tokens,
            fix="raise it, or leave out what the labels begin with in common",
        )
