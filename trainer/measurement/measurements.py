"""What a training run measures: training metrics with step times, and evaluations. Callbacks show and record them.

    measurements = Measurements(session, train_step, worker_group, deadlines)
    ...                                                # steps, timed by `measurements.step_timer`
    log = measurements.log(sums, result, learning_rate)
    evaluation = measurements.evaluate(best_score)

Every worker has one, because all workers take part in the measurements.
"""

from typing import Any

import numpy as np

from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.callbacks.callback import Evaluation, Log
from convoy.trainer.cluster.watchdog import Deadlines
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import resolution
from convoy.trainer.evaluation.class_pictures import LabelCounts
from convoy.trainer.evaluation.counts import EvaluationCounts
from convoy.trainer.evaluation.evaluator import Evaluator
from convoy.trainer.evaluation.inference import evaluation_batch_size
from convoy.trainer.measurement.bottleneck import BottleneckAnalyzer
from convoy.trainer.measurement.step_timer import StepTimer
from convoy.trainer.measurement.worker_times import WorkerTimes
from convoy.trainer.run.temperature import softened
from convoy.trainer.session.prepare import TrainingSession
from convoy.trainer.step.step import StepResult, TrainStep

_VALIDATION = "validation"
_ANALYSIS_STEPS = 20  # steps after warm-up before the first bottleneck analysis
# Evenly over the run, because TensorBoard keeps ten images per tag, and because pictures take time and disk space.
_EVALUATIONS_WITH_PICTURES = 10


