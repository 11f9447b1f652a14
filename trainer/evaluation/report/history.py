"""The files of a run directory as the report reads them, also while the run is in progress or after it was killed.

history = read_history(run)
history.curve("validation", "quality/top1")          # steps and values
history.newest_result("test", step=385)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.reading import read_file
from convoy.trainer.evaluation.report.learning_curve import LearningCurve
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import EvaluationRow, read_evaluations, read_json_lines, read_json_object
from convoy.trainer.run.task import Task, task_of


@dataclass(frozen=True)
class History:
    """The files of a run directory.

    Attributes:
      name: name of the folder.
      config: config.json.
      dataset: dataset.json.
      environment: environment.json; empty if it is missing.
      command: the command line.
      result: result.json; None until the run is finished.
      events: lines of events.jsonl.
      metrics: lines of metrics.jsonl.
      results: rows of results.csv.
      learning_curve: of this result; None without one.
    """

    name: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    result: Mapping[str, Any] | None
    events: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    results: Sequence[EvaluationRow]
    learning_curve: LearningCurve | None = None

    @property
    def task(self) -> Task:
        """What the run predicts."""
        return task_of(self.dataset)

    @property
    def class_names(self) -> list[str]:
        """The class names, by label."""
        return self.dataset["class_names"]

    @property
    def dataset_name(self) -> str:
        """The dataset's name; that of its folder if Convoy did not write it."""
        return self.dataset.get("name") or Path(self.dataset["directory"]).name

    @property
    def last_step(self) -> int:
        """The last step in metrics.jsonl, or 0."""
        return max((line["step"] for line in self.metrics), default=0)

    def curve(self, split: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps [n] int64 and values [n] float64 of a tag; values that are not finite are left out."""
        points = [
            (line["step"], line[tag]) for line in self.metrics if line["split"] == split and line.get(tag) is not None
        ]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, np.int64), np.array(values, np.float64)

    def last_values(self, split: str, step: int | None = None) -> Mapping[str, Any]:
        """Returns the last line of metrics.jsonl of a split, up to a step if one is given; empty if there is none."""
        lines = [line for line in self.metrics if line["split"] == split and (step is None or line["step"] <= step)]
        return lines[-1] if lines else {}

    def newest_result(self, split: str, step: int | None, checkpoint: str = "") -> EvaluationRow | None:
        """Returns the newest result on a split, preferably with the weights of `step` and `checkpoint`."""
        rows = [row for row in self.results if row.split == split]
        of_weights = [row for row in rows if (row.step, row.checkpoint) == (step, checkpoint)]
        return (of_weights or rows)[-1] if rows else None


def read_history(run: RunDirectory) -> History:
    """Reads the files of a run directory.

    Raises:
      DataError: it is not a run directory, or its config.json or dataset.json is damaged.
    """
    if not run.path.is_dir():
        raise DataError(f"--workdir={run.path}: no such folder. Pass the --workdir of `convoy train`.")
    command, result = run.command, read_json_object(run.result)
    curve = LearningCurve.parsed(read_json_object(run.learning_curve))
    if curve and curve.last.weights_sha256 != result.get("weights_sha256"):  # the run was extended, or replaced
        curve = None
    return History(
        name=run.path.resolve().name,
        config=run.read_config(),
        dataset=run.read_dataset(),
        environment=read_json_object(run.environment),
        command=read_file(command).decode(errors="replace").strip() if command.is_file() else "",
        result=result or None,
        events=[line for line in read_json_lines(run.events) if isinstance(line.get("event"), str)],
        metrics=[line for line in read_json_lines(run.metrics) if _is_of_step(line)],
        results=read_evaluations(run.results_table),
        learning_curve=curve,
    )


def _is_of_step(line: Mapping[str, Any]) -> bool:
    values = (value for name, value in line.items() if name != "split")
    return (
        isinstance(line.get("step"), int)
        and isinstance(line.get("split"), str)
        and all(value is None or isinstance(value, int | float) for value in values)
    )
