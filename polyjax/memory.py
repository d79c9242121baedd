"""Memory of a process that computes on CPUs."""

import ctypes
import functools
import sys

# glibc's names for mallopt's parameters (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep the memory it frees instead of handing it back to the system.

    XLA allocates a step's temporary arrays, a gigabyte for a MiniLM training step of 32 contexts, and
    frees them at its end. glibc returns such blocks to the system at once, so that each step faults
    every page in again: 260,000 faults, a third of the step's time (benchmarks/page_faults.py).
    The price is memory: blocks of different sizes leave gaps, and the peak can be twice as high.

    Called by the commands, not at import: it concerns the whole process. Call it before the first
    computation.

    Returns:
        Whether the C library took the settings; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One arena: a thread's own would not be grown by the large blocks, which would be mapped after all.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
