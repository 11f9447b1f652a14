"""Monitoring of a training run: measures it and reports to the console, TensorBoard and the run directory.

    monitor = Monitor(session, train_step, worker_group, deadlines)
    with monitor.console:
        monitor.begin()
        ...                                     # steps, timed by `monitor.step_timer`
        monitor.log(sums, result, learning_rate)
        score, is_best = monitor.evaluate(best_score)

Every worker has one, because all workers take part in the measurements; only the chief's prints and writes.
"""

import os
from typing import Any

import numpy as np

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Batch, Reader
from convoy.trainer import config as configs
from convoy.trainer.callbacks.advice import Advice
from convoy.trainer.callbacks.bottleneck import BottleneckAnalyzer
from convoy.trainer.callbacks.console import TrainingConsole
from convoy.trainer.callbacks.media import EvaluationPages, train_batch
from convoy.trainer.callbacks.run_logger import RunLogger
from convoy.trainer.callbacks.step_timer import StepTimer
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.run_pages import pages_of_run
from convoy.trainer.cluster.watchdog import Deadlines
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import resolution
from convoy.trainer.evaluation.evaluator import Evaluator
from convoy.trainer.evaluation.inference import EVALUATION_BATCH_SIZE
from convoy.trainer.session.description import dataset_identity, environment, hardware_info, header_rows
from convoy.trainer.session.prepare import TrainingSession
from convoy.trainer.session.resume import changes, effects_of_extension
from convoy.trainer.step.step import StepResult, TrainStep

_BOTTLENECK_STEPS = 20  # steps after warm-up before the first bottleneck analysis


