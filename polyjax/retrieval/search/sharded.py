"""The exact scan of an index that is split over the devices of a mesh, and over processes.

Each device holds a range of the index's rows and finds its own k best; these are gathered on all devices and
merged. A process reads only the rows of its own devices. With several processes (``jax.distributed``), each
must create the scan and call it with the same contexts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from polyjax.inference.programs import Program
from polyjax.nn.heads import DualHead
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.blocks import Block, power_of_two
from polyjax.retrieval.search.programs import merge_block, nothing_found
from polyjax.retrieval.search.scan import BLOCK_ROWS
from polyjax.types import AnyArray


class ShardedScan:
    """Exact search of an index over all devices of a mesh; the results are those of ``Scan``.

    Args:
        head: head of the scorer that the index was built with.
        index: the candidates.
        mesh: the devices that share the rows, whatever the mesh's axes.
        rows: number of rows in a block.
    """

    def __init__(self, head: DualHead, index: CandidateIndex, mesh: Mesh, *, rows: int = BLOCK_ROWS):
        self.index = index
        graph, self._head = nnx.split(head)
        each = -(-index.rows // mesh.size)
        block_rows = min(rows, power_of_two(each))
        shape = (mesh.size, -(-each // block_rows), block_rows)
        self._blocks = self._placed(mesh, shape)
        axes = mesh.axis_names

        def search(
            head: nnx.State,
            vectors: Float[AnyArray, "b m d"],
            mask: Bool[AnyArray, "b m"],
            blocks: Block,
            k: int,
        ) -> tuple[Array, Array]:
            def local(
                head: nnx.State, vectors: AnyArray, mask: AnyArray, blocks: Block
            ) -> tuple[Array, Array]:
                def step(best: tuple[Array, Array], block: Block) -> tuple[tuple[Array, Array], None]:
                    return merge_block(graph, head, vectors, mask, *best, block), None

                # Values that differ between the devices must be marked as varying.
                nothing = nothing_found(len(vectors), k)
                start = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), nothing)
                own, _ = jax.lax.scan(step, start, jax.tree.map(lambda x: x[0], blocks))
                # Rows ascend over the devices, and top_k is stable, so ties have the order of a single scan.
                scores, found = (jnp.concatenate(jax.lax.all_gather(x, axes), axis=1) for x in own)
                merged, chosen = jax.lax.top_k(scores, k)
                return merged, jnp.take_along_axis(found, chosen, axis=1)

            split = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(P(), P(), P(), P(axes)),
                out_specs=P(),
                check_vma=False,  # jax cannot infer that all devices merge the same lists
            )
            return split(head, vectors, mask, blocks)

        self._search = Program(search, static_argnums=4)

    @property
    def compilations(self) -> int:
        """Number of programs compiled so far."""
        return self._search.compilations

    def __call__(
        self, vectors: Float[AnyArray, "b m d"], mask: Bool[AnyArray, "b m"], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the k best candidates of each context, [b, k] each; see ``Scan``."""
        # Numpy arrays count as the same value on all devices of all processes.
        head = jax.tree.map(np.asarray, self._head)
        with self._search.once(vectors.shape, k) as search:
            scores, rows = search(head, np.asarray(vectors), np.asarray(mask), self._blocks, k)
        return np.asarray(scores), np.asarray(rows)

    def _placed(self, mesh: Mesh, shape: tuple[int, int, int]) -> Block:
        """All blocks [devices, blocks, rows, ...]; each device's part is read from the index."""
        index = self.index
        live = index.live_rows
        _, n_blocks, rows = shape
        each = n_blocks * rows
        first = index.segments[0]

        def stored(start: int) -> tuple[np.ndarray, np.ndarray | None]:
            return index.stored(np.arange(start, max(min(start + each, index.rows), start)))

        def place(read: Callable[[int], np.ndarray], tail: tuple[int, ...], dtype: np.dtype) -> Array:
            def part(where: tuple[slice, ...] | None) -> np.ndarray:
                whole = np.zeros((each, *tail), dtype)
                given = read(((where[0].start or 0) if where else 0) * each)
                whole[: len(given)] = given
                return whole.reshape(1, n_blocks, rows, *tail)

            sharding = NamedSharding(mesh, P(mesh.axis_names))
            return jax.make_array_from_callback((*shape, *tail), sharding, part)

        starts = np.arange(shape[0] * n_blocks, dtype=np.int32).reshape(shape[:2]) * rows
        sharding = NamedSharding(mesh, P(mesh.axis_names))
        return Block(
            jax.make_array_from_callback(starts.shape, sharding, lambda where: starts[where]),
            place(lambda start: stored(start)[0], first.vectors.shape[1:], first.vectors.dtype),
            None
            if first.scales is None
            else place(lambda start: _given(stored(start)[1]), (), np.dtype(np.float32)),
            place(lambda start: np.zeros(0, np.float32), (), np.dtype(np.float32)),
            place(lambda start: live[start : start + each], (), np.dtype(bool)),
        )


def _given(scales: np.ndarray | None) -> np.ndarray:
    assert scales is not None
    return scales
