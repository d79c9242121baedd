"""A ranker's interface for the queue: token ids in, vectors and scores out, in shapes compiled in advance.

Only this file of the server knows how a ranker computes.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jax
import numpy as np

from polyjax.data.text import TextEncoder
from polyjax.data.token_store import Ids
from polyjax.data.tokenizers import PairTemplate
from polyjax.errors import InputError
from polyjax.inference.explain import Explanation, can_explain, explain_ids, token_reads
from polyjax.ranker import Ranker
from polyjax.serve.settings import CPU_TOKENS_PER_BATCH, TOKENS_PER_BATCH
from polyjax.types import Tokens

Kind = Literal["context", "candidate", "pair"]
Side = Literal["Right", "Left"]

CANDIDATES_AT_ONCE = 1024
"""Number of candidates scored with a context at a time; fewer are padded to a power of two."""
FEWEST_CANDIDATES = 16
_NOTHING = np.empty(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Cut:
    """How candidates that are too long are truncated.

    Attributes:
        tokens: maximum number of tokens to keep, without special tokens; None for the model's limit.
        side: the side on which tokens are dropped.
    """

    tokens: int | None = None
    side: Side = "Right"


AS_TRAINED = Cut()
"""The truncation of candidates that the model was trained with."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The texts of a request as token ids.

    Attributes:
        contexts: token ids of each context, [t].
        candidates: token ids of each candidate, [t].
        cut_contexts: number of contexts that were truncated, or lost their first turns.
        cut_candidates: indices of the candidates that were truncated.
        dropped: number of tokens that no pair keeps.
        side: the side of candidates on which pairs drop tokens.
    """

    contexts: list[Ids]
    candidates: list[Ids]
    cut_contexts: int
    cut_candidates: list[int]
    dropped: int = 0
    side: Side = "Right"

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts that are read."""
        return sum(map(len, self.contexts)) + sum(map(len, self.candidates)) - self.dropped


