"""Logging: library code logs to `logging.getLogger("convoy")`; commands print that to standard error."""

import logging
import sys


class _StandardError(logging.Handler):
    """Writes to the current `sys.stderr`, which a caller may have redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        if sys.stderr:
            print(f"convoy: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def log_to_stderr() -> None:
    """Prints warnings and errors of Convoy's logger to standard error. Further calls have no effect."""
    logger = logging.getLogger("convoy")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
        logger.propagate = False
