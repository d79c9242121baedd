"""TensorBoard event files of a run."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyjax.errors import InputError
from polyjax.mesh.processes import is_primary


@contextlib.contextmanager
def tensorboard_log(folder: Path, *, wanted: bool) -> Iterator[Callable[[int, str, dict[str, Any]], None]]:
    """A callback that writes log lines to event files in the run directory; it does nothing if not wanted.

    Raises:
        InputError: tensorboardX is not installed.
    """
    if not (wanted and is_primary()):
        yield lambda step, kind, metrics: None
        return
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]  # an optional extra
    except ModuleNotFoundError:
        raise InputError(
            "tensorboard", problem="needs the package tensorboardX", fix="run: pip install tensorboardX"
        ) from None
    with contextlib.ExitStack() as closing:
        writers: list[Any] = []

        def log(step: int, kind: str, metrics: dict[str, Any]) -> None:
            if not writers:
                # After resuming, steps since the checkpoint are made again: drop what was written for them.
                writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
                writers.append(closing.enter_context(writer))
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    writers[0].add_scalar(f"{kind}/{name}", value, step)

        yield log
