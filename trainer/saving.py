"""Checkpoints of a run in progress: what is in them, and what is reported about them.

Only the chief writes them; the other workers note the same scores and steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

from convoy.core.errors import DataError
from convoy.trainer import config as configs
from convoy.trainer.callbacks.callback import Checkpoint, Training
from convoy.trainer.checkpoint.saver import CheckpointSaver
from convoy.trainer.session.description import dataset_identity
from convoy.trainer.session.prepare import TrainingSession


class Saving:
    """Writes the checkpoints of a run.

    Attributes:
      step: step of the last checkpoint that was begun or restored; None before the first.
    """

    def __init__(
        self,
        session: TrainingSession,
        training: Training,
        place: Mapping[str, Any],
        *,
        progress: Callable[[int], Mapping[str, Any]],
        on_saved: Callable[[Checkpoint], None],
    ):
        """Prepares to write.

        Args:
          session: the run.
          training: reports to users and callbacks.
          place: where the run trains (`hardware_info`).
          progress: returns what changes from one checkpoint to the next, as JSON data, for the metadata of a step.
          on_saved: called for each checkpoint that was written.
        """
        self._session, self._training, self._place = session, training, place
        self._worker_group, self._store = session.worker_group, session.store
        self._progress, self._on_saved = progress, on_saved
        self._saver = CheckpointSaver(session.store, on_failure=self._warn_of_failure, on_success=self._report)
        self.step: int | None = session.runtime.state.step or None

    @property
    def best_score(self) -> float | None:
        """Best score of all checkpoints saved or being saved; None if none has a score."""
        return self._saver.best_score

    @property
    def resume_point(self) -> str:
        """From where the run would be resumed, in words."""
        latest = self._store.latest()
        return "step 0 (no checkpoint found)" if latest is None else f"step {latest}"

    def save(self, score: float | None) -> None:
        """Begins to write a checkpoint of the current step; `score` is None if its weights were not evaluated."""
        session, state = self._session, self._session.runtime.state
        step = self.step = state.step
        if not self._worker_group.is_chief:
            self._saver.note_score(score)
            return
        self._worker_group.report(step, "saving")
        self._training.event("checkpoint", step=step)
        metadata = {
            "config": configs.to_json(session.config),
            "dataset": dataset_identity(session.dataset),
            "model": session.model,
            "place": self._place,
            **self._progress(step),
        }
        self._saver.save(state.values(), step=step, metadata=metadata, score=score)

    def check(self) -> None:
        """Reports the last checkpoint if it has been written, or could not be, by now. Does not wait."""
        self._saver.check()

    def finish(self) -> None:
        """Waits for the checkpoint being written.

        Raises:
          DataError: it cannot be written.
        """
        self._saver.finish()

    def settle(self) -> None:
        """Waits for the checkpoint being written. If that fails, it warns: the previous one is still there."""
        try:
            self._saver.finish()
        except DataError as error:
            self._warn_of_failure(error, "")

    def _report(self, step: int, score: float | None) -> None:
        self._on_saved(Checkpoint(step, self._store.path(step), score))

    def _warn_of_failure(
        self, error: DataError, outlook: str = " Training continues; the next checkpoint is written as scheduled."
    ) -> None:
        self._training.say(f"Warning: {error}{outlook}")
        self._training.event("checkpoint_failed", message=str(error))
