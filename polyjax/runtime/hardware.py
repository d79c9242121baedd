"""What the processor can do."""

import functools
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Their names in Linux, of x86 and of ARM."""


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself, at twice the rate of float32 and more.

    CPUs without such units (most desktops: those with AVX2 only) have to widen them to float32 first. False
    where Linux does not say, as on other systems.
    """
    try:
        described = CPUINFO.read_text()
    except OSError:
        return False
    return bool(BFLOAT16_UNITS & set(described.split()))
