"""How fast a run trains, and how much of that is waste."""

import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from polyjax.errors import first_line
from polyjax.nn.encoders import EncoderSettings
from polyjax.train.objective import Work

PEAKS: dict[str, tuple[float, float]] = {
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 1.56e12),
    "V100": (125e12, 0.90e12),
    "A10": (125e12, 0.60e12),
    "L4": (121e12, 0.30e12),
    "T4": (65e12, 0.32e12),
}
"""Half-precision operations and bytes of memory a second of some GPUs, from their makers' data sheets (dense;
the SXM form where there are several)."""


def peaks_of(device_kind: str) -> tuple[float, float] | None:
    """The peaks of a device; None where they are not known.

    >>> peaks_of("NVIDIA A100-SXM4-40GB")[0] == 312e12 and peaks_of("cpu") is None
    True
    """
    words = device_kind.replace("-", " ").split()
    return next((peaks for name, peaks in PEAKS.items() if name in words), None)


def model_flops(config: EncoderSettings, lengths: np.ndarray, *, trained_layers: int | None = None) -> float:
    """Operations of the transformer's products in one step, forward and backward, of the real tokens.

    In each layer, per token 6 times the matrices' entries (2 forward, 4 backward), and 12 d times its
    sequence's length for the attention (arXiv 2204.02311, appendix B). Padding does not count.

    Args:
        config: the transformer's shape.
        lengths: real tokens of each sequence, any shape.
        trained_layers: the top ones, through which gradients go; all where None.
    """
    lengths = np.asarray(lengths, np.float64)
    passes = config.n_layers + 2 * (config.n_layers if trained_layers is None else trained_layers)
    matrices = 2 * getattr(config, "layer_weights", 12 * config.dim**2)
    return float(passes * (matrices * lengths.sum() + 4 * config.dim * np.square(lengths).sum()))


class Speed:
    """Counts what is trained between two lines of the log.

    Args:
        encoder: the transformer's shape.
        n_devices: those that share the work.
        batch_size: examples of the whole batch.
        trained_layers: see ``model_flops``.
    """

    def __init__(
        self, encoder: EncoderSettings, *, n_devices: int, batch_size: int, trained_layers: int | None = None
    ):
        self._encoder, self._n_devices, self._batch_size = encoder, n_devices, batch_size
        self._trained_layers = trained_layers
        # The peaks are those of half precision.
        half = encoder.dtype != "float32"
        self._peaks = peaks_of(jax.local_devices()[0].device_kind) if half else None
        self.restart()

    def restart(self) -> None:
        """Begin to count again."""
        self._began = time.monotonic()
        self._steps, self._tokens, self._places, self._flops, self._waiting = 0, 0.0, 0.0, 0.0, 0.0

    def waited(self, seconds: float) -> None:
        """A step waited so long for its batch."""
        self._waiting += seconds

    def add(self, work: Iterable[Work]) -> None:
        """A step's work, of which this process has its part."""
        self._steps += 1
        for part in work:
            self._tokens += int(part.lengths.sum()) / part.share
            self._places += part.places / part.share
            self._flops += (
                model_flops(self._encoder, part.lengths, trained_layers=self._trained_layers) / part.share
            )

    def metrics(self) -> dict[str, float]:
        """Speeds a second of the whole run, the shares of waiting for batches and of padding, and memory.

        ``mfu`` is there where the device's peak for the arithmetic in use is known: the share of it that
        the model's own operations are. ``memory_gib`` is the most that was used: of a device, or of the
        process on a CPU.
        """
        seconds = time.monotonic() - self._began
        found = {
            "step_seconds": seconds / max(self._steps, 1),
            "examples_per_second": self._steps * self._batch_size / seconds,
            "tokens_per_second": self._tokens / seconds,
            "model_flops_per_second": self._flops / seconds,
            "waiting": self._waiting / seconds,
            "padding": 1 - self._tokens / max(self._places, 1),
            "memory_gib": _memory() / 2**30,
        }
        if self._peaks is not None:
            found["mfu"] = self._flops / seconds / (self._peaks[0] * self._n_devices)
        return found


def _memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Profile:
    """A trace of some steps, for TensorBoard, Perfetto or xprof.

    Args:
        steps: first and last step to record, counted from 1; None for no trace.
        folder: where the trace goes.
        out: where it is said that it could not be written.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, out: Console):
        self._steps, self._folder, self._out, self._on = steps, folder, out, False

    def before(self, step: int) -> None:
        """A step is about to be made."""
        if self._steps and not self._on and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._on = True

    def after(self, step: int, result: object) -> None:
        """The step was started, and gives this result."""
        if self._on and self._steps and step >= self._steps[1]:
            self.close(result)

    def close(self, result: object = None) -> None:
        """End a trace that has begun."""
        if self._on:
            self._on = False
            jax.block_until_ready(result)
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # a trace is not worth a run
                self._out.print(f"the trace in {self._folder} could not be written: {first_line(error)}")
