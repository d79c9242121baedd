"""What the processor can do."""

import functools
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Their names in Linux, of x86 and of ARM."""


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 units, which multiply at twice the rate of float32 or more.

    CPUs without such units (those with AVX2 only, as most desktops) widen the numbers to float32 first. False
    if Linux does not say, and on other systems.
    """
    try:
        described = CPUINFO.read_text()
    except OSError:
        return False
    return bool(BFLOAT16_UNITS & set(described.split()))
