"""Stops a run that no longer improves: `config.early_stopping.patience`."""

import math
from typing import Any

from convoy.core.errors import UsageError, did_you_mean
from convoy.core.text import counted
from convoy.trainer.callbacks.callback import Callback, Evaluation, Training

MODES = ("auto", "min", "max")
_LOWER_IS_BETTER = ("loss", "ece", "brier", "nll")


class EarlyStopping(Callback):
    """Stops after a number of evaluations without a better value of a metric (Prechelt 1998).

    The checkpoint of the best score is kept, and evaluation, prediction and export use it. A resumed run counts on.
    `config.early_stopping.patience` adds one to a run.

    Example:
      convoy.EarlyStopping(patience=3, metric="loss", min_delta=0.01)
    """

    every_worker = True

    def __init__(self, patience: int, metric: str = "top1", min_delta: float = 0.0, mode: str = "auto"):
        """Starts without an evaluation.

        Args:
          patience: evaluations on the validation split without an improvement, 1 or more.
          metric: name of a metric of evaluations (`Evaluation.metrics`).
          min_delta: smallest change that counts as an improvement, 0 or more, in the metric's unit.
          mode: `min` or `max`: whether lower or higher is better; `auto`: lower for loss, ece, brier and nll, else
            higher.

        Raises:
          UsageError: a value is out of range.
        """
        if not isinstance(patience, int) or patience < 1:
            raise UsageError(f"early stopping: patience={patience!r}: pass a number of evaluations, 1 or more.")
        if not isinstance(min_delta, int | float) or not 0 <= min_delta < math.inf:
            raise UsageError(f"early stopping: min_delta={min_delta!r}: pass a number of 0 or more.")
        if mode not in MODES:
            raise UsageError(
                f"early stopping: mode={mode!r}{did_you_mean(str(mode), MODES)}: pass one of {', '.join(MODES)}."
            )
        self._patience, self._metric, self._min_delta = patience, metric, min_delta
        self._sign = -1.0 if lower_is_better(metric, mode) else 1.0
        self._best: float | None = None
        self._best_step = 0
        self._waited = 0

    def on_start(self, training: Training) -> None:
        """Stops a run at once that was stopped before.

        Raises:
          UsageError: there is no validation split or no such metric.
        """
        if "validation" not in training.session.dataset.splits:
            raise UsageError(
                f"early stopping: patience={self._patience}: the dataset has no validation split. Convert it with "
                "--validation_fraction, or train without early stopping."
            )
        metrics = training.session.objective.metrics
        known = (*metrics.task.metrics, *metrics.names)
        if self._metric not in known:
            raise UsageError(
                f"early stopping: metric={self._metric!r}: no such metric{did_you_mean(str(self._metric), known)}. Set "
                f"one of {', '.join(known)}, or add it to config.metrics."
            )
        self._stop_if_due(training)

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Counts an evaluation."""
        value = evaluation.metrics[self._metric]
        if self._best is None or self._sign * (value - self._best) > self._min_delta:
            self._best, self._best_step, self._waited = value, evaluation.step, 0
        else:
            self._waited += 1
        self._stop_if_due(training)

    def _stop_if_due(self, training: Training) -> None:
        if self._waited >= self._patience:
            training.request_stop(
                f"validation {self._metric} has not improved on {self._best:.4g} (step {self._best_step}) for "
                f"{counted(self._waited, 'evaluation')}",
                resumable=False,
            )

    def state(self) -> dict[str, Any]:
        """Returns the best value, its step, and the evaluations since."""
        return {"best": self._best, "best_step": self._best_step, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Counts on."""
        self._best, self._best_step, self._waited = state["best"], state["best_step"], state["waited"]


def lower_is_better(metric: str, mode: str = "auto") -> bool:
    """Returns whether a lower value of a metric is better; `mode` is one of `MODES`."""
    return mode == "min" or (mode == "auto" and metric in _LOWER_IS_BETTER)