class Monitor:
    """Measures a run and reports on it.

    Attributes:
      step_timer: times the steps.
      console: a context manager, inside which a terminal shows a progress bar.
      run_logger: writes the run directory's files.
    """

    def __init__(
        self, session: TrainingSession, train_step: TrainStep, worker_group: WorkerGroup, deadlines: Deadlines
    ):
        """Prints and writes nothing yet. Measurements in the checkpoint are kept until they are measured again."""
        self._session = session
        self._plan = plan = session.plan
        self._state = session.runtime.state
        self._worker_group = worker_group
        self._deadlines = deadlines
        self.step_timer = StepTimer(plan.global_batch_size)
        self.console = TrainingConsole(plan.total_steps, self._state.step, shows=worker_group.is_chief)
        self.run_logger = RunLogger(
            session.run, total_steps=plan.total_steps, writes=worker_group.is_chief, warn=self.console.say
        )
        self._evaluator = None
        if "validation" in session.dataset.splits:
            size = resolution.evaluation_size(session.config)
            reader = Reader(session.dataset.split("validation"), Crop(size, resize=session.config.resize))
            self._evaluator = Evaluator(
                self._state,
                session.runtime.model_for_size(size),
                reader,
                EVALUATION_BATCH_SIZE,
                worker_group,
                pieces=session.pieces,
                flip_tta=session.config.flip_tta,
            )
            self._evaluation_pages = EvaluationPages(
                reader,
                session.dataset.class_names,
                worker_group,
                self.run_logger,
                every_steps=plan.eval_every_steps,
                total_steps=plan.total_steps,
            )
        self._analyzer = BottleneckAnalyzer(session, train_step, worker_group)
        self._advice = Advice(session.config, plan, session.dataset, show=self.console.finding)
        # A run that was killed between its last checkpoint and its result reports the checkpoint's measurements.
        reported = session.metadata.get("reported", {})
        self._quality: dict[str, dict[str, float]] = reported.get("metrics", {})  # newest by split
        self._images_per_second_before: float | None = reported.get("images_per_second")
        self._limits: dict[str, Any] | None = reported.get("limits")
        self._shown_limits = ""

    def begin(self) -> None:
        """Prints the run's settings and drops what was written after the step it starts from.

        Raises:
          DataError: a file cannot be written.
        """
        session, plan, step = self._session, self._plan, self._state.step
        self.run_logger.begin(
            step,
            {
                "config": configs.to_json(session.config),
                "environment": environment(),
                "dataset": {
                    "directory": str(session.dataset.directory.resolve()),
                    "name": session.dataset.name,
                    "class_names": list(session.dataset.class_names),
                    **dataset_identity(session.dataset),
                    **({} if session.dataset.manifest else {"record_format": session.dataset.record_format.as_dict()}),
                    **_validation_images(session.dataset),
                },
            },
            pages_of_run(session.config, session.runtime.built.model),
        )
        place = hardware_info(plan, session.runtime, self._worker_group, session.model["files"])
        changed = changes(session.metadata.get("place", {}), place)
        attempt = os.environ.get("CONVOY_ATTEMPT", "")
        launched = {"attempt": int(attempt)} if attempt.isdecimal() else {}
        if step:
            self.run_logger.event("restored", step=step, replicas=plan.replicas, changed=changed, **launched)
        else:
            self.run_logger.event("start", step=0, replicas=plan.replicas, **launched)
        self.console.header(
            header_rows(session.config, plan, session.runtime, session.dataset, session.run, self._worker_group)
        )
        if not self._worker_group.is_chief:
            print(
                f"Worker {self._worker_group.rank} of {self._worker_group.num_workers} trains from step {step}. "
                f"The chief, {self._worker_group.address(0)}, shows progress and writes {session.run.path}.",
                flush=True,
            )
        if step:
            self.console.say(
                f"Resumed at step {step} of {plan.total_steps}."
                + (f" Changed: {'; '.join(changed)}." if changed else "")
            )
            self._say_extension()
        self._advice.start()

    def _say_extension(self) -> None:
        """Prints and records what an extension changes, until a checkpoint has recorded it."""
        config, metadata = self._session.config, self._session.metadata
        recorded = metadata["config"].get("extended", {"steps": ()})["steps"]
        if len(config.extended.steps) > len(recorded):
            self.run_logger.event(
                "extended", step=self._state.step, before=config.extended.lengths[-1], steps=self._plan.total_steps
            )
            for line in effects_of_extension(config, self._plan, rollbacks=metadata.get("rollbacks", 0)):
                self.console.say(line)

    def go_back(self, step: int) -> None:
        """Drops what was measured and written after `step`."""
        self.step_timer.drop_window()
        self.run_logger.go_back(step)

    def first_batch(self, batch: Batch) -> None:
        """Writes the images of the first training batch to TensorBoard, augmented and not yet mixed."""
        if self._worker_group.is_chief:
            with self.step_timer.paused("log"):
                config = self._session.config
                operations = parse_pipeline(config.augment.ops, image_size=config.image_size).device
                shown = train_batch(
                    batch, operations, self._session.dataset.class_names, self._session.runtime.strategy
                )
                self.run_logger.show("media", 0, shown)

    def log(self, sums: np.ndarray, last: StepResult, learning_rate: float) -> None:
        """Prints and writes the training metrics. All workers must call it at the same step.

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
            self._quality["train"] = self._session.pieces.metrics.summarize(sums)
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
                "run/epoch": self.epoch,
            }
            self.run_logger.metrics("train", step, values)
            self.console.progress(step, self.epoch, values)
            self._advice.logged(window.input_wait_pct, self._analyzer.input_fixes(window.cores_busy))
            is_first_time = not self._shown_limits and self.step_timer.steady_steps >= _BOTTLENECK_STEPS
            if is_first_time or step == self._plan.total_steps:
                self._show_limits()

    def _show_limits(self) -> None:
        """Prints and writes the bottleneck analysis, once there are steps after warm-up."""
        if steady := self.step_timer.steady():
            self._limits = self._analyzer.summary(steady, seconds=self._deadlines.step)
            self.run_logger.show("train", self._state.step, [summaries.text_of_json("run/limits", self._limits)])
            if (sentence := self._limits["sentence"]) != self._shown_limits:
                self._shown_limits = sentence
                self.console.say(f"Limits: {sentence}.")

    def histograms(self) -> None:
        """Writes a histogram of each weight to TensorBoard."""
        with self.step_timer.paused("log"):
            weights = self._state.weights_by_path().items()
            shown = [summaries.histogram(f"weights/{path}", value) for path, value in weights]
            self.run_logger.show("train", self._state.step, shown)

    def evaluate(self, best_score: float | None) -> tuple[float | None, bool]:
        """Evaluates on the validation split, if there is one. All workers must call it at the same step.

        Args:
          best_score: best top-1 of the evaluations before; None before the first one.

        Returns:
          Top-1 and whether it is the best so far; None and False without a validation split.

        Raises:
          PeerLostError: another worker is gone.
          DataError: an image cannot be used.
        """
        if not self._evaluator:
            return None, False
        with self.step_timer.paused("evaluation"):
            step = self._state.step
            counts = self._evaluation_pages.counts(step)
            quality = self._evaluator.metrics(seconds=self._deadlines.step, each=counts.add if counts else None)
            if counts:
                self._evaluation_pages.show(step, counts, seconds=self._deadlines.step)
            self._quality["validation"] = quality
            values = {f"quality/{name}": value for name, value in quality.items()} | {"run/epoch": self.epoch}
            train = self._quality.get("train")
            if train:  # both gaps are positive if the model is better on training images
                values |= {"gap/top1": train["top1"] - quality["top1"], "gap/loss": quality["loss"] - train["loss"]}
            self.run_logger.metrics("validation", step, values)
            score = quality["top1"]
            is_best = best_score is None or score > best_score
            self.run_logger.best(step, score if best_score is None else max(best_score, score))
            self.run_logger.evaluation("validation", step, quality)
            self.console.evaluation(step, self.epoch, "validation", quality, is_best)
            self._advice.evaluated(
                step=step, train_top1=train["top1"] if train else None, top1=score, best_top1=best_score
            )
            return score, is_best

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self._state.step / self._plan.steps_per_epoch

    def measured(self) -> dict[str, Any]:
        """Returns the measurements for checkpoints and result.json, as JSON data.

        The newest metrics by split, images per second without warm-up and pauses, and the bottleneck analysis; None for
        what is not known yet.
        """
        return {
            "metrics": self._quality,
            "images_per_second": self.step_timer.steady_images_per_second() or self._images_per_second_before,
            "limits": self._limits,
        }

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result and prints a summary.

        Raises:
          DataError: result.json cannot be written.
        """
        self.run_logger.finish(result)
        self.console.say(f"Done: step {result['step']}, weights_sha256 {result['weights_sha256'][:16]}.")
        self.console.say(f"Curves: {self._session.run.curves}")


def _validation_images(dataset: Dataset) -> dict[str, int]:
    """Returns the number of validation images, by which the report judges differences; empty without any."""
    return {"validation_images": dataset.split("validation").num_images} if "validation" in dataset.splits else {}