class Model:
    """A ranker's programs, called with token ids. Any thread may tokenise; only one at a time may compute.

    Args:
        ranker: the ranker to serve.
        tokens_per_batch: padded tokens of a full batch; None for the default of the device.

    Attributes:
        ranker: the ranker.
        is_dual: whether contexts and candidates are encoded separately.
        dim: width of the vectors.
        explains: whether scores can be explained by their parts.
        n_vectors: number of vectors of a context, known after compiling; 0 for a cross-encoder.

    Raises:
        InputError: the model's scores depend on the other texts of a call (ParlAI's padding).
    """

    def __init__(self, ranker: Ranker, *, tokens_per_batch: int | None = None):
        scorer = ranker.scorer
        self.ranker, self._scorer, self._text = ranker, scorer, scorer.text
        if self._text.config.padding == "longest":
            problem = "its scores depend on the other texts of a request (padding `longest`)"
            raise InputError("ranker", problem=problem, fix="convert the model with padding `none`")
        self.is_dual, self.dim = scorer.is_dual, scorer.dim
        self.explains = can_explain(scorer)
        self._template = _Template(self._text.tokenizer)
        self.n_vectors = 0
        on_cpu = jax.default_backend() == "cpu"
        default = CPU_TOKENS_PER_BATCH if on_cpu else TOKENS_PER_BATCH
        self.tokens_per_batch = tokens_per_batch or default

    @property
    def arch(self) -> str:
        """The architecture: ``bi``, ``poly``, ``cross``, or the name of a custom head."""
        return self._scorer.settings.head.arch

    @property
    def dtype(self) -> str:
        """The dtype of the encoder's computation."""
        return self._scorer.settings.encoder.dtype

    @property
    def max_turns(self) -> int:
        """Maximum number of turns of a context that are read."""
        return self._text.config.max_turns

    def limit(self, kind: Kind) -> int:
        """Maximum length of a sequence of a kind, in tokens."""
        config = self._text.config
        match kind:
            case "context":
                return config.context_tokens
            case "candidate":
                return config.candidate_tokens
            case "pair":
                return config.pair_limit()

    def padded(self, kind: Kind, length: int) -> int:
        """The padded length of a sequence, in tokens."""
        return self._text.config.bucket(length, self.limit(kind))

    def lengths(self, kind: Kind) -> list[int]:
        """All padded lengths of a kind of sequence, increasing."""
        limit = self.limit(kind)
        return sorted({self._text.config.bucket(n, limit) for n in range(1, limit + 1)})

    def full(self, length: int) -> int:
        """Number of rows in a full batch of a padded length."""
        return max(self.tokens_per_batch // length, 1)

    def sizes(self, length: int) -> list[int]:
        """Numbers of rows to which batches of a length are padded, increasing; each has its own program."""
        full = self.full(length)
        return sorted({1, *(max(full // part, 1) for part in (4, 2, 1))})

    @property
    def pair_tokens(self) -> int:
        """Maximum length of context and candidate together; 0 if they are truncated separately."""
        return 0 if self.is_dual else self._text.config.pair_tokens

    @property
    def reads_end(self) -> bool:
        """Whether the first tokens of a too long context are dropped, not the last."""
        return self._text.config.cut == "oldest"

    def activated(self, scores: np.ndarray) -> np.ndarray:
        """Scores after the head's activation, as ``Ranker`` returns them."""
        return self._scorer.activated(scores)

    def tokenise(
        self,
        contexts: Sequence[Sequence[str]],
        candidates: Sequence[str],
        cut: Cut,
        pairs: Sequence[tuple[int, int]] = (),
    ) -> Rows:
        """Token ids of a request's texts; they are not cached.

        Args:
            contexts: turns of each context, oldest first.
            candidates: texts.
            cut: truncation of candidates.
            pairs: indices of contexts and candidates that a cross-encoder reads together; a candidate is in
                one pair at most.
        """
        config = self._text.config
        candidates = [config.candidate_prompt + text for text in candidates]
        read = [self._text.read(turns) for turns in contexts]
        before = [config.context_prompt] if config.context_prompt else []
        texts = list(dict.fromkeys([*before, *itertools.chain.from_iterable(read), *candidates]))
        ids = dict(zip(texts, self._text.tokenizer.encode(texts), strict=True))
        joined = [self._joined(turns, ids) for turns in read]
        cut_contexts = {
            place
            for place, (n, turns) in enumerate(zip(joined, contexts, strict=True))
            if n > config.context_tokens - 2 or len(turns) > config.max_turns
        }
        most = config.candidate_tokens - 2
        room = most if cut.tokens is None else min(most, cut.tokens)
        long = {text for text in candidates if len(ids[text]) > room}
        kept = dict(ids)
        for text in long:
            if cut.side == "Left":
                kept[text] = ids[text][-room:]
            elif room < most:  # otherwise the model's layout truncates
                kept[text] = ids[text][:room]
        whole = TextEncoder(_Known(self._template, ids), config)
        bare = dataclasses.replace(config, candidate_prompt="")  # the texts include it already
        part = TextEncoder(_Known(self._template, kept), bare)
        rows = [whole.context(turns) for turns in contexts], [part.candidate(text) for text in candidates]
        cut_candidates = {place for place, text in enumerate(candidates) if text in long}
        dropped, least = 0, {}  # tokens that no pair keeps, of candidates and of each context
        for c, d in pairs if self.pair_tokens else ():
            n, m = len(rows[0][c]), len(rows[1][d])
            first, second = self._text.kept_of_pair(n, m)
            lost = n - 2 - first, m - 2 - second
            cut_contexts |= {c} if lost[0] else set()
            cut_candidates |= {d} if lost[1] else set()
            least[c] = min(lost[0], least.get(c, n))
            dropped += lost[1]
        dropped += sum(least.values())
        return Rows(*rows, len(cut_contexts), sorted(cut_candidates), dropped, cut.side)

    def _joined(self, turns: Sequence[str], ids: Mapping[str, Sequence[int]]) -> int:
        """Number of tokens of the turns that are read, including separators."""
        between = (len(turns) - 1) * len(self._text.tokenizer.separator_ids)
        return sum(len(ids[turn]) for turn in turns) + between

    def pair(self, context: Ids, candidate: Ids, side: Side) -> tuple[Ids, int]:
        """A context and a candidate as one sequence, and the number of tokens in its first segment."""
        return self._text.pair(context, candidate, keep_end=side == "Left")

    def context_vectors(self, rows: Sequence[Ids], length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of contexts, float32 [n, m, d], and their mask [n, m].

        Args:
            rows: token ids of the contexts.
            length: padded length.
            size: number of rows to pad to.
        """
        tokens = self._padded(rows, length, size, self._text.config.context_prompt)
        vectors, mask = self._scorer.model.contexts(tokens)
        return np.asarray(vectors)[: len(rows)], np.asarray(mask)[: len(rows)]

    def candidate_vectors(self, rows: Sequence[Ids], length: int, size: int) -> np.ndarray:
        """Vectors of candidates, float32 [n, d]; arguments as for ``context_vectors``."""
        tokens = self._padded(rows, length, size, self._text.config.candidate_prompt)
        return np.asarray(self._scorer.model.candidates(tokens))[: len(rows)]

    def pair_scores(self, rows: Sequence[tuple[Ids, int]], length: int, size: int) -> np.ndarray:
        """Scores of pairs, float32 [n]; arguments as for ``context_vectors``, with rows from ``pair``."""
        filled = [*rows, *([(_NOTHING, 0)] * (size - len(rows)))]
        tokens = self._text.pad_pairs(filled, length=length)
        return np.asarray(self._scorer.model.pairs(tokens))[: len(rows)]

    def _padded(self, rows: Sequence[Ids], length: int, size: int, prompt: str) -> Tokens:
        filled = [*rows, *([_NOTHING] * (size - len(rows)))]
        return self._text.pad(filled, length=length, prompt=prompt)

    def scores(self, vectors: np.ndarray, mask: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Scores, float32 [n], of a context (vectors [m, d], mask [m]) with candidates [n, d]."""
        n = len(candidates)
        found = np.empty(n, np.float32)
        for start in range(0, n, CANDIDATES_AT_ONCE):
            some = candidates[start : start + CANDIDATES_AT_ONCE]
            filled = np.zeros((_filled_up(len(some)), candidates.shape[1]), np.float32)
            filled[: len(some)] = some
            scores = self._scorer.model.scores(vectors[None], mask[None], filled[None])
            found[start : start + len(some)] = np.asarray(scores)[0, : len(some)]
        return found

    def explain(self, context: Ids, candidate: Ids, *, top: int) -> Explanation:
        """The parts of a score, and the tokens that the ``top`` most important context vectors read."""
        length = self.padded("candidate", len(candidate))
        (vector,) = self.candidate_vectors([candidate], length, 1)
        return explain_ids(self._scorer, context, vector, top=top)

    def compile(self) -> Iterator[None]:
        """Compile every shape; yields after each program."""
        if not self.is_dual:
            for length, size in self._shapes("pair"):
                self.pair_scores([(_NOTHING, 0)], length, size)
                yield
            return
        vectors, mask = np.zeros((1, 1, self.dim), np.float32), np.ones((1, 1), bool)
        for length, size in self._shapes("context"):
            vectors, mask = self.context_vectors([_NOTHING], length, size)
            yield
        self.n_vectors = vectors.shape[1]
        for length, size in self._shapes("candidate"):
            self.candidate_vectors([_NOTHING], length, size)
            yield
        for size in sorted({_filled_up(n) for n in range(1, CANDIDATES_AT_ONCE + 1)}):
            self.scores(vectors[0], mask[0], np.zeros((size, self.dim), np.float32))
            yield
        for length in self.lengths("context") if self.explains else ():
            token_reads(self._scorer, self._padded([_NOTHING], length, 1, self._text.config.context_prompt))
            yield

    def _shapes(self, kind: Kind) -> Iterator[tuple[int, int]]:
        return ((length, size) for length in self.lengths(kind) for size in self.sizes(length))


class _Template:
    """A tokenizer's special tokens and vocabulary size, read once, because counting takes milliseconds."""

    def __init__(self, tokenizer):
        self.vocab_size, self.pad_id, self.mask_id = tokenizer.vocab_size, tokenizer.pad_id, tokenizer.mask_id
        self.start_id, self.end_id = tokenizer.start_id, tokenizer.end_id
        self.separator_ids = tokenizer.separator_ids
        paired = isinstance(tokenizer, PairTemplate)
        self.between_ids = tokenizer.between_ids if paired else ()
        self.pair_segments = tokenizer.pair_segments if paired else True


class _Known(_Template):
    """A tokenizer for texts whose ids are already known."""

    def __init__(self, template: _Template, ids: Mapping[str, Sequence[int]]):
        vars(self).update(vars(template))
        self._ids = ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        return [list(self._ids[text]) for text in texts]

    def save(self, folder) -> None:
        """Nothing to save."""


def _filled_up(n: int) -> int:
    """The number of candidates to which n candidates are padded."""
    return max(FEWEST_CANDIDATES, 1 << (n - 1).bit_length())