class Measurements:
    """Measures a run.

    Attributes:
      step_timer: times the steps.
      worker_times: times this worker's own part of them.
    """

    def __init__(
        self, session: TrainingSession, train_step: TrainStep, worker_group: WorkerGroup, deadlines: Deadlines
    ):
        """Measures nothing yet. Measurements in the checkpoint are kept until they are measured again."""
        self._plan = plan = session.plan
        self._state = session.runtime.state
        self._num_classes = session.dataset.num_classes
        self._objective = session.objective
        self._worker_group = worker_group
        self._deadlines = deadlines
        self.step_timer = StepTimer(plan.global_batch_size)
        self.worker_times = WorkerTimes(worker_group.num_workers)
        self._evaluator = None
        if _VALIDATION in session.dataset.splits:
            size, split = resolution.evaluation_size(session.config), session.dataset.split(_VALIDATION)
            self._evaluator = Evaluator(
                self._state,
                session.runtime.model_for_size(size),
                Reader(split, Crop(size, **resolution.crop_settings(session.config))),
                evaluation_batch_size(split.num_images, plan.replicas, deterministic=session.config.deterministic),
                worker_group,
                objective=session.objective,
                flip_tta=session.config.flip_tta,
            )
        self._analyzer = BottleneckAnalyzer(session, train_step, worker_group)
        # A run that was killed between its last checkpoint and its result reports the checkpoint's measurements.
        reported = session.metadata.get("reported", {})
        self._quality: dict[str, dict[str, float]] = reported.get("metrics", {})  # newest by split
        self._images_per_second_before: float | None = reported.get("images_per_second")
        self._limits: dict[str, Any] | None = reported.get("limits")
        self._own_ms: list[float | None] = []  # of each worker, in the newest log line
        self._has_analyzed = False
        self._thresholds: list[float] | None = reported.get("thresholds")  # of the newest evaluation
        self._temperature: float | None = reported.get("temperature")  # likewise

    def log(self, sums: np.ndarray, last: StepResult, learning_rate: float) -> Log:
        """Returns the training metrics. All workers must call it at the same step.

        Args:
          sums: [MetricSet.sums_size(num_classes)] float64, over the steps since the last call.
          last: result of the newest of these steps.
          learning_rate: learning rate of that step.

        Raises:
          PeerLostError: another worker is gone.
        """
        with self.step_timer.paused("probe"):
            self._analyzer.probe(seconds=self._deadlines.step)
        with self.step_timer.paused("log"):
            window, step = self.step_timer.window(), self._state.step
            self._quality["train"] = self._objective.metrics.summarize(sums)
            values = {f"quality/{name}": value for name, value in self._quality["train"].items()} | {
                "optim/lr": learning_rate,
                "optim/grad_norm": float(last.gradient_norm),
                "optim/weight_norm": self._state.weight_norm(),
                "optim/loss_scale": float(last.loss_scale),
                "perf/images_per_s": window.images_per_second,
                "perf/images_per_s_per_replica": window.images_per_second / self._plan.replicas,
                "perf/step_ms_p50": window.step_ms_p50,
                "perf/step_ms_p95": window.step_ms_p95,
                "perf/input_wait_pct": window.input_wait_pct,
                **self._analyzer.values(window),
                **self._of_workers(window.input_wait_pct),
                "run/epoch": self.epoch,
            }
            is_first_time = not self._has_analyzed and self.step_timer.steady_steps >= _ANALYSIS_STEPS
            limits = self._analyze() if is_first_time or step == self._plan.total_steps else None
            return Log(step, self.epoch, values, self._analyzer.input_fixes(window.cores_busy), limits)

    def _of_workers(self, input_wait_pct: float) -> dict[str, float]:
        """Returns the curves of each worker, by tag: its own part of the step, and its input wait."""
        if self._worker_group.num_workers == 1:
            return {}
        own = [self.worker_times.window_ms(), input_wait_pct]
        gathered = self._worker_group.exchange("worker times", own, seconds=self._deadlines.step)
        self._own_ms = [own_ms for own_ms, _ in gathered]
        curves = {f"perf/workers/own_step_ms/{rank}": ms for rank, ms in enumerate(self._own_ms) if ms is not None}
        return curves | {f"perf/workers/input_wait_pct/{rank}": pct for rank, (_, pct) in enumerate(gathered)}

    def _analyze(self) -> dict[str, Any] | None:
        """Returns the bottleneck analysis, once there are steps after warm-up."""
        if steady := self.step_timer.steady():
            self._has_analyzed = True
            self._limits = self._analyzer.summary(steady, self._own_ms, seconds=self._deadlines.step)
            return self._limits
        return None

    def evaluate(self, best_score: float | None) -> Evaluation | None:
        """Evaluates on the validation split, if there is one. All workers must call it at the same step.

        Args:
          best_score: best score of the evaluations before; None before the first one.

        Raises:
          PeerLostError: another worker is gone.
          DataError: an image cannot be used.
        """
        if not self._evaluator:
            return None
        with self.step_timer.paused("evaluation"):
            step, seconds, task = self._state.step, self._deadlines.step, self._objective.task
            counts = None
            if self._has_pictures(step):
                counts = LabelCounts(self._evaluator) if task.multi_label else EvaluationCounts(self._num_classes)
            quality = self._evaluator.metrics(seconds=seconds, each=counts.add if counts else None)
            summary = counts.gather(self._worker_group, seconds=seconds) if counts else None
            self._temperature = temperature = self._evaluator.best_temperature
            if scores := self._evaluator.scores:
                self._thresholds = softened(scores.thresholds, temperature, multi_label=True).tolist()
            self._quality[_VALIDATION] = quality
            values = {f"quality/{name}": value for name, value in quality.items()} | {"run/epoch": self.epoch}
            train = self._quality.get("train")
            if train:  # both gaps are positive if the model is better on training images
                gap = train[task.score] - quality[task.score]
                values |= {f"gap/{task.score}": gap, "gap/loss": quality["loss"] - train["loss"]}
            score = quality[task.score]
            is_best = best_score is None or score >= best_score  # of equal ones the latest, as in checkpoints
            best = score if best_score is None else max(best_score, score)
            return Evaluation(step, self.epoch, _VALIDATION, quality, values, is_best, best, summary)

    def _has_pictures(self, step: int) -> bool:
        """Returns whether the evaluation of `step` is one to show, the same on every worker."""
        total, every = self._plan.total_steps, self._plan.eval_every_steps
        before, now = (at * _EVALUATIONS_WITH_PICTURES // total for at in (step - every, step))
        return now > before or step == total

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self._state.step / self._plan.steps_per_epoch

    def measured(self) -> dict[str, Any]:
        """Returns the measurements for checkpoints and result.json, as JSON data.

        The newest metrics by split, images per second without warm-up and pauses, and the bottleneck analysis; None for
        what is not known yet. The temperature that fits the newest evaluation, and with several labels per image the
        thresholds of probabilities that it was applied to.
        """
        return {
            "metrics": self._quality,
            "images_per_second": self.step_timer.steady_images_per_second() or self._images_per_second_before,
            "limits": self._limits,
            **({"thresholds": self._thresholds} if self._thresholds else {}),
            **({"temperature": self._temperature} if self._temperature else {}),
        }
