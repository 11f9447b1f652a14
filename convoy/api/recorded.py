"""What a run directory has recorded: state, config, metrics, events and saved evaluations. Imports no TensorFlow."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from convoy.api.label_results import evaluation_of
from convoy.api.results import Evaluation
from convoy.api.shown import Rows, Shown
from convoy.api.spelling import spelled_for_python
from convoy.api.training import CrossValidation, TrainingResult
from convoy.core.errors import DataError
from convoy.core.run_layout import checkpoint_step
from convoy.trainer.config import default_config
from convoy.trainer.run import listing
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_evaluations, read_json_lines, read_json_object


class Best(NamedTuple):
    """The best evaluation on the validation split.

    Attributes:
      step: its step.
      score: its top-1 accuracy, or mean average precision with several labels per image, in [0, 1].
    """

    step: int
    score: float

    @property
    def top1(self) -> float:
        """The score of a run with one label per image."""
        return self.score


class RecordedRun(Shown):
    """What a run directory says, without its model; `Run` has the attributes."""

    def __init__(self, path: Path, name: str = "", differences: Mapping[str, Any] | None = None):
        """Args are the attributes."""
        self.path = path
        self.name = name or path.name
        self.differences = dict(differences or {})
        self._files = RunDirectory(path)

    @property
    def state(self) -> str:
        """`done`, `running`, `stopped` or `failed`."""
        return self._listed().state

    @property
    def step(self) -> int | None:
        """The last known step; None before the first."""
        return self._listed().step

    @property
    def total_steps(self) -> int | None:
        """Length of the whole run in steps; None if it is not known yet."""
        return self._listed().total_steps

    @property
    def error(self) -> str:
        """Why the run failed, in one line; empty in other states."""
        return self._listed().error

    @property
    def best(self) -> Best | None:
        """The best evaluation on the validation split; None without any."""
        listed = self._listed()
        return None if listed.best_step is None else Best(listed.best_step, listed.best_score or 0.0)

    @property
    def images_per_second(self) -> float | None:
        """Steady speed over all devices; None if it is not known yet."""
        return self._listed().images_per_second

    @property
    @spelled_for_python()
    def config(self) -> ml_collections.ConfigDict:
        """The config, for `train`: a run of the same config, dataset and devices has the same weights."""
        config = default_config().unlock()  # runs of earlier versions lack some fields
        config.update(self._files.read_config())
        return config.lock()

    @property
    @spelled_for_python()
    def class_names(self) -> tuple[str, ...]:
        """Class names, by label."""
        return tuple(self._files.read_dataset()["class_names"])

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware of the run's last start."""
        return read_json_object(self._files.environment)

    @property
    def result(self) -> TrainingResult | None:
        """The result of the training, of a cross-validation that of all folds; None before its end."""
        content = read_json_object(self._files.result)
        kind = CrossValidation if self._files.folds else TrainingResult
        return kind(self.path, content) if content else None

    @property
    def learning_curve(self) -> dict[str, Any] | None:
        """Accuracy by number of training images, as in learning_curve.json; None before `report --learning_curve`."""
        return read_json_object(self._files.learning_curve) or None

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        names = os.listdir(self._files.checkpoints) if self._files.checkpoints.is_dir() else []
        return sorted(step for name in names if (step := checkpoint_step(name)) is not None)

    def metrics(self, split: str = "") -> Rows:
        """Returns the lines of metrics.jsonl: `step`, `split`, and values by TensorBoard tag.

        Args:
          split: `train` or `validation`; all if empty.

        Example:
          losses = [row["quality/loss"] for row in convoy.open_run("run").metrics("validation")]
          convoy.open_run("run").metrics().to_pandas()
        """
        rows = read_json_lines(self._files.metrics)
        return Rows(row for row in rows if not split or row.get("split") == split)

    def events(self) -> Rows:
        """Returns the lines of events.jsonl: `event`, `time` in seconds since 1970, and details.

        Example:
          [row["event"] for row in convoy.open_run("run").events()]
        """
        return Rows(read_json_lines(self._files.events))

    def evaluations(self) -> Rows:
        """Returns the rows of results.csv, one per evaluation: `step`, `split` and metrics by name.

        Rows of a mean of checkpoints have `checkpoint` too, as `Evaluation.checkpoint`.

        Example:
          max(row["top1"] for row in convoy.open_run("run").evaluations())
        """
        rows = read_evaluations(self._files.results_table)
        return Rows(
            {"step": row.step, "split": row.split, **({"checkpoint": row.checkpoint} if row.checkpoint else {})}
            | dict(row.quality)
            for row in rows
        )

    @spelled_for_python()
    def evaluation(self, split: str) -> Evaluation:
        """Returns the last saved evaluation on a split, by `evaluate` or the command; imports no TensorFlow.

        Args:
          split: name of the split.

        Raises:
          DataError: there is none, or its files are damaged.

        Example:
          convoy.open_run("run").evaluation("test").top1
        """
        from convoy.trainer.evaluation import label_predictions, predictions
        from convoy.trainer.run.task import Decision, task_of

        found = {evaluation.split: evaluation for evaluation in predictions.evaluations(self._files)}
        if split not in found:
            has = f"It has {', '.join(found)}." if found else "It has none."
            raise DataError(f"{self.path} has no evaluation on split {split!r}. {has} Call evaluate({split!r}).")
        dataset = self._files.read_dataset()
        decision = Decision(self.class_names, found[split].thresholds, dataset.get("label_delimiter", ""))
        if task_of(dataset).multi_label:
            return evaluation_of(found[split], label_predictions.load(self._files, found[split], decision), decision)
        return evaluation_of(found[split], predictions.load(self._files, found[split], self.class_names), decision)

    def predictions(self, split: str) -> Rows:
        """Returns a row per image of the last saved evaluation on a split; as `Evaluation.predictions`.

        Args:
          split: name of the split.

        Raises:
          DataError: as `evaluation`.

        Example:
          convoy.open_run("run").predictions("test")[0]["predicted"]
        """
        return self.evaluation(split).predictions()

    def _listed(self) -> listing.ListedRun:
        return listing.read_run(self.path)

    def _title(self) -> str:
        return f"Run {self.name}: {self._listed().state_text}"

    def _facts(self) -> Mapping[str, object]:
        listed = self._listed()
        return {
            "path": self.path,
            f"best {listed.score_title} on validation": listed.best_score,
            "at step": listed.best_step,
            "images per second": listed.images_per_second,
            "data": listed.config.get("data"),
            "model": listed.config.get("model.name"),
            **self.differences,
        }
