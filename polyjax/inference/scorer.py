"""Text in, scores out, with any scorer: length-sorted, bucketed, compiled once a shape.

Evaluation, baselines and the Ranker all score through this one class.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from polyjax.data.text import Ids, TextEncoder
from polyjax.mesh.placement import ROWS, everywhere, placed, row_devices, shardings_of, used
from polyjax.nn.encoders import Dtype
from polyjax.nn.heads import DualHead
from polyjax.nn.scorers import CrossScorer, DualScorer, Scorer
from polyjax.types import Tokens

TOKENS_PER_BATCH, CPU_TOKENS_PER_BATCH = 4096, 1024
"""Rows of a full batch times their padded length, on each device.

A CPU's cache holds what the smaller ones need in between: all-MiniLM-L6-v2 encoded 262 texts/s in float32 in
batches of 4,096 tokens, 303 of 2,048, 326 of 1,024, 291 of 512 (2 cores of an AMD EPYC, Zen 4).
"""

MANY_BATCHES, STEP = 64, 8
"""Full batches from which each is padded to its own longest row, to a multiple of so many tokens.

Each such length is a program more to compile, which only pays where much is encoded.
"""

_PRODUCTS_AT_ONCE = 1 << 23
"""Products of context vectors with shared candidates that are in memory together: 32 MiB."""

Progress = Callable[[int], None]
Rows = TypeVar("Rows")


def ignore(n: int) -> None:
    """Progress that nobody watches."""


def _column_bucket(n: int) -> int:
    """Candidates a context to which a score matrix is filled up: the next power of two, 16 at least."""
    return max(16, 1 << (n - 1).bit_length())


def _fill_rows(tokens: Tokens, rows: int) -> Tokens:
    short = rows - tokens.ids.shape[0]
    return jax.tree.map(lambda x: np.pad(x, ((0, short), (0, 0))), tokens)


def _real(candidates: Sequence[Sequence[str]]) -> np.ndarray:
    """True where a context has a candidate, bool [b, c]."""
    counts = np.array([len(row) for row in candidates])
    return np.arange(counts.max()) < counts[:, None]


def for_inference(scorer: Scorer) -> Scorer:
    """The scorer with its encoders' matrices in the compute dtype, so that no call casts them again."""
    graph, state = nnx.split(scorer)
    encoder = scorer.settings.encoder

    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    values = [leaf for _, leaf in leaves]
    chosen = [
        place
        for place, (path, leaf) in enumerate(leaves)
        if leaf.ndim >= 2
        and leaf.dtype != encoder.dtype
        and not jax.tree_util.keystr(path).startswith("['head']")
    ]
    for place, value in zip(chosen, _cast([values[i] for i in chosen], encoder.dtype), strict=True):
        values[place] = value
    return nnx.merge(graph, jax.tree.unflatten(tree, values))


@partial(jax.jit, static_argnums=1)
def _cast(arrays: list[Array], dtype: Dtype) -> list[Array]:
    """One program instead of one for each shape."""
    return [array.astype(dtype) for array in arrays]


