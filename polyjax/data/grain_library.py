"""grain, whose import leaves the user's logging as it was: it imports orbax, which logs."""

from polyjax.runtime.logs import root_logger_kept

with root_logger_kept():
    import grain as grain

__all__ = ["grain"]
