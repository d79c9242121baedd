"""Placement of arrays: a mesh of devices, and the table of which parameter is split along which axes.

The mesh has three axes. The rows of a batch are split over ``data`` and ``fsdp`` together; parameters, with
their gradients and the optimiser's state, over ``fsdp``; large matrices also over ``model``, each along the
axis whose products need no communication (the inner width of a feed-forward layer, the heads).
Modules know nothing of it: XLA derives all communication from the placement of a step's arrays. So the
negatives of a batch are those of the whole batch, however many devices and processes share it. What ``fsdp``
splits is gathered where it is used.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polyjax.errors import InputError, shown
from polyjax.types import Batch, DualInputs

T = TypeVar("T")
P = PartitionSpec
AXES = ("data", "fsdp", "model")
ROWS = P(("data", "fsdp"))
"""The spec of arrays whose first axis is the rows of a batch."""

TABLE: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(embeddings\.(tokens|positions|segments)|relative)", P(None, "fsdp")),
    (r"(qkv|mlp_in|query|key|value|position_query|position_key)\.kernel", P("fsdp", "model")),
    (r"(qkv|mlp_in|query|key|value|position_query|position_key)\.bias", P("model")),
    (r"(out|mlp_out)\.kernel", P("model", "fsdp")),
    (r"project\.kernel", P(None, "fsdp")),
)
"""The first entry that ends a parameter's path says how it is split; others are on all devices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices along each axis of a mesh."""

    data: int
    fsdp: int = 1
    model: int = 1

    @classmethod
    def parse(cls, text: str, n_devices: int) -> "MeshShape":
        """The shape that ``data=4,model=2`` stands for; ``data`` is by default what the other axes leave.

        >>> MeshShape.parse("", 8)
        MeshShape(data=8, fsdp=1, model=1)
        >>> MeshShape.parse("model=2", 8)
        MeshShape(data=4, fsdp=1, model=2)

        Raises:
            InputError: it does not have that form, or does not fit the number of devices.
        """
        sizes: dict[str, int] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, equals, size = part.partition("=")
            if name not in AXES or name in sizes or not equals or not size.isdecimal() or int(size) < 1:
                raise InputError(
                    "mesh",
                    problem=f"{part!r} cannot be parsed",
                    expected=f"AXIS=DEVICES, each axis of {', '.join(AXES)} at most once, as data=4,fsdp=2",
                    got=text,
                )
            sizes[name] = int(size)
        rest = math.prod(size for name, size in sizes.items() if name != "data")
        if "data" not in sizes and rest < n_devices and n_devices % rest:
            raise InputError(
                "mesh",
                expected=f"axes whose product divides the {n_devices} devices",
                got=text,
                fix="add data=N to use fewer devices",
            )
        shape = cls(**{"data": max(n_devices // rest, 1), **sizes})
        if shape.size > n_devices:
            raise InputError("mesh", expected=f"at most {n_devices} devices", got=text)
        return shape

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.model

    def __str__(self) -> str:
        """In the form of ``parse``, without axes of one device."""
        sizes = {name: getattr(self, name) for name in AXES}
        return ",".join(f"{name}={n}" for name, n in sizes.items() if n > 1 or name == "data")


def make_mesh(text: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a shape in words, see ``MeshShape.parse``; all devices on ``data`` by default.

    Args:
        text: such as ``data=4,fsdp=2``.
        devices: all of all processes by default.

    Raises:
        InputError: it does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = MeshShape.parse(text, len(devices))
    if shape.size < len(devices) and jax.process_count() > 1:
        n = f"{len(devices)} devices of {jax.process_count()} processes"
        raise InputError("mesh", expected=f"all {n}, not {shape.size} of them", got=text)
    sizes = tuple(getattr(shape, name) for name in AXES)
    # Auto: XLA chooses the sharding of a step's intermediate arrays.
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices[: shape.size])


def mesh_shape(mesh: Mesh) -> MeshShape:
    """The shape of a mesh that ``make_mesh`` made."""
    return MeshShape(**mesh.shape)


def one_device() -> Mesh:
    """A mesh of a single device of this process."""
    return make_mesh("", jax.local_devices()[:1])


def row_devices(mesh: Mesh) -> int:
    """The number of parts into which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def spec_of(path: str) -> PartitionSpec:
    """How a parameter, or an optimiser's state of it, is split.

    Args:
        path: dotted; for example ``context_encoder.blocks.0.mlp_in.kernel``.
    """
    return next((spec for pattern, spec in TABLE if re.search(rf"(^|\.){pattern}$", path)), P())


def path_name(path: tuple) -> str:
    """A path of jax's trees as dotted words."""
    return ".".join(re.findall(r"\w+", jax.tree_util.keystr(path))).removesuffix(".value")


def shardings_of(tree: T, mesh: Mesh, *, optional: bool = False) -> T:
    """The sharding of each array of a state, by its path.

    Args:
        tree: of arrays or their shapes.
        mesh: the devices.
        optional: do not split an array whose axis cannot be split: an optimiser may keep arrays of any shape
            under a parameter's name.

    Raises:
        InputError: an axis of a parameter cannot be split over so many devices.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = spec_of(name)
        if leaf.ndim < len(spec):  # an optimiser's state of a parameter may have fewer axes
            return NamedSharding(mesh, P())
        for length, axis in zip(leaf.shape, spec, strict=False):
            if axis is None or not length % mesh.shape[axis]:
                continue
            if optional:
                return NamedSharding(mesh, P())
            raise InputError(
                "mesh",
                expected=f"a divisor of {length} for {axis}, which splits {name} of shape {leaf.shape}",
                got=shown(f"{axis}={mesh.shape[axis]}"),
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def used(shardings: T) -> T:
    """The shardings of parameters in use: ``fsdp`` splits them only in storage."""

    def whole(sharding: NamedSharding) -> NamedSharding:
        axes = (None if axis == "fsdp" else axis for axis in sharding.spec)
        return NamedSharding(sharding.mesh, P(*axes))

    return jax.tree.map(whole, shardings)


def placed(tree: T, shardings: T) -> T:
    """Arrays moved to their placement, in memory of their own.

    Each must be the same in every process, or already be on the devices of the mesh.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding, may_alias=False)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    leaves, structure = jax.tree.flatten(tree)
    targets = structure.flatten_up_to(shardings)
    shared = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    }
    if shared:
        # One program for all communication between processes: of several that run at once, each process may
        # start another one first, and wait for ever.
        move = jax.jit(_copies, out_shardings=tuple(targets[i] for i in shared))
        shared = dict(zip(shared, move(tuple(shared.values())), strict=True))
    found = [
        shared[i] if i in shared else put(leaf, target)
        for i, (leaf, target) in enumerate(zip(leaves, targets, strict=True))
    ]
    return jax.tree.unflatten(structure, found)


def _copies(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.copy(array) for array in arrays)


def placed_shapes(tree: T, shardings: T) -> T:
    """The shapes of arrays, with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of replicated arrays."""
    return NamedSharding(mesh, P())


def placed_rows(mesh: Mesh, tree: T, n: int) -> T:
    """Arrays of n rows on the devices that share them; each process passes its own rows."""
    rows = NamedSharding(mesh, ROWS)

    def one(local: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(rows, local, (n, *local.shape[1:]))

    return jax.tree.map(one, tree)


def own_rows(mesh: Mesh, n: int) -> np.ndarray:
    """The rows, of n, that this process's devices hold, int [p]."""
    indices = NamedSharding(mesh, ROWS).addressable_devices_indices_map((n,))
    return np.unique(np.concatenate([np.arange(n)[part] for part in indices.values()]))


class BatchPlacer:
    """Moves batches to a mesh; each process moves its own rows.

    Args:
        mesh: the devices.
        batch_size: contexts of a batch.

    Raises:
        InputError: the batch cannot be split evenly.

    Attributes:
        rows: the rows of a batch that this process must load, int [n].
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        parts = row_devices(mesh)
        if batch_size % parts:
            raise InputError(
                "batch.batch_size",
                expected=f"a multiple of {parts}, the devices of the mesh's data and fsdp axes that share it",
                got=batch_size,
                fix="change it or `mesh`",
            )
        self._mesh, self._batch_size = mesh, batch_size
        self.rows = own_rows(mesh, batch_size)

    def __call__(self, batch: Batch) -> Batch:
        """The global batch; ``batch`` has this process's rows."""
        inputs = batch.inputs
        if isinstance(inputs, DualInputs):
            shared = inputs.shared
            if shared is not None:
                shared = self._rows(shared) if shared.of_rows else self._whole(shared)
            inputs = DualInputs(self._rows(inputs.context), shared, self._rows(inputs.listed))
        else:
            inputs = self._rows(inputs)
        return Batch(inputs, self._rows(batch.label), self._rows(batch.where), self._rows(batch.teacher))

    def _rows(self, tree: T) -> T:
        """Arrays of the batch's rows; each process passes its own."""
        return placed_rows(self._mesh, tree, self._batch_size)

    def _whole(self, tree: T) -> T:
        """Arrays that are the same in every process, on all devices."""
        whole = everywhere(self._mesh)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, x, x.shape), tree)
