"""What is lost between texts and tokens: contexts and candidates that are cut, texts that become equal."""

import dataclasses
from collections.abc import Iterable, Sequence

from polyjax.data.identity import Keys, text_key
from polyjax.data.text import TextEncoder
from polyjax.errors import InputError
from polyjax.types import Example

TRIAL_STEPS = 10
"""A run of at most this many steps is a trial, which need not learn anything and is not refused."""
TEXTS_AT_ONCE = 1 << 16
"""Candidates of an index that are looked at together: a large index's tokens do not fit into memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """What texts lose when they become tokens.

    Attributes:
        kind: what the candidates are, for notes: ``label`` or ``candidate``, after the name of a split.
        candidates: how many candidates were looked at; of training rows every label counts.
        cut_candidates: those of them that are cut.
        different: different ones, by the rule of ``data.identity``.
        token_rows: different rows of tokens that these become.
        limit: tokens of a candidate, or of a pair where context and candidate are cut together.
        rows: contexts.
        cut_contexts: those of them that are cut.
        context_limit: tokens of a context, or of a pair.
        ties: rows in which a wrong candidate has the tokens of a right one: they cannot be won.
    """

    kind: str
    candidates: int
    cut_candidates: int
    different: int
    token_rows: int
    limit: int
    rows: int = 0
    cut_contexts: int = 0
    context_limit: int = 0
    ties: int = 0

    def notes(self) -> list[str]:
        """What a report says about it; nothing if nothing is lost."""
        notes = []
        split, _, noun = self.kind.rpartition(" ")
        cut = f"{self.cut_candidates:,} of {self.candidates:,}"
        if self.rows and (self.cut_contexts or self.cut_candidates):
            notes.append(
                f"{self.cut_contexts:,} of {self.rows:,} {split} contexts are cut to {self.context_limit} "
                f"tokens, {cut} {noun}s to {self.limit}"
            )
        elif self.cut_candidates:
            notes.append(f"{cut} {self.kind}s are cut to {self.limit} tokens")
        if self.token_rows < self.different:
            tied = f"; in {self.ties:,} of {self.rows:,} rows a wrong one ties with the label"
            tied = tied if self.ties else ""
            notes.append(
                f"warning: {self.different:,} different {self.kind}s are {self.token_rows:,} for the model: "
                f"the others have the same tokens{tied}"
            )
        return notes


class _Seen:
    """Candidates that were looked at: different texts, and the different rows of tokens that they are."""

    def __init__(self, text: TextEncoder):
        self._text = text
        self._tokens: dict[int, int] = {}  # hashes, as an index has millions

    def tokens(self, candidate: str, key: str) -> int:
        """A hash of the tokens of a candidate, or of an earlier one with its key."""
        place = hash(key)
        if place not in self._tokens:
            self._tokens[place] = hash(self._text.candidate(candidate).tobytes())
        return self._tokens[place]

    @property
    def different(self) -> int:
        """How many texts."""
        return len(self._tokens)

    @property
    def token_rows(self) -> int:
        """How many rows of tokens."""
        return len(set(self._tokens.values()))


def losses(examples: Iterable[Example], text: TextEncoder) -> Losses:
    """What the contexts and labels of training rows lose when they become tokens."""
    seen, keys = _Seen(text), Keys()
    rows = cut_contexts = cut_labels = 0
    for example in examples:
        rows += 1
        context, (label,) = _cut(example, [example.label_text], text)
        cut_contexts, cut_labels = cut_contexts + context, cut_labels + label
        seen.tokens(example.label_text, keys[example.label_text])
    context_limit, limit = _limits(text)
    return Losses(
        kind="training label",
        candidates=rows,
        cut_candidates=cut_labels,
        different=seen.different,
        token_rows=seen.token_rows,
        limit=limit,
        rows=rows,
        cut_contexts=cut_contexts,
        context_limit=context_limit,
    )


def ranked_losses(
    examples: Sequence[Example], text: TextEncoder, *, split: str, shared: Sequence[str] = ()
) -> Losses:
    """What rows to rank lose: contexts, and the candidates that they list or share.

    The texts are tokenised all at once, as scoring does, which then finds their tokens.

    Args:
        examples: that are ranked.
        text: tokenises.
        split: their name.
        shared: candidates of all.
    """
    listed = [[example.label_text] if shared else example.candidates for example in examples]
    text.prepare(
        [*(turn for e in examples for turn in e.context), *shared, *(c for row in listed for c in row)]
    )
    seen, keys = _Seen(text), Keys()
    cut: dict[str, bool] = {keys[candidate]: text.cuts_candidate(candidate) for candidate in shared}
    of_shared: dict[int, list[str]] = {}
    for candidate in shared:
        of_shared.setdefault(seen.tokens(candidate, keys[candidate]), []).append(keys[candidate])
    cut_contexts = ties = 0
    for example, candidates in zip(examples, listed, strict=True):
        context, which = _cut(example, candidates, text)
        cut_contexts += context
        for candidate, is_cut in zip(candidates, which, strict=True):
            cut[keys[candidate]] = cut.get(keys[candidate], False) or is_cut
        right = {keys[answer] for answer in (example.label_text, *example.answers)}
        own = seen.tokens(example.label_text, keys[example.label_text])
        alike = [keys[c] for c in candidates if seen.tokens(c, keys[c]) == own]
        ties += any(key not in right for key in (*alike, *of_shared.get(own, ())))
    context_limit, limit = _limits(text)
    return Losses(
        kind=f"{split} candidate",
        candidates=len(cut),
        cut_candidates=sum(cut.values()),
        different=seen.different,
        token_rows=seen.token_rows,
        limit=limit,
        rows=len(examples),
        cut_contexts=cut_contexts,
        context_limit=context_limit,
        ties=ties,
    )


def candidate_losses(texts: Sequence[str], text: TextEncoder) -> Losses:
    """What the candidates of an index lose. Their tokens are there if they have just been encoded.

    Args:
        texts: the candidates.
        text: tokenises.
    """
    seen, n_cut = _Seen(text), 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        text.prepare(some)
        for candidate in some:
            seen.tokens(candidate, text_key(candidate))
            n_cut += text.cuts_candidate(candidate)
    return Losses(
        kind="candidate",
        candidates=len(texts),
        cut_candidates=n_cut,
        different=seen.different,
        token_rows=seen.token_rows,
        limit=_limits(text)[1],
    )


def _limits(text: TextEncoder) -> tuple[int, int]:
    """Tokens of a context and of a candidate at most."""
    config = text.config
    return (config.pair_tokens or config.context_tokens, config.pair_tokens or config.candidate_tokens)


def _cut(example: Example, candidates: Sequence[str], text: TextEncoder) -> tuple[bool, list[bool]]:
    """Whether a row's context is cut, and which of its candidates are."""
    if not text.config.pair_tokens:
        return text.cuts_context(example.context), [text.cuts_candidate(c) for c in candidates]
    context = text.context_length(example.context)
    pairs = [text.cuts_pair(context, text.candidate_length(candidate)) for candidate in candidates]
    return any(first for first, _ in pairs), [second for _, second in pairs]


def check_losses(found: Losses, *, steps: int) -> None:
    """Check that there is anything to learn.

    Args:
        found: of the training split.
        steps: of the training.

    Raises:
        InputError: all labels, several different texts, are one row of tokens.
    """
    if found.different > 1 and found.token_rows == 1 and steps > TRIAL_STEPS:
        raise InputError(
            "text.candidate_tokens",
            problem=f"all {found.different:,} different training labels have the same tokens: nothing can be "
            f"learnt ({found.cut_candidates:,} of {found.candidates:,} labels are cut)",
            got=found.limit,
            fix="raise it, or leave out what the labels begin with in common",
        )
