"""The persistent compilation cache: programs are compiled once per machine, not once per process."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, unless the user has chosen a folder or switched the cache off.

    For commands only, because it changes jax's settings for the process, which belong to the library's users.
    jax's own variables take precedence: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE.
    """
    # jax adds its options to Config at run time, where type checkers do not see them.
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        try:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # a user without a home, as in a container
            return
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "polyjax" / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A process compiles a hundred small programs besides its few large ones: seconds in all.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
