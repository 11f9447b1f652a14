"""The trial's side of a sweep: reports validation metrics to the study, and stops the run if it is pruned."""

import os
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core.errors import UsageError, did_you_mean
from convoy.trainer.callbacks.callback import Callback, Evaluation, Training

VARIABLE = "CONVOY_TRIAL"  # folder of the study and number of the trial: /team/sweep/sweep:3


class TrialReporter(Callback):
    """Reports each evaluation to the study of a sweep, and stops the run if its pruner says so.

    Evaluations are compared by their number in the run, as trials may have different batch sizes. A resumed run counts
    on, and reports none twice.
    """

    def __init__(self, folder: Path, number: int):
        """Opens the trial. Args: folder: that of the study. number: number of the trial."""
        from convoy.trainer.sweep.storage import load_study, open_storage, trial_id, trial_in

        storage = open_storage(folder)
        study, settings = load_study(storage)
        self._trial = trial_in(study, storage, number)
        self._metric = settings.metric
        self._reported = set(storage.get_trial(trial_id(storage, number)).intermediate_values)
        self._steps: list[int] = []  # of the evaluations so far

    def on_start(self, training: Training) -> None:
        """Raises a UsageError if there is no validation split."""
        if "validation" not in training.session.dataset.splits:
            raise UsageError(
                "a sweep compares its trials on the validation split, and the dataset has none. Convert it with "
                "--validation_fraction."
            )

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Reports the metric.

        Raises:
          UsageError: the evaluation has no such metric.
        """
        if self._metric not in evaluation.metrics:
            raise UsageError(
                f"--metric={self._metric}: no such metric{did_you_mean(self._metric, evaluation.metrics)}. "
                f"Pass one of {', '.join(evaluation.metrics)}."
            )
        del self._steps[bisect_left(self._steps, evaluation.step) :]  # the run has gone back
        self._steps.append(evaluation.step)
        number, value = len(self._steps), evaluation.metrics[self._metric]
        if number not in self._reported:
            self._trial.report(value, number)
            self._reported.add(number)
        if self._trial.should_prune():
            training.request_stop(
                f"pruned: validation {self._metric} is {value:.4g} in evaluation {number}", resumable=False
            )

    def state(self) -> list[int]:
        """Returns the steps of the evaluations."""
        return list(self._steps)

    def restore(self, state: list[int]) -> None:
        """Counts on."""
        self._steps = list(state)


def trial_variable(folder: Path, number: int) -> dict[str, str]:
    """Returns the variable that makes a process report to a trial."""
    return {VARIABLE: f"{folder.resolve()}:{number}"}


def trial_callbacks(environment: Mapping[str, str] = os.environ) -> list[Callback]:
    """Returns the callback of the trial that this process trains; none outside a sweep."""
    folder, _, number = environment.get(VARIABLE, "").rpartition(":")
    return [TrialReporter(Path(folder), int(number))] if folder else []


def was_pruned(result: Mapping[str, Any]) -> bool:
    """Returns whether a run with this result.json was stopped by its sweep."""
    stop = result.get("stop")
    return isinstance(stop, dict) and stop.get("by") == TrialReporter.__name__
