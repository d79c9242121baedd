"""Training speed: throughput, waiting, padding, share of the device's peak; and profiling."""

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
"""Peak half-precision operations per second and memory bytes per second of GPUs, from their data sheets
(dense; the SXM variant if there are several)."""


def peaks_of(device_kind: str) -> tuple[float, float] | None:
    """The peaks of a device, see ``PEAKS``; None if they are not known.

    >>> peaks_of("NVIDIA A100-SXM4-40GB")[0] == 312e12 and peaks_of("cpu") is None
    True
    """
    words = device_kind.replace("-", " ").split()
    return next((peaks for name, peaks in PEAKS.items() if name in words), None)


def model_flops(config: EncoderSettings, lengths: np.ndarray, *, trained_layers: int | None = None) -> float:
    """Floating-point operations of the transformer's matrix products in one step, forward and backward.

    Each layer counts, per real token, 6 operations per weight (2 forward, 4 backward), and 12 d times the
    length of the sequence for the attention (arXiv 2204.02311, appendix B). Padding does not count.

    Args:
        config: settings of the transformer.
        lengths: number of real tokens of each sequence, any shape.
        trained_layers: number of top layers with a backward pass; None for all.
    """
    lengths = np.asarray(lengths, np.float64)
    passes = config.n_layers + 2 * (config.n_layers if trained_layers is None else trained_layers)
    matrices = 2 * getattr(config, "layer_weights", 12 * config.dim**2)
    return float(passes * (matrices * lengths.sum() + 4 * config.dim * np.square(lengths).sum()))


class Speed:
    """Measures the speed of training between two log lines.

    Args:
        encoder: settings of the transformer.
        n_devices: number of devices that share the work.
        batch_size: examples in the global batch.
        trained_layers: see ``model_flops``.
    """

    def __init__(
        self, encoder: EncoderSettings, *, n_devices: int, batch_size: int, trained_layers: int | None = None
    ):
        self._encoder, self._n_devices, self._batch_size = encoder, n_devices, batch_size
        self._trained_layers = trained_layers
        # PEAKS are for half precision.
        half = encoder.dtype != "float32"
        self._peaks = peaks_of(jax.local_devices()[0].device_kind) if half else None
        self.restart()

    def restart(self) -> None:
        """Set all counts to zero and restart the clock."""
        self._began = time.monotonic()
        self._steps, self._tokens, self._places, self._flops, self._waiting = 0, 0.0, 0.0, 0.0, 0.0

    def waited(self, seconds: float) -> None:
        """Add the time that a step waited for its batch, in seconds."""
        self._waiting += seconds

    def add(self, work: Iterable[Work]) -> None:
        """Add this process's part of the work of a step."""
        self._steps += 1
        for part in work:
            self._tokens += int(part.lengths.sum()) / part.share
            self._places += part.places / part.share
            self._flops += (
                model_flops(self._encoder, part.lengths, trained_layers=self._trained_layers) / part.share
            )

    def metrics(self) -> dict[str, float]:
        """Metrics since the last ``restart``, over all processes.

        Throughput is per second; ``waiting`` (for batches) and ``padding`` are shares. ``mfu`` is the share
        of the devices' peak that the model's operations use, in half precision on devices with known peaks.
        ``memory_gib`` is the peak memory: of one device, or on a CPU of the process.
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
    """Records a trace of some steps, for TensorBoard, Perfetto or xprof.

    Args:
        steps: first and last step to record, from 1; None for no trace.
        folder: the trace is written there.
        out: prints a message if the trace could not be written.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, out: Console):
        self._steps, self._folder, self._out, self._on = steps, folder, out, False

    def before(self, step: int) -> None:
        """Call it before a step: starts the trace at the first step to record."""
        if self._steps and not self._on and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._on = True

    def after(self, step: int, result: object) -> None:
        """Call it after a step, with its result: ends the trace at the last step to record."""
        if self._on and self._steps and step >= self._steps[1]:
            self.close(result)

    def close(self, result: object = None) -> None:
        """End the trace, if it has started, once ``result`` is computed."""
        if self._on:
            self._on = False
            jax.block_until_ready(result)
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # a failed trace must not end the run
                self._out.print(f"the trace in {self._folder} could not be written: {first_line(error)}")
