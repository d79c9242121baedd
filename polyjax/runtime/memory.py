"""Memory of a process that computes on CPUs."""

import os
import platform
import sys
from pathlib import Path

import numpy as np

TUNABLE = "glibc.malloc.hugetlb=1"
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Start this process again with huge pages for large blocks, if the system gives them on request.

    XLA allocates a step's temporary arrays (a gigabyte for a MiniLM training step of 32 contexts) and frees
    them at its end. The C library returns such blocks to the system, so that each step faults every page in
    again: 260,000 faults, more than a quarter of the step's time (benchmarks/page_faults.py). With huge pages
    there are a few hundred. glibc reads that setting from the environment when a process starts. Keeping
    freed memory instead (mallopt) was as fast, and needed four times the memory.

    For commands only, as their first act: what ran before runs again. No effect if the system has no such
    setting or the user has set GLIBC_TUNABLES.
    """
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not sys.platform.startswith("linux") or name != "glibc" or numbers < (2, 35):
        return
    if "GLIBC_TUNABLES" in os.environ or not THP.exists() or "[madvise]" not in THP.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLE
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_freed_blocks() -> None:
    """Let the C library keep freed blocks of up to 32 MB for the next call, instead of returning them.

    A search's programs take temporary arrays of some megabytes and free them a millisecond later. glibc maps
    a block above 128 KiB anew each time, and the system faults its pages in: half the time of a certified
    search. Once it has freed a mapped block of a size, it serves that size from memory that it keeps; the
    block need not be written to. No effect without glibc.
    """
    np.empty(2**25 - 2**16, np.uint8)  # freed at once; the largest size for which glibc does it is 32 MiB
