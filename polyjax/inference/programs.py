"""The compiled programs of a scorer: tokens in, vectors and scores out, one program a shape."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float

from polyjax.inference.forks import refuse_forked
from polyjax.nn.encoders import Dtype
from polyjax.nn.scorers import CrossScorer, DualScorer, Scorer
from polyjax.types import AnyArray, Tokens


class Program:
    """A jitted function that threads may share: they compile each shape once.

    Args:
        function: of arrays.
        options: of ``jax.jit``.

    Attributes:
        jitted: the function.
        compilations: shapes compiled so far.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self.compilations = 0
        self._known: set[Hashable] = set()
        self._lock = threading.Lock()

        def traced(*arguments: Any) -> Any:
            self.compilations += 1  # runs when a new shape is traced only
            return function(*arguments)

        self.jitted = jax.jit(traced, **options)

    @contextlib.contextmanager
    def once(self, *shape: Hashable) -> Iterator[Callable[..., Any]]:
        """The function, for calls with a shape; while that is new, for one thread at a time.

        Args:
            shape: all that the calls' programs depend on.

        Raises:
            InputError: the process was forked from one that had started jax.
        """
        refuse_forked()
        if shape in self._known:
            yield self.jitted
            return
        with self._lock:
            yield self.jitted
            self._known.add(shape)


class Programs:
    """What is computed with a scorer.

    Args:
        graph: the scorer without its parameters.
        out: where results are needed; where they are computed if None.
    """

    def __init__(self, graph: nnx.GraphDef[Any], *, out: NamedSharding | None):
        def program(function: Callable[..., Any]) -> Program:
            return Program(
                lambda state, *arguments: function(nnx.merge(graph, state), *arguments), out_shardings=out
            )

        self._candidates = program(DualScorer.encode_candidates)
        self._contexts = program(DualScorer.encode_context)
        self._scores = program(DualScorer.score)
        self._pairs = program(CrossScorer.score_pairs)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(program.compilations for program in vars(self).values())

    def encode_candidates(self, state: nnx.State, tokens: Tokens) -> Float[Array, "n d"]:
        """Candidates, Tokens [n, t] -> their vectors."""
        with self._candidates.once(tokens.ids.shape) as run:
            return run(state, tokens)

    def encode_contexts(
        self, state: nnx.State, tokens: Tokens
    ) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        """Contexts, Tokens [b, t] -> their vectors, and which of them are real."""
        with self._contexts.once(tokens.ids.shape) as run:
            return run(state, tokens)

    def score(
        self,
        state: nnx.State,
        vectors: Float[AnyArray, "b m d"],
        mask: Bool[AnyArray, "b m"],
        candidates: Float[AnyArray, "#b c d"],
    ) -> Float[Array, "b c"]:
        """Context vectors against candidate vectors, one set for all contexts or one each -> scores."""
        with self._scores.once(vectors.shape, candidates.shape) as run:
            return run(state, vectors, mask, candidates)

    def score_pairs(self, state: nnx.State, tokens: Tokens) -> Float[Array, " n"]:
        """Pairs, Tokens [n, t] -> their scores."""
        with self._pairs.once(tokens.ids.shape) as run:
            return run(state, tokens)


def for_inference(scorer: Scorer) -> Scorer:
    """The scorer with its encoders' matrices in the compute dtype, so that no call casts them again."""
    graph, state = nnx.split(scorer)
    dtype = scorer.settings.encoder.dtype
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    values = [leaf for _, leaf in leaves]
    chosen = [
        place
        for place, (path, leaf) in enumerate(leaves)
        if leaf.ndim >= 2 and leaf.dtype != dtype and not jax.tree_util.keystr(path).startswith("['head']")
    ]
    for place, value in zip(chosen, _cast([values[i] for i in chosen], dtype), strict=True):
        values[place] = value
    return nnx.merge(graph, jax.tree.unflatten(tree, values))


@partial(jax.jit, static_argnums=1)
def _cast(arrays: list[Array], dtype: Dtype) -> list[Array]:
    """One program instead of one for each shape."""
    return [array.astype(dtype) for array in arrays]
