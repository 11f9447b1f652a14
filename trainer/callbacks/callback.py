"""Callbacks observe a training run, and may ask it to stop.

    class StopAtNinety(convoy.Callback):
        def on_evaluation(self, training, evaluation):
            if evaluation.metrics["top1"] >= 0.9:
                training.request_stop("top-1 is good enough")

    convoy.train(config, data="data", workdir="run", callbacks=[StopAtNinety()])

From the command line: `convoy train --callbacks=FILE.py:StopAtNinety`. Everything that watches a run is a callback:
console, run files, TensorBoard, profiler, advice. The training loop knows only this protocol (`callback_list`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.core.finding import Finding
from convoy.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from convoy.input_pipeline.reading.reader import Batch
    from convoy.trainer.evaluation.class_pictures import LabelSummary
    from convoy.trainer.evaluation.counts import EvaluationSummary
    from convoy.trainer.session.prepare import TrainingSession
    from convoy.trainer.step.step import StepResult


@dataclass(frozen=True)
class Log:
    """The training metrics of the last `log_every` steps.

    Attributes:
      step: the last of these steps.
      epoch: epochs done, with their fraction.
      values: by TensorBoard tag, such as `quality/top1` in [0, 1], `optim/lr` and `perf/images_per_s`.
      input_fixes: what would make input faster, as flags where possible.
      limits: the bottleneck analysis (`limits` of result.json), when there is a new one; else None.
    """

    step: int
    epoch: float
    values: Mapping[str, float]
    input_fixes: Sequence[str] = ()
    limits: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a whole split.

    Attributes:
      step: step of the evaluated weights.
      epoch: epochs done, with their fraction.
      split: its name.
      metrics: `loss` in nats, `top1`, `top5`, `macro_f1`, `ece` in [0, 1], and those of `config.metrics`. With several
        labels per image `loss`, `mean_average_precision`, `micro_f1` and `macro_f1`.
      values: the same and the gaps to the training metrics, by TensorBoard tag.
      is_best: whether the score, `top1` or `mean_average_precision`, is the best so far, or equal to it.
      best_score: best score so far, with this evaluation.
      summary: counts for pictures, ten times per run and only on the chief; else None.
    """

    step: int
    epoch: float
    split: str
    metrics: Mapping[str, float]
    values: Mapping[str, float]
    is_best: bool
    best_score: float
    summary: "EvaluationSummary | LabelSummary | None" = None

    @property
    def best_top1(self) -> float:
        """The best score under its earlier name."""
        return self.best_score


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been written.

    Attributes:
      step: step of its weights.
      path: the file.
      score: top-1 on the validation split, or mean average precision with several labels per image; None if these
        weights were not evaluated.
    """

    step: int
    path: Path
    score: float | None


@dataclass(frozen=True)
class Stop:
    """Why a run stops before its last step.

    Attributes:
      reason: in words, to follow `stopped at step 40:`.
      by: what asked for it: the name of a callback or signal.
      resumable: whether the same command is meant to train on.
    """

    reason: str
    by: str
    resumable: bool = True


@dataclass
class Training:
    """The run in progress, as callbacks see it.

    Attributes:
      session: config, dataset, run directory, model: everything that was prepared.
      rank: rank of this worker.
      num_workers: number of workers.
      first_step: steps done before this start.
      command: what started the run, as text.
      changed: what has changed since the checkpoint that it resumes from, as text.
      paused: a context manager, inside which time does not count as training; takes the name of the pause.
      step: optimizer steps done.

    Example:
      class Largest(convoy.Callback):
          def on_evaluation(self, training, evaluation):
              path, weight = max(training.weights().items(), key=lambda item: abs(item[1]).max())
              training.say(f"Step {training.step}: the largest weight is in {path}.")
    """

    session: "TrainingSession"
    rank: int
    num_workers: int
    first_step: int
    command: str
    changed: Sequence[str]
    paused: Callable[[str], AbstractContextManager[None]]
    _emit: Callable[..., None]
    _request_stop: Callable[[Stop], None]
    step: int = 0
    _calling: list["Callback"] = field(default_factory=list)

    @property
    def config(self) -> Any:  # noqa: ANN401 (a ConfigDict, whose fields have any type)
        """The complete config, an `ml_collections.ConfigDict` with every automatic field resolved."""
        return self.session.config

    @property
    def workdir(self) -> Path:
        """The run directory."""
        return self.session.run.path

    @property
    def class_names(self) -> list[str]:
        """Class names, by label."""
        return list(self.session.dataset.class_names)

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.session.plan.total_steps

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.session.plan.steps_per_epoch

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes the run directory."""
        return self.rank == 0

    def weights(self) -> "dict[str, np.ndarray]":
        """Returns every trained weight by its path, as a copy on the host. Waits for the step in progress."""
        return self.session.runtime.state.weights_by_path()

    def say(self, message: str | Finding) -> None:
        """Shows a line, or a finding with its fix, to the user."""
        self._emit("on_message", message)

    def event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Adds an event to RUN/events.jsonl; `details` are JSON values."""
        self._emit("on_event", name, details)

    def request_stop(self, reason: str, *, resumable: bool = True) -> None:
        """Asks the run to stop. All workers stop after the same step, save, and write result.json; the exit code is 0.

        After an evaluation they stop at its step; else one or two steps later.

        Args:
          reason: in words, to follow `stopped at step 40:`; recorded in result.json.
          resumable: whether the same command is meant to train on, as after a time limit.
        """
        by = type(self._calling[-1]).__name__ if self._calling else "Python"
        self._request_stop(Stop(reason, by, resumable))


class Callback:
    """Base class of callbacks. Override the hooks you need; each gets the `Training` first.

    A hook that raises an exception ends the run after the step in progress: it is saved, and the error names callback,
    hook and step. Hooks run between steps, so they delay training; their time is not part of the step time, except
    for `on_step_begin`, `on_batch` and `on_step_end`.

    Attributes:
      every_worker: whether the hooks run on every worker; by default only on the chief.

    Example:
      class StopAtNinety(convoy.Callback):
          def on_evaluation(self, training, evaluation):
              if evaluation.metrics["top1"] >= 0.9:
                  training.request_stop("top-1 is good enough")

      callbacks = [StopAtNinety()]  # an argument of convoy.train
    """

    every_worker = False

    def on_start(self, training: Training) -> None:
        """Called before the first step of this start."""

    def on_step_begin(self, training: Training) -> None:
        """Called before the batch of a step is waited for."""

    def on_batch(self, training: Training, batch: "Batch") -> None:
        """Called before each step with its batch: columns `image`, `label`, `index`, ..., distributed over devices."""

    def on_step_end(self, training: Training, result: "StepResult") -> None:
        """Called after each step; the tensors of the result may still be pending, and reading them waits for it."""

    def on_log(self, training: Training, log: Log) -> None:
        """Called every `config.log_every` with the training metrics."""

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Called after each evaluation, with the same metrics on every worker."""

    def on_checkpoint(self, training: Training, checkpoint: Checkpoint) -> None:
        """Called when a checkpoint has been written, a few steps after its step. Only on the chief, which writes it."""

    def on_rollback(self, training: Training) -> None:
        """Called when the run has gone back to `training.step` after a NaN: what was logged after it no longer counts.

        A run that resumes starts with `on_start` instead, also at an earlier step than was logged last.
        """

    def on_message(self, training: Training, message: str | Finding) -> None:
        """Called for each line that is for the user."""

    def on_event(self, training: Training, name: str, details: Mapping[str, Any]) -> None:
        """Called for each event of RUN/events.jsonl, such as `restored`, `checkpoint` or `preempted`."""

    def on_stop(self, training: Training, stop: Stop) -> None:
        """Called when the run stops before its last step, by request or by a signal; it has been saved."""

    def on_end(self, training: Training, result: Mapping[str, Any] | None) -> None:
        """Called at the end, also after an error or a signal.

        Args:
          training: the run.
          result: content of result.json; None if the run did not end as it should.
        """

    def state(self) -> Any:  # noqa: ANN401
        """Returns what a resumed run needs, as JSON data; it is part of each checkpoint."""
        return None

    def restore(self, state: Any) -> None:  # noqa: ANN401
        """Takes up the `state` of the checkpoint that the run resumes from, before `on_start`."""


CALLBACKS: Registry[Callable[[], Callback]] = Registry("callback", field="--callbacks")
HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
