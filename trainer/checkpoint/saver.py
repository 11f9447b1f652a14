"""Saves checkpoints in a background thread, so that training continues meanwhile.

saver = CheckpointSaver(store, on_failure=warn)
saver.save(state.values(), step=120, metadata={...}, score=0.61)      # returns at once
saver.finish()                                                       # waits; DataError if the last save failed
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.step.state import model_sha256


class CheckpointSaver:
    """Writes one checkpoint at a time. A failed save keeps the older checkpoints and does not stop training.

    Attributes:
      best_score: best score of all checkpoints saved or being saved; None if none has a score.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        on_failure: Callable[[DataError], None],
        on_success: Callable[[int, float | None], None] = lambda step, score: None,
    ):
        """Creates a saver; the thread starts with the first save.

        Args:
          store: where to save.
          on_failure: called by the next `check` or `save` after a failed save.
          on_success: called by the next `check`, `save` or `finish` with step and score of a written checkpoint.
        """
        self._store = store
        self._on_failure = on_failure
        self._on_success = on_success
        self._thread: threading.Thread | None = None
        self._saving: tuple[int, float | None] = (0, None)
        self._error: DataError | None = None
        self.best_score = store.best_score()

    def save(
        self, values: Mapping[str, np.ndarray], *, step: int, metadata: Mapping[str, Any], score: float | None
    ) -> None:
        """Starts writing a checkpoint as `CheckpointStore.save` does. Waits only for the previous one.

        Args:
          values: every variable by name, as copies on the host that no longer change.
          step: number of updates applied.
          metadata: JSON data; `weights_sha256` is added.
          score: higher is better; None if these weights were not evaluated.
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
            except Exception as error:  # an exception that escapes a thread is lost
                self._error = DataError(f"checkpoint of step {step}: not written ({type(error).__name__}: {error}).")

        self._saving = (step, score)
        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Calls `on_failure` or `on_success` if the last save has ended by now. Does not wait."""
        if self._thread and not self._thread.is_alive() and (error := self._wait()):
            self._on_failure(error)

    def note_score(self, score: float | None) -> None:
        """Updates `best_score` without saving: for workers other than the chief."""
        if score is not None:
            self.best_score = score if self.best_score is None else max(self.best_score, score)

    def finish(self) -> None:
        """Waits for the save in progress.

        Raises:
          DataError: the last save failed.
        """
        if error := self._wait():
            raise error

    def _wait(self) -> DataError | None:
        if not self._thread:
            return None
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error:
            self.best_score = self._store.best_score()
        else:
            self._on_success(*self._saving)
        return error
