"""The files of a run directory as the report reads them, also while the run is in progress or after it was killed.

history = read_history(run)
history.curve("validation", "quality/top1")          # steps and values
history.newest_result("test", step=385)
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.trainer.config.renamed import modernized
from convoy.trainer.run.directory import RunDirectory


@dataclass(frozen=True)
class Result:
    """A row of results.csv: split, step of the weights, and metrics by name."""

    split: str
    step: int
    quality: Mapping[str, float]


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
    """

    name: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    result: Mapping[str, Any] | None
    events: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    results: Sequence[Result]

    @property
    def class_names(self) -> list[str]:
        """The class names, by label."""
        return self.dataset["class_names"]

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

    def newest_result(self, split: str, step: int | None) -> Result | None:
        """Returns the newest result on a split, preferably with the weights of `step`."""
        rows = [row for row in self.results if row.split == split]
        return next(iter([row for row in rows if row.step == step][-1:] or rows[-1:]), None)


def read_history(run: RunDirectory) -> History:
    """Reads the files of a run directory.

    Raises:
      DataError: it is not a run directory, or its config.json or dataset.json is damaged.
    """
    if not run.path.is_dir():
        raise DataError(f"--workdir={run.path}: no such folder. Pass the --workdir of `convoy train`.")
    command = run.command
    return History(
        name=run.path.resolve().name,
        config=modernized(run.read_json(run.config)),
        dataset=run.read_json(run.dataset),
        environment=_json(run.environment) or {},
        command=command.read_text(encoding="utf-8", errors="replace").strip() if command.exists() else "",
        result=_json(run.result),
        events=[line for line in _json_lines(run.events) if "event" in line],
        metrics=[line for line in _json_lines(run.metrics) if {"step", "split"} <= line.keys()],
        results=_results(run.results_table),
    )


def _json(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:  # truncated by a crash, or being written
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def _results(path: Path) -> list[Result]:
    rows: list[Result] = []
    if not path.exists():
        return rows
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                quality = {name: float(row[name]) for name in ("loss", "top1", "top5", "macro_f1", "ece")}
                rows.append(Result(row["split"], int(row["step"]), quality))
            except (ValueError, TypeError, KeyError):  # truncated, as above
                continue
    return rows
