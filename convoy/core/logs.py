"""Logging: library code logs to `logging.getLogger("convoy")`, commands show it on standard error."""

import logging
import sys


class _StandardError(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time, which a caller may have redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        if sys.stderr:
            print(f"convoy: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def log_to_stderr() -> None:
    """Shows the warnings and errors of Convoy's logger on standard error; only the first call changes anything."""
    logger = logging.getLogger("convoy")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
        logger.propagate = False
