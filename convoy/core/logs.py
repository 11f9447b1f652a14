"""Logging: library code logs to `logging.getLogger("convoy")`; commands print that to standard error."""

import logging
import sys


class _StandardError(logging.Handler):
    """Writes to the current `sys.stderr`, which a caller may have redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        if sys.stderr:
            level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
            print(f"convoy: {level}{record.getMessage()}", file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Prints what Convoy's logger gets, from INFO on, to standard error. Further calls have no effect."""
    logger = logging.getLogger("convoy")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
        logger.setLevel(logging.INFO)
        logger.propagate = False
