"""Texts in, scores out, with any scorer: tokenised, batched, computed by compiled programs.

Evaluation, baselines and the Ranker all score through this one class.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from polyjax.data.text import TextEncoder
from polyjax.data.token_store import Ids
from polyjax.errors import InputError, shown
from polyjax.inference.batching import Batching, column_bucket, column_buckets, filled, lengths_of, real
from polyjax.inference.numbers import check_numbers
from polyjax.inference.programs import Compiled
from polyjax.nn.heads import ActivatesScores, DualHead
from polyjax.nn.scorers import Scorer
from polyjax.runtime.fields import check_types
from polyjax.types import Tokens

TOKENS_PER_BATCH, CPU_TOKENS_PER_BATCH = 4096, 1024
"""Rows of a full batch times their padded length, on each device.

A CPU's cache holds the intermediate arrays of small batches: all-MiniLM-L6-v2 encoded 262 texts/s in float32
with 4,096 tokens, 303 with 2,048, 326 with 1,024, 291 with 512 (2 cores of an AMD EPYC, Zen 4).
"""

_PRODUCTS_AT_ONCE = 1 << 23
"""Products of context vectors with shared candidates that are in memory together: 32 MiB."""

Progress = Callable[[int], None]
"""Called with the number of texts done so far."""
Turns = Sequence[str]
"""The turns of a context, oldest first."""


def ignore(n: int) -> None:
    """No progress display."""


def check_scorer(scorer: object) -> "TextScorer":
    """The scorer, if it scores texts, or InputError."""
    if isinstance(scorer, str | os.PathLike):
        fix = f"write Ranker.load({str(scorer)!r})"
        raise InputError("scorer", expected="a scorer of texts", got=str(scorer), fix=fix)
    if not isinstance(scorer, TextScorer):
        got = shown(f"a value of type {type(scorer).__name__}")
        raise InputError("scorer", expected="a scorer of texts, as Ranker.load makes", got=got)
    return scorer


class TextScorer:
    """Scores texts with a scorer. Threads may share one.

    Args:
        scorer: bi-, poly- or cross-encoder, or one with a custom head.
        text: tokenises and pads.
        mesh: devices that share the rows of a batch, from ``make_mesh``; one device if None. With several
            processes each of them must make the same calls.

    Attributes:
        model: the scorer's parameters and programs, for callers that make batches themselves.
        settings: the scorer's configuration.
        is_dual: whether candidates are encoded separately from contexts.
        batching: how texts are put into batches.

    Raises:
        InputError: the process was forked from one that had started jax.
    """

    def __init__(self, scorer: Scorer, text: TextEncoder, *, mesh: Mesh | None = None):
        check_types(text.config, "text")
        self.model, self.text, self.settings = Compiled(scorer, mesh=mesh), text, scorer.settings
        self.is_dual = scorer.inputs == "dual"
        tokens = CPU_TOKENS_PER_BATCH if jax.default_backend() == "cpu" else TOKENS_PER_BATCH
        self.batching = Batching(text=text.config, tokens=tokens, devices=self.model.devices)

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far, one per shape; the buckets bound it."""
        return self.model.compilations

    @property
    def dim(self) -> int:
        """Width d of the vectors."""
        return self.settings.vector_dim

    @property
    def head(self) -> DualHead:
        """The scoring head, with its parameters, of a scorer that encodes candidates separately."""
        assert self.is_dual
        return self.model.head

    def activated(self, scores: np.ndarray) -> np.ndarray:
        """Scores as a user sees them: some cross-encoders' settings have an activation for this."""
        head = self.settings.head
        return head.activated(scores) if isinstance(head, ActivatesScores) else scores

    def update(self, scorer: Scorer) -> None:
        """Use the parameters of another scorer of the same shape; nothing is compiled again."""
        self.model.update(scorer)

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters as they are used, by dotted path."""
        return self.model.parameters()

    def encode_candidates(self, texts: Sequence[str], *, progress: Progress = ignore) -> np.ndarray:
        """Candidate vectors, float32 [n, d], in the order of the texts."""
        self.text.prepare(texts)
        return self._vectors(self._candidate_rows(texts), progress)

    def candidate_batches(
        self, texts: Sequence[str], *, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of candidates: their places and vectors, float32 [places, d].

        Args:
            texts: candidates.
            first: batches of ``candidate_plan`` to skip.
        """
        self.text.prepare(texts)
        return self._vector_batches(self._candidate_rows(texts), first)

    def candidate_plan(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, int]]:
        """The batches of ``candidate_batches``: their places, and the tokens to which they are padded."""
        self.text.prepare(texts)
        return self._planned(self._candidate_rows(texts))

    def context_batches(
        self, contexts: Sequence[Turns]
    ) -> Iterator[tuple[np.ndarray, Float[Array, "b m d"], Bool[Array, "b m"]]]:
        """Batches of contexts: their places, vectors and which of those are real.

        Args:
            contexts: turns of each, oldest first.
        """
        self.text.prepare(t for turns in contexts for t in turns)
        return self._context_batches(self._context_rows(contexts))

    def score(
        self, contexts: Sequence[Turns], candidates: Sequence[Sequence[str]], *, progress: Progress = ignore
    ) -> np.ndarray:
        """Scores of each context's candidates, float32 [b, c].

        Args:
            contexts: turns of each context, oldest first.
            candidates: texts for each context, c of them at most; places of missing ones get -inf.
            progress: called with the number of contexts done.

        Raises:
            InputError: a score is not a number.
        """
        self._prepare(contexts, *candidates)
        rows = self._context_rows(contexts)
        if not self.is_dual:
            listed = [self._candidate_rows(row) for row in candidates]
            return check_numbers(self._pair_scores(rows, listed, progress))
        places = {text: i for i, text in enumerate(dict.fromkeys(t for row in candidates for t in row))}
        vectors = self._vectors(self._candidate_rows(list(places)), ignore)
        there = real(candidates)
        index = np.zeros(there.shape, int)
        index[there] = [places[text] for row in candidates for text in row]
        scores = self._listed_scores(rows, vectors, index, progress)
        return check_numbers(np.where(there, scores, np.float32(-np.inf)))

    def score_shared(
        self,
        contexts: Sequence[Turns],
        shared: Sequence[str],
        own: Sequence[str],
        *,
        progress: Progress = ignore,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Scores of shared candidates for every context, and of an own one each, some contexts at a time.

        A scorer that encodes candidates separately encodes the shared ones once.

        Args:
            contexts: turns of each context, oldest first.
            shared: n candidates of all.
            own: a further candidate for each context.
            progress: called with the number of texts done: contexts, and before them candidates if they are
                encoded separately.

        Yields:
            Places of p contexts, scores float32 [p, n] of the shared candidates, and [p] of their own.
        """
        self._prepare(contexts, shared, own)
        rows, n = self._context_rows(contexts), len(shared)
        candidates = self._candidate_rows([*shared, *own])
        if not self.is_dual:
            for i, row in enumerate(rows):
                scores = self._pair_scores([row], [[*candidates[:n], candidates[n + i]]], ignore)
                progress(1)
                yield np.array([i]), scores[:, :-1], scores[:, -1]
            return
        vectors = self._vectors(candidates, progress)
        for places, context_vectors, mask in self._context_batches(rows):
            m = context_vectors.shape[1]
            r = min(max(_PRODUCTS_AT_ONCE // (n * m), 1), len(context_vectors))
            for start in range(0, len(places), r):
                some = places[start : start + r]
                scores = self._shared_scores(context_vectors, mask, vectors[:n], vectors[n + some], start, r)
                progress(len(some))
                yield some, scores[: len(some), :n], scores[np.arange(len(some)), n + np.arange(len(some))]

    def compile_contexts(self) -> tuple[Float[Array, "1 m d"], Bool[Array, "1 m"]]:
        """Compile the encoding of single contexts of all lengths; returns an empty one's vectors and mask."""
        vectors, mask = [
            self.model.contexts(self._empty(rows, length))
            for rows, length in self.batching.shapes(1, self.text.config.context_tokens)
        ][0]
        return vectors[:1], mask[:1]

    def compile_scores(self, n_candidates: int) -> int:
        """Compile what scoring up to n candidates of one context needs; returns the number of programs."""
        before, config = self.compilations, self.text.config
        if not self.is_dual:
            for shape in self.batching.shapes(n_candidates, config.pair_limit()):
                self.model.pairs(self._empty(*shape))
            return self.compilations - before
        for shape in self.batching.shapes(n_candidates, config.candidate_tokens):
            self.model.candidates(self._empty(*shape, prompt=config.candidate_prompt))
        rows, length = self.batching.shapes(1, config.context_tokens)[0]
        self.compile_contexts()
        vectors, mask = self.model.contexts(self._empty(rows, length, prompt=config.context_prompt))
        for columns in column_buckets(n_candidates):
            listed = self.model.split(np.zeros((rows, columns, self.dim), np.float32))
            self.model.scores(vectors, mask, listed)
        return self.compilations - before

    def _prepare(self, contexts: Sequence[Turns], *texts: Sequence[str]) -> None:
        """Tokenise all texts of a call at once."""
        self.text.prepare([*(t for turns in contexts for t in turns), *(t for some in texts for t in some)])

    def _context_rows(self, contexts: Sequence[Turns]) -> list[Ids]:
        return [self.text.context(turns) for turns in contexts]

    def _candidate_rows(self, texts: Sequence[str]) -> list[Ids]:
        return [self.text.candidate(text) for text in texts]

    def _planned(self, rows: Sequence[Ids]) -> Iterator[tuple[np.ndarray, int]]:
        return self.batching.batches(lengths_of(rows), self.text.config.candidate_tokens)

    def padded(self, rows: Sequence[Ids], length: int, *, prompt: str = "") -> Tokens:
        """A batch's tokens, padded to a shape that is compiled once.

        Args:
            rows: ids of each sequence.
            length: to which they are padded.
            prompt: the prompt that they begin with.
        """
        tokens = self.text.pad(rows, length=length, prompt=prompt)
        return self.model.split(filled(tokens, self.batching.rows(len(rows), length)))

    def _empty(self, rows: int, length: int, *, prompt: str = "") -> Tokens:
        empty = [np.empty(0, np.int32)] * rows
        return self.model.split(self.text.pad(empty, length=length, prompt=prompt))

    def _vectors(self, rows: Sequence[Ids], progress: Progress) -> np.ndarray:
        vectors = np.empty((len(rows), self.dim), np.float32)
        for places, batch in self._vector_batches(rows, 0):
            vectors[places] = batch
            progress(len(places))
        return vectors

    def _vector_batches(self, rows: Sequence[Ids], first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for places, length in islice(self._planned(rows), first, None):
            prompt = self.text.config.candidate_prompt
            tokens = self.padded([rows[i] for i in places], length, prompt=prompt)
            vectors = np.asarray(self.model.candidates(tokens))
            yield places, vectors[: len(places)]

    def _context_batches(
        self, rows: Sequence[Ids]
    ) -> Iterator[tuple[np.ndarray, Float[Array, "b m d"], Bool[Array, "b m"]]]:
        for places, length in self.batching.batches(lengths_of(rows), self.text.config.context_tokens):
            prompt = self.text.config.context_prompt
            tokens = self.padded([rows[i] for i in places], length, prompt=prompt)
            yield places, *self.model.contexts(tokens)

    def _listed_scores(
        self, contexts: Sequence[Ids], vectors: np.ndarray, index: np.ndarray, progress: Progress
    ) -> np.ndarray:
        """Scores [b, c] of contexts against the vectors [n, d] at the places index [b, c]."""
        b, c = index.shape
        scores = np.empty((b, c), np.float32)
        width = column_bucket(c)
        for places, context_vectors, mask in self._context_batches(contexts):
            listed = np.zeros((len(context_vectors), width, self.dim), np.float32)
            listed[: len(places), :c] = vectors[index[places]]
            batch = self.model.scores(context_vectors, mask, self.model.split(listed))
            scores[places] = np.asarray(batch)[: len(places), :c]
            progress(len(places))
        return scores

    def _shared_scores(
        self,
        vectors: Float[Array, "b m d"],
        mask: Bool[Array, "b m"],
        shared: np.ndarray,
        own: np.ndarray,
        start: int,
        r: int,
    ) -> np.ndarray:
        """Scores [r, n + r] of r contexts from ``start`` on; their own candidates are the last r."""
        # Own candidates are in the same product as the shared ones, so that equal vectors get equal scores.
        candidates = np.zeros((len(shared) + r, self.dim), np.float32)
        candidates[: len(shared)] = shared
        candidates[len(shared) : len(shared) + len(own)] = own
        part = np.zeros((r, *vectors.shape[1:]), np.float32)
        there = np.ones((r, vectors.shape[1]), bool)
        part[: len(own)] = np.asarray(vectors[start : start + r])[: len(own)]
        there[: len(own)] = np.asarray(mask[start : start + r])[: len(own)]
        return np.asarray(self.model.scores(part, there, candidates[None]))

    def _pair_scores(
        self, contexts: Sequence[Ids], candidates: Sequence[Sequence[Ids]], progress: Progress
    ) -> np.ndarray:
        """Scores [b, c] of a scorer that reads context and candidate together."""
        text = self.text
        pairs = [
            text.pair(context, candidate)
            for context, row in zip(contexts, candidates, strict=True)
            for candidate in row
        ]
        # The longest context and the longest candidate need not form a pair, but ParlAI pads to that length.
        longest = max(map(len, contexts)) + max(len(candidate) for row in candidates for candidate in row)
        lengths = lengths_of([ids for ids, _ in pairs])
        scores = np.empty(len(pairs), np.float32)
        done = 0
        for places, length in self.batching.batches(lengths, text.config.pair_limit(), longest):
            tokens = text.pad_pairs([pairs[i] for i in places], length=length)
            tokens = self.model.split(filled(tokens, self.batching.rows(len(places), length)))
            scores[places] = np.asarray(self.model.pairs(tokens))[: len(places)]
            finished = len(contexts) * (done + len(places)) // len(pairs)
            progress(finished - len(contexts) * done // len(pairs))
            done += len(places)
        there = real(candidates)
        table = np.full(there.shape, -np.inf, np.float32)
        table[there] = scores
        return table
