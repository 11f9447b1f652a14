"""Saves checkpoints while training goes on: the state is copied to the host, the rest is a thread's work.

saver = CheckpointSaver(store, on_failure=warn)
saver.save(state.values(), step=120, metadata={...}, score=0.61)      # returns at once
saver.finish()                                                       # waits; DataError where the last one failed
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.step.state import model_sha256


class CheckpointSaver:
    """Writes one checkpoint at a time; a failure leaves the older ones, and training goes on.

    Attributes:
      best_score: the best of all that were saved or are being saved, None where none was scored.
    """

    def __init__(self, store: CheckpointStore, *, on_failure: Callable[[DataError], None]):
        """Starts no thread yet.

        Args:
          store: where to.
          on_failure: told of a checkpoint that could not be written, by the next `check` or `save`.
        """
        self._store = store
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._error: DataError | None = None
        self.best_score = store.best_score()

    def save(
        self, values: Mapping[str, np.ndarray], *, step: int, metadata: Mapping[str, Any], score: float | None
    ) -> None:
        """Begins to write a checkpoint, as `CheckpointStore.save`; waits only for the one before.

        Args:
          values: every variable by name; must not change any more.
          step: updates done.
          metadata: any JSON data; `weights_sha256` is added.
          score: higher is better, or None.
        """
        if error := self._wait():
            self._on_failure(error)
        self.note_score(score)

        def write() -> None:
            try:
                digest = {"weights_sha256": model_sha256(values)}
                self._store.save(values, step=step, metadata={**metadata, **digest}, score=score)
            except DataError as error:
                self._error = error
            except Exception as error:  # a thread's exception would be lost, and with it that there is no checkpoint
                self._error = DataError(f"checkpoint of step {step} was not written ({type(error).__name__}: {error}).")

        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Tells of a checkpoint that could not be written, where that is known by now."""
        if self._thread and not self._thread.is_alive() and (error := self._wait()):
            self._on_failure(error)

    def note_score(self, score: float | None) -> None:
        """Takes a score into `best_score`; for a worker that leaves the saving to the chief."""
        if score is not None:
            self.best_score = score if self.best_score is None else max(self.best_score, score)

    def finish(self) -> None:
        """Waits for what is being written.

        Raises:
          DataError: it could not be.
        """
        if error := self._wait():
            raise error

    def _wait(self) -> DataError | None:
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error:
            self.best_score = self._store.best_score()
        return error
