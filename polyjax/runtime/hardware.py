"""What the processor can do."""

import functools
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names by which Linux knows them, of x86 and of ARM."""


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself, at twice the rate of float32 and more.

    Those without (most desktops: what has AVX2 only) need them as float32 first. False where Linux does not
    tell, as on other systems.
    """
    try:
        described = CPUINFO.read_text()
    except OSError:
        return False
    return bool(BFLOAT16_UNITS & set(described.split()))
