"""Trees of arrays on disk. The only module that imports orbax, so that a process without a run need not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from polyjax.runs.quiet import ArrayError, attempt, quiet

with quiet():  # absl logs already while orbax is imported
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy

BEST_BY = "best_by"
PROGRESS = "progress"


class ArrayStore:
    """Steps of a folder, of which the latest two and the best are kept.

    Args:
        folder: absolute.
        trees: names of the trees of arrays that a step may have.
        read_only: open to restore only; nothing is created or cleaned.
    """

    def __init__(self, folder: Path, *, trees: tuple[str, ...], read_only: bool):
        keep = [
            preservation_policy.LatestN(2),  # in case the last one is damaged
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[BEST_BY], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        with quiet():  # options warn too
            options = ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[BEST_BY],
                best_mode="max",
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                read_only=read_only,
                create=not read_only,
                # Donated buffers may be reused while an asynchronous save still reads them.
                enable_async_checkpointing=False,
            )
            self._manager = ocp.CheckpointManager(folder, options=options, item_names=(*trees, PROGRESS))

    @property
    def steps(self) -> list[int]:
        """All saved steps, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the largest ``best_by``; the last one where none has it."""
        best = self._manager.best_step()
        return self._manager.latest_step() if best is None else best

    def reload(self) -> None:
        """Read the list of saved steps again."""
        with quiet():
            self._manager.reload()

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        *,
        progress: dict[str, Any] | None = None,
        best_by: float | None = None,
    ) -> None:
        """Save trees of arrays, and plain data, as a step.

        Raises:
            ArrayError: they cannot be written.
        """
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardSave(_one_copy(tree)) for name, tree in trees.items()
        }
        if progress is not None:
            items[PROGRESS] = ocp.args.JsonSave(progress)
        metrics = None if best_by is None else {BEST_BY: float(best_by)}
        attempt(lambda: self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics))

    def restore(self, step: int, like: Mapping[str, Any], *, progress: bool = False) -> dict[str, Any]:
        """Trees of a step, and its plain data as ``progress`` if requested.

        Args:
            step: a saved one.
            like: trees of the same shapes, whose placement the restored arrays get.
            progress: whether to read it.

        Raises:
            ArrayError: one of them was not saved, is damaged, or has other shapes.
        """
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in like.items()
        }
        if progress:
            items[PROGRESS] = ocp.args.JsonRestore()
        restored = attempt(lambda: self._manager.restore(step, args=ocp.args.Composite(**items)))
        if missing := [name for name in items if restored[name] is None]:
            raise ArrayError(f"{missing[0]} is missing")
        return {name: restored[name] for name in items}


def _one_copy(tree: Any) -> Any:
    """Replicated arrays as those of one device, if one process has all devices.

    Orbax would cut each such array into a slice for each device. That saves several hosts some writing, but a
    single host nothing.
    """
    if jax.process_count() > 1:
        return tree
    return jax.tree.map(
        lambda x: x.addressable_data(0) if getattr(x, "is_fully_replicated", False) else x, tree
    )


def _abstract(tree: Any) -> Any:
    """Shapes, and where the arrays are or belong; by default on one device of this process."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
        tree,
    )
