"""Uploads a run to its backup in a background thread, so that steps never wait for the store."""

import logging
import threading

from convoy.core.errors import ConvoyError
from convoy.trainer.callbacks.callback import Callback, Checkpoint, Training
from convoy.trainer.run.backup import Backup, describe

_RETRY_SECONDS = 60.0  # after a failed upload, besides the next checkpoint

_logger = logging.getLogger("convoy")


class BackupWriter(Callback):
    """Writer of `--backup`. A store that fails costs one warning; the upload is tried again."""

    def __init__(self, backup: Backup):
        """Args: backup: of the run; this process is the chief."""
        self._backup = backup
        self._wanted, self._is_closing = threading.Event(), False
        self._failure = ""
        self._thread = threading.Thread(target=self._upload_repeatedly, name="backup", daemon=True)

    def on_start(self, training: Training) -> None:
        """Starts the thread, which uploads what describes the run."""
        self._thread.start()

    def on_step_end(self, training: Training, result: object) -> None:
        """Uploads what was written at the start, after the first step."""
        if training.step == training.first_step + 1:
            self._wanted.set()

    def on_checkpoint(self, training: Training, checkpoint: Checkpoint) -> None:
        """Uploads the checkpoint, and what was written before it."""
        self._wanted.set()

    def close(self) -> None:
        """Uploads the rest and waits for it. Does not raise: the run is saved in RUN."""
        self._is_closing = True
        pending = self._backup.pending()
        if pending:
            _logger.info("Backup: uploading %s to %s.", describe(pending), self._backup.target)
        self._wanted.set()
        if self._thread.ident is None:  # nothing was left to train
            self._thread.start()
        self._thread.join()
        if pending and not self._failure:
            _logger.info("Backup: complete.")

    def _upload_repeatedly(self) -> None:
        is_last = False
        while not is_last:
            self._wanted.wait(_RETRY_SECONDS if self._failure else None)
            self._wanted.clear()
            is_last = self._is_closing
            try:
                self._backup.upload()
                self._failure = ""
            except Exception as error:  # one that escapes a thread is lost
                known = isinstance(error, ConvoyError | OSError)
                failure = str(error) if known else f"{type(error).__name__}: {error}"
                if is_last:
                    _logger.warning("Backup: %s is not complete: %s", self._backup.target, failure)
                elif not self._failure:
                    _logger.warning("Backup: %s Training continues; the upload is tried again.", failure)
                self._failure = failure
