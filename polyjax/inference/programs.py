"""The compiled programs of a scorer: tokens in, vectors and scores out, one program per shape."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from polyjax.mesh.placement import ROWS, everywhere, placed, row_devices, shardings_of, used
from polyjax.nn.encoders import Dtype
from polyjax.nn.heads import DualHead
from polyjax.nn.scorers import CrossScorer, DualScorer, Scorer
from polyjax.runtime.forks import refuse_forked
from polyjax.types import AnyArray, Tokens

T = TypeVar("T")


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
        """The function for calls with a shape; one thread at a time while the shape is new.

        Args:
            shape: everything that the calls' program depends on.

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


class Compiled:
    """A scorer's parameters on their devices, and its programs. Threads may share one.

    Args:
        scorer: bi-, poly- or cross-encoder, or one with a custom head.
        mesh: devices that share the rows of a batch; one device if None.

    Attributes:
        settings: the scorer's configuration.
        devices: devices that share the rows of a batch.

    Raises:
        InputError: the process was forked from one that had started jax.
    """

    def __init__(self, scorer: Scorer, *, mesh: Mesh | None = None):
        refuse_forked()
        self.settings = scorer.settings
        self.devices = 1 if mesh is None else row_devices(mesh)
        self._mesh, self._digest = mesh, ""
        self._graph, self._state = nnx.split(for_inference(scorer))
        self._shardings: nnx.State | None = None
        if mesh is not None:
            self._shardings = used(shardings_of(self._state, mesh))
            self._state = placed(self._state, self._shardings)
        # Every process needs all results.
        out = None if mesh is None else everywhere(mesh)

        def program(function: Callable[..., Any]) -> Program:
            def run(state: nnx.State, *arguments: Any) -> Any:
                return function(nnx.merge(self._graph, state), *arguments)

            return Program(run, out_shardings=out)

        self._candidates = program(DualScorer.encode_candidates)
        self._contexts = program(DualScorer.encode_context)
        self._scores = program(DualScorer.score)
        self._pairs = program(CrossScorer.score_pairs)
        self._others: dict[Callable[..., Any], Program] = {}
        self._program = program

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far."""
        programs = (self._candidates, self._contexts, self._scores, self._pairs, *self._others.values())
        return sum(program.compilations for program in programs)

    @property
    def head(self) -> DualHead:
        """The scoring head, with its parameters, of a scorer that encodes candidates separately."""
        return cast(DualHead, nnx.merge(self._graph, self._state).head)

    def update(self, scorer: Scorer) -> None:
        """Use the parameters of another scorer of the same shape; nothing is compiled again."""
        state = nnx.state(for_inference(scorer))
        self._state = state if self._shardings is None else placed(state, self._shardings)
        self._digest = ""

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters as they are used, by dotted path."""
        flat = nnx.to_flat_state(self._state)
        return {".".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in flat}

    def digest(self) -> str:
        """A sha256 of the parameters as they are used; computed once."""
        if not self._digest:
            digest = hashlib.sha256()
            for name, value in sorted(self.parameters().items()):
                digest.update(name.encode() + str(value.dtype).encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            self._digest = digest.hexdigest()
        return self._digest

    def split(self, rows: T) -> T:
        """Arrays whose rows are split over the devices."""
        return rows if self._mesh is None else jax.device_put(rows, NamedSharding(self._mesh, ROWS))

    def candidates(self, tokens: Tokens) -> Float[Array, "n d"]:
        """Candidates, Tokens [n, t] -> their vectors."""
        with self._candidates.once(tokens.ids.shape) as run:
            return run(self._state, tokens)

    def contexts(self, tokens: Tokens) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        """Contexts, Tokens [b, t] -> their vectors, and which of them are real."""
        with self._contexts.once(tokens.ids.shape) as run:
            return run(self._state, tokens)

    def scores(
        self,
        vectors: Float[AnyArray, "b m d"],
        mask: Bool[AnyArray, "b m"],
        candidates: Float[AnyArray, "#b c d"],
    ) -> Float[Array, "b c"]:
        """Context vectors against candidate vectors, one set for all contexts or one each -> scores."""
        with self._scores.once(vectors.shape, candidates.shape) as run:
            return run(self._state, vectors, mask, candidates)

    def run(self, function: Callable[..., Any], tokens: Tokens) -> Any:
        """Another function of the scorer and a padded batch; the function must be a module's own."""
        program = self._others.setdefault(function, self._program(function))
        with program.once(tokens.ids.shape) as run:
            return run(self._state, tokens)

    def pairs(self, tokens: Tokens) -> Float[Array, " n"]:
        """Pairs, Tokens [n, t] -> their scores."""
        with self._pairs.once(tokens.ids.shape) as run:
            return run(self._state, tokens)


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
