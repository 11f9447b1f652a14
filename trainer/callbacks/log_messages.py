"""Passes messages for the user on to Python's logging, for programs that show no console."""

import logging

from convoy.core.finding import Finding, Severity
from convoy.trainer.callbacks.callback import Callback, Training

_logger = logging.getLogger("convoy")


class LogMessages(Callback):
    """Logs each message to the logger `convoy`: findings that need attention as warnings, the others as information."""

    def on_message(self, training: Training, message: str | Finding) -> None:
        """Logs a message."""
        if isinstance(message, str):
            _logger.log(logging.WARNING if message.startswith("Warning:") else logging.INFO, "%s", message)
        else:
            needs_attention = message.severity not in (Severity.NOTE, Severity.OK)
            level = logging.WARNING if needs_attention else logging.INFO
            _logger.log(level, "%s", f"{message.text} {message.fix}".rstrip())