class TextScorer:
    """Scores texts with a scorer.

    Args:
        scorer: bi-, poly- or cross-encoder.
        text: tokenises and pads.
        mesh: devices that share the rows of a batch, from ``make_mesh``; in several processes all of them
            ask for the same texts. One device where None.

    Attributes:
        settings: the scorer's configuration.
        compilations: programs compiled so far; each is a shape, so the buckets bound their number.
        devices: that share the rows of a batch, and so multiply the rows of a full one.
    """

    def __init__(self, scorer: Scorer, text: TextEncoder, *, mesh: Mesh | None = None):
        self.text = text
        self.compilations = 0
        self._mesh, self.devices = mesh, 1 if mesh is None else row_devices(mesh)
        on_cpu = jax.default_backend() == "cpu"
        self._tokens_per_batch = CPU_TOKENS_PER_BATCH if on_cpu else TOKENS_PER_BATCH
        self._graph, self._state = nnx.split(for_inference(scorer))
        self._shardings: nnx.State | None = None
        if mesh is not None:
            self._shardings = used(shardings_of(self._state, mesh))
            self._state = placed(self._state, self._shardings)
        self._is_dual = scorer.inputs == "dual"
        self.settings = scorer.settings
        # Every process needs all results.
        out = None if mesh is None else everywhere(mesh)
        self._encode_candidates = jax.jit(self._traced_encode_candidates, out_shardings=out)
        self._score_contexts = jax.jit(self._traced_score_contexts, out_shardings=out)
        self._score_pairs = jax.jit(self._traced_score_pairs, out_shardings=out)
        self._encode_contexts = jax.jit(self._traced_encode_contexts, out_shardings=out)
        self._score_shared = jax.jit(self._traced_score_shared, out_shardings=out)

    def update(self, scorer: Scorer) -> None:
        """Take the parameters of a scorer of the same shape; nothing is compiled again."""
        state = nnx.state(for_inference(scorer))
        self._state = state if self._shardings is None else placed(state, self._shardings)

    def _full(self, length: int) -> int:
        """Rows of a full batch of a padded length."""
        return self.devices * max(self._tokens_per_batch // length, 1)

    def _row_bucket(self, n: int, length: int) -> int:
        """Rows to which a batch of n sequences is filled up: 1, 8 or full, and as many on each device."""
        full = self._full(length)
        least = (-(-rows // self.devices) * self.devices for rows in (1, 8, full))
        return next(rows for rows in least if rows >= n or rows >= full)

    def _split(self, rows: Rows) -> Rows:
        """Arrays whose rows the devices share."""
        return rows if self._mesh is None else jax.device_put(rows, NamedSharding(self._mesh, ROWS))

    def _traced_encode_candidates(self, state: nnx.State, tokens: Tokens) -> Float[Array, "n d"]:
        self.compilations += 1  # runs when a new shape is traced only
        scorer = nnx.merge(self._graph, state)
        assert isinstance(scorer, DualScorer)
        return scorer.encode_candidates(tokens)

    def _traced_score_contexts(
        self, state: nnx.State, tokens: Tokens, candidates: Float[Array, "b c d"]
    ) -> Float[Array, "b c"]:
        self.compilations += 1
        scorer = nnx.merge(self._graph, state)
        assert isinstance(scorer, DualScorer)
        return scorer.score(*scorer.encode_context(tokens), candidates)

    def _traced_score_pairs(self, state: nnx.State, tokens: Tokens) -> Float[Array, " n"]:
        self.compilations += 1
        scorer = nnx.merge(self._graph, state)
        assert isinstance(scorer, CrossScorer)
        return scorer.score_pairs(tokens)

    def _traced_encode_contexts(
        self, state: nnx.State, tokens: Tokens
    ) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        self.compilations += 1
        scorer = nnx.merge(self._graph, state)
        assert isinstance(scorer, DualScorer)
        return scorer.encode_context(tokens)

    def context_batches(
        self, contexts: Sequence[Sequence[str]]
    ) -> Iterator[tuple[np.ndarray, Float[Array, "b m d"], Bool[Array, "b m"]]]:
        """Batches of contexts: their places, vectors and which of those are real.

        Args:
            contexts: turns of each, oldest first.
        """
        self.text.prepare(t for turns in contexts for t in turns)
        rows = [self.text.context(turns) for turns in contexts]
        for places, length in self._batches(rows, self.text.config.context_tokens):
            tokens = self.text.pad([rows[i] for i in places], length=length)
            tokens = _fill_rows(tokens, self._row_bucket(len(places), length))
            vectors, mask = self._encode_contexts(self._state, self._split(tokens))
            yield places, vectors, mask

    def compile_contexts(self) -> tuple[Float[Array, "1 m d"], Bool[Array, "1 m"]]:
        """Compile the encoding of single contexts of all lengths; an empty one's vectors and their mask."""
        limit = self.text.config.context_tokens
        lengths = sorted({self.text.config.bucket(n, limit) for n in range(1, limit + 1)})
        rows = [np.empty(0, np.int32)] * self._row_bucket(1, 1)
        empty = [self._split(self.text.pad(rows, length=length)) for length in lengths]
        vectors, mask = [self._encode_contexts(self._state, tokens) for tokens in empty][0]
        return vectors[:1], mask[:1]

    @property
    def head(self) -> DualHead:
        """The scoring head, with its parameters, of a scorer that encodes candidates apart."""
        scorer = nnx.merge(self._graph, self._state)
        assert isinstance(scorer, DualScorer)
        return scorer.head

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters as they are used, by dotted path."""
        flat = nnx.to_flat_state(self._state)
        return {".".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in flat}

    @property
    def is_dual(self) -> bool:
        """Whether candidates can be encoded apart from contexts."""
        return self._is_dual

    def encode_candidates(self, texts: Sequence[str], *, progress: Progress = ignore) -> np.ndarray:
        """Candidate vectors of a bi- or poly-encoder, float32 [n, d], in the order of the texts."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for places, batch in self.candidate_batches(texts):
            vectors[places] = batch
            progress(len(places))
        return vectors

    def candidate_batches(
        self, texts: Sequence[str], *, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of candidates: their places and vectors, float32 [places, d].

        Args:
            texts: candidates.
            first: batches of ``candidate_plan`` to skip.
        """
        rows = self._candidate_rows(texts)
        for places, length in islice(self._planned(rows), first, None):
            tokens = self.text.pad([rows[i] for i in places], length=length)
            tokens = self._split(_fill_rows(tokens, self._row_bucket(len(places), length)))
            yield places, np.asarray(self._encode_candidates(self._state, tokens))[: len(places)]

    def candidate_plan(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, int]]:
        """The batches of ``candidate_batches``: their places, and the tokens to which they are padded."""
        return self._planned(self._candidate_rows(texts))

    def _candidate_rows(self, texts: Sequence[str]) -> list[Ids]:
        self.text.prepare(texts)
        return [self.text.candidate(text) for text in texts]

    def _planned(self, rows: Sequence[Ids]) -> Iterator[tuple[np.ndarray, int]]:
        return self._batches(rows, self.text.config.candidate_tokens)

    @property
    def dim(self) -> int:
        """Width d of the vectors."""
        return self.settings.encoder.dim

    def score(
        self,
        contexts: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        *,
        progress: Progress = ignore,
    ) -> np.ndarray:
        """Scores of each context's candidates, float32 [b, c].

        Args:
            contexts: turns of each context, oldest first.
            candidates: texts for each context, c of them at most; places of missing ones get -inf.
            progress: called with the number of contexts done.
        """
        self.text.prepare(
            [*(t for turns in contexts for t in turns), *(t for row in candidates for t in row)]
        )
        if not self._is_dual:
            return self._score_all_pairs(contexts, candidates, progress)
        places = {text: i for i, text in enumerate(dict.fromkeys(t for row in candidates for t in row))}
        vectors = self.encode_candidates(list(places))
        real = _real(candidates)
        index = np.zeros(real.shape, int)
        index[real] = [places[text] for row in candidates for text in row]
        scores = self._score_against(contexts, vectors, index, progress)
        return np.where(real, scores, np.float32(-np.inf))

    def score_shared(
        self,
        contexts: Sequence[Sequence[str]],
        shared: Sequence[str],
        own: Sequence[str],
        *,
        progress: Progress = ignore,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Scores of many candidates for every context, and of one more for each, some contexts at a time.

        Candidates of a bi- or poly-encoder are encoded once.

        Args:
            contexts: turns of each context, oldest first.
            shared: n candidates of all.
            own: a further candidate for each context.
            progress: called with the number of texts done: contexts, and before them candidates where those
                are encoded apart.

        Yields:
            Places of p contexts, scores float32 [p, n] of the shared candidates, and [p] of their own.
        """
        self.text.prepare([*(t for turns in contexts for t in turns), *shared, *own])
        if not self._is_dual:
            for i, (turns, text) in enumerate(zip(contexts, own, strict=True)):
                scores = self._score_all_pairs([turns], [[*shared, text]], ignore)
                progress(1)
                yield np.array([i]), scores[:, :-1], scores[:, -1]
            return
        vectors = self.encode_candidates([*shared, *own], progress=progress)
        n = len(shared)
        for places, context_vectors, mask in self.context_batches(contexts):
            m = context_vectors.shape[1]
            r = min(max(_PRODUCTS_AT_ONCE // (n * m), 1), len(context_vectors))
            for start in range(0, len(places), r):
                some = places[start : start + r]
                scores = self._score_some(context_vectors, mask, vectors[:n], vectors[n + some], start, r)
                progress(len(some))
                yield some, scores[: len(some), :n], scores[np.arange(len(some)), n + np.arange(len(some))]

    def _score_some(
        self,
        vectors: Float[Array, "b m d"],
        mask: Bool[Array, "b m"],
        shared: np.ndarray,
        own: np.ndarray,
        start: int,
        r: int,
    ) -> np.ndarray:
        """Scores [r, n + r] of r contexts from ``start`` on; their own candidates are the last r."""
        # Own candidates in the same product as the shared ones: equal vectors have equal scores then.
        candidates = np.zeros((len(shared) + r, self.dim), np.float32)
        candidates[: len(shared)] = shared
        candidates[len(shared) : len(shared) + len(own)] = own
        part = np.zeros((r, *vectors.shape[1:]), np.float32)
        real = np.ones((r, vectors.shape[1]), bool)
        part[: len(own)] = np.asarray(vectors[start : start + r])[: len(own)]
        real[: len(own)] = np.asarray(mask[start : start + r])[: len(own)]
        return np.asarray(self._score_shared(self._state, part, real, candidates[None]))

    def _traced_score_shared(
        self,
        state: nnx.State,
        vectors: Float[Array, "b m d"],
        mask: Bool[Array, "b m"],
        candidates: Float[Array, "1 n d"],
    ) -> Float[Array, "b n"]:
        self.compilations += 1
        scorer = nnx.merge(self._graph, state)
        assert isinstance(scorer, DualScorer)
        return scorer.score(vectors, mask, candidates)

    def _score_against(
        self, contexts: Sequence[Sequence[str]], vectors: np.ndarray, index: np.ndarray, progress: Progress
    ) -> np.ndarray:
        """Scores [b, c] of contexts against the vectors [n, d] at the places index [b, c]."""
        b, c = index.shape
        rows = [self.text.context(turns) for turns in contexts]
        scores = np.empty((b, c), np.float32)
        width = _column_bucket(c)
        for places, length in self._batches(rows, self.text.config.context_tokens):
            tokens = self.text.pad([rows[i] for i in places], length=length)
            n = self._row_bucket(len(places), length)
            listed = np.zeros((n, width, vectors.shape[1]), np.float32)
            listed[: len(places), :c] = vectors[index[places]]
            inputs = self._split((_fill_rows(tokens, n), listed))
            batch = np.asarray(self._score_contexts(self._state, *inputs))
            scores[places] = batch[: len(places), :c]
            progress(len(places))
        return scores

    def _score_all_pairs(
        self, contexts: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]], progress: Progress
    ) -> np.ndarray:
        text = self.text
        encoded = [text.context(turns) for turns in contexts]
        answers = [[text.candidate(candidate) for candidate in row] for row in candidates]
        pairs = [
            text.pair(context, answer)
            for context, row in zip(encoded, answers, strict=True)
            for answer in row
        ]
        # The longest context and the longest candidate need not meet in a pair, but ParlAI has room for it.
        longest = max(map(len, encoded)) + max(len(answer) for row in answers for answer in row)
        scores = np.empty(len(pairs), np.float32)
        done = 0
        for places, length in self._batches([ids for ids, _ in pairs], text.config.pair_limit(), longest):
            tokens = text.pad_pairs([pairs[i] for i in places], length=length)
            tokens = self._split(_fill_rows(tokens, self._row_bucket(len(places), length)))
            scores[places] = np.asarray(self._score_pairs(self._state, tokens))[: len(places)]
            finished = len(contexts) * (done + len(places)) // len(pairs)
            progress(finished - len(contexts) * done // len(pairs))
            done += len(places)
        real = _real(candidates)
        table = np.full(real.shape, -np.inf, np.float32)
        table[real] = scores
        return table

    def _batches(
        self, rows: Sequence[Ids], limit: int, longest: int | None = None
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Places and padded length of batches; of one length in all for ``longest``.

        Few are ordered by length, which is that of a bucket; many are mixed, always in the same way.
        """
        config = self.text.config
        if not rows:
            return
        if config.padding == "longest":
            lengths = np.full(len(rows), max(longest or max(map(len, rows)), 1))
        else:
            lengths = np.array([config.bucket(len(row), limit) for row in rows])
            if lengths.sum() >= MANY_BATCHES * self.devices * self._tokens_per_batch:
                batches = list(self._tight_batches(rows, limit))
                # Shortest first, the time left would be told far too short until the end.
                yield from (batches[i] for i in np.random.default_rng(0).permutation(len(batches)))
                return
        for length in map(int, np.unique(lengths)):
            (places,) = np.nonzero(lengths == length)
            size = self._full(length)
            for part in np.array_split(places, math.ceil(len(places) / size)):
                yield part, length

    def _tight_batches(self, rows: Sequence[Ids], limit: int) -> Iterator[tuple[np.ndarray, int]]:
        """Full batches, longest first, each padded little beyond its longest row."""
        counts = np.array([len(row) for row in rows])
        places = np.argsort(-counts, kind="stable")
        while len(places):
            length = min(-(-max(int(counts[places[0]]), 1) // STEP) * STEP, limit)
            size = self._full(length)
            yield places[:size], length
            places = places[size:]
