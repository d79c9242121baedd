"""The process: files and locks, progress, memory, hardware, compilation. Imports errors only.

Only commands change the process: ``enable_compilation_cache``, ``restart_with_huge_pages``.
"""

from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.files import (
    PARTIAL,
    copy_file,
    exclusive_lock,
    new_folder,
    save_array,
    write_bytes,
    write_text,
)
from polyjax.runtime.forks import refuse_forked
from polyjax.runtime.hardware import cpu_has_bfloat16
from polyjax.runtime.journal import Journal
from polyjax.runtime.memory import keep_freed_blocks, restart_with_huge_pages
from polyjax.runtime.progress import Meter, Screen, console, errors, hushed, meter, watched_by

__all__ = [
    "PARTIAL",
    "Journal",
    "Meter",
    "Screen",
    "console",
    "copy_file",
    "cpu_has_bfloat16",
    "enable_compilation_cache",
    "errors",
    "exclusive_lock",
    "hushed",
    "keep_freed_blocks",
    "meter",
    "new_folder",
    "refuse_forked",
    "restart_with_huge_pages",
    "save_array",
    "watched_by",
    "write_bytes",
    "write_text",
]
