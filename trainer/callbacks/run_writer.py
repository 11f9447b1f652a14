"""Writes the files of a run other than checkpoints: metrics, TensorBoard's curves, evaluations, events, result."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.errors import DataError
from convoy.core.files import json_value
from convoy.core.text import without_secrets
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.views import View
from convoy.trainer import config as configs
from convoy.trainer.callbacks.callback import Callback, Evaluation, Log, Training
from convoy.trainer.callbacks.curves import draw_curves
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.run_pages import pages_of_run
from convoy.trainer.callbacks.tolerance import Tolerance
from convoy.trainer.callbacks.writers import ROOT, MetricWriters
from convoy.trainer.evaluation.results import append_result, truncate_results
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity, environment


class RunWriter(Callback):
    """Writer of the run directory's files other than checkpoints."""

    def on_start(self, training: Training) -> None:
        """Drops what was written after the step that the run starts from, and describes the run.

        It writes config, environment, dataset and command, also as text for TensorBoard, and drops the result of a run
        that was finished before.

        Raises:
          DataError: a file cannot be written.
        """
        session, step = training.session, training.first_step
        self._run: RunDirectory = session.run
        self._tolerance = Tolerance(training.say)
        self._writers = MetricWriters(session.run, total_steps=training.total_steps)
        digest = session.model.get("weights")
        files = {
            "config": configs.to_json(session.config),
            "environment": {**environment(), **({"pretrained_sha256": digest} if digest else {})},
            "dataset": _description(session.dataset),
        }
        pages = pages_of_run(session.config, session.runtime.built.model, session.objective.task)
        command = without_secrets(training.command)
        texts = [summaries.text_of_json(f"run/{name}", json_value(value)) for name, value in files.items()]
        shown = {**pages, "train": [*pages.get("train", ()), *texts, summaries.text("run/command", command)]}
        try:
            self._run.result.unlink(missing_ok=True)
            written_again = {value.tag for values in shown.values() for value in values}
            self._go_back(step, without={*written_again, summaries.session_end(0.0).tag})
            for name, value in files.items():
                self._run.write_json(self._run.path / f"{name}.json", value)
            self._run.command.write_text(command + "\n", encoding="utf-8", errors="surrogateescape")
            for name, values in shown.items():
                self._writers.show(name, step, values)
        except OSError as error:
            name = error.filename or "a file"
            raise DataError(f"--workdir={self._run.path}: {name} cannot be written ({error.strerror}).") from None

    def on_rollback(self, training: Training) -> None:
        """Drops what was written after the step that the run has gone back to, and writes the config again."""
        self._write("metrics", self._go_back, training.step)
        self._write("config.json", self._run.write_json, self._run.config, configs.to_json(training.config))

    def on_event(self, training: Training, name: str, details: Mapping[str, Any]) -> None:
        """Adds a line to events.jsonl."""
        self._write("events.jsonl", self._run.append_event, name, **details)

    def on_log(self, training: Training, log: Log) -> None:
        """Adds the training metrics to metrics.jsonl and to TensorBoard's curves."""
        self._write("metrics", self._writers.write, "train", log.step, log.values)
        if log.limits:
            self.show("train", log.step, [summaries.text_of_json("run/limits", log.limits)])

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Adds the metrics to metrics.jsonl, to TensorBoard's curves and to results.csv.

        TensorBoard's HParams page compares runs by their best score, such as top-1.
        """
        step, split = evaluation.step, evaluation.split
        self._write("metrics", self._writers.write, split, step, evaluation.values)
        best = {f"best/{training.session.objective.task.score}": evaluation.best_score}
        self._write("TensorBoard's event file", self._writers.show_scalars, ROOT, step, best)
        self._write("results.csv", append_result, self._run, step=step, split=split, quality=evaluation.metrics)

    def on_end(self, training: Training, result: Mapping[str, Any] | None) -> None:
        """Writes result.json and curves.png, and marks the run as finished for TensorBoard.

        Raises:
          DataError: result.json cannot be written.
        """
        if result is None:
            return
        self.show(ROOT, result["step"], [summaries.session_end(time.time())])
        self._write("curves.png", draw_curves, self._run, training.session.objective.task)
        try:
            self._run.write_json(self._run.result, result)
        except OSError as error:
            raise DataError(
                f"{self._run.result} cannot be written ({error.strerror}). The last checkpoint is saved: free disk "
                "space and rerun the same command."
            ) from None
        stop = result["stop"]
        if stop and stop["resumable"]:
            training.event("stopped", step=result["step"], reason=stop["reason"], by=stop["by"])
        else:
            training.event("done", step=result["step"])

    def show(self, name: str, step: int, values: Iterable[Summary.Value]) -> None:
        """Writes values (`tensorboard.summaries`) to TensorBoard's run `name`."""
        self._write("TensorBoard's event file", self._writers.show, name, step, values)

    def _go_back(self, step: int, *, without: Collection[str] = ()) -> None:
        self._writers.go_back(step, without=without)
        truncate_results(self._run, step)

    def _write(self, what: str, write: Callable[..., None], /, *args: Any, **options: Any) -> None:  # noqa: ANN401
        with self._tolerance.of(what):
            write(*args, **options)


def _description(dataset: Dataset) -> dict[str, Any]:
    """Returns the content of dataset.json."""
    return {
        "directory": str(dataset.directory.resolve()),
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        **({"label_delimiter": dataset.label_delimiter} if dataset.multi_label else {}),
        **dataset_identity(dataset),
        **({} if dataset.manifest else {"record_format": dataset.record_format.as_dict()}),
        **(dataset.description if isinstance(dataset, View) else {}),
        # The report judges differences by it.
        **({"validation_images": dataset.split("validation").num_images} if "validation" in dataset.splits else {}),
    }
