"""Devices: a mesh, the placement of arrays on it, and several processes as one run."""

from polyjax.mesh.placement import (
    ROWS,
    BatchPlacer,
    MeshShape,
    everywhere,
    make_mesh,
    mesh_shape,
    one_device,
    own_rows,
    placed,
    placed_rows,
    row_devices,
    shardings_of,
    used,
)
from polyjax.mesh.processes import (
    agreed,
    connect,
    is_primary,
    leaving_at_once,
    losses_named,
    primary_first,
    wait,
)

__all__ = [
    "ROWS",
    "BatchPlacer",
    "MeshShape",
    "agreed",
    "connect",
    "everywhere",
    "is_primary",
    "leaving_at_once",
    "losses_named",
    "make_mesh",
    "mesh_shape",
    "one_device",
    "own_rows",
    "placed",
    "placed_rows",
    "primary_first",
    "row_devices",
    "shardings_of",
    "used",
    "wait",
]
