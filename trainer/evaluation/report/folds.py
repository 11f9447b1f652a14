"""The folds of a cross-validation in its report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.report.history import History, read_history
from convoy.trainer.evaluation.report.plots import Chart, line_chart
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import EvaluationRow
from convoy.trainer.run.task import SINGLE_LABEL

_CURVES = (
    ("Top-1", "quality/top1", True),
    ("Loss", "quality/loss", False),
    ("Macro F1", "quality/macro_f1", True),
    ("Calibration error", "quality/ece", True),
)


@dataclass(frozen=True)
class FoldOfReport:
    """A fold: its number, the number of its images, its run, and the last evaluation of that; None without one."""

    number: int
    images: int
    history: History
    row: EvaluationRow | None


def read_folds(run: RunDirectory) -> list[FoldOfReport]:
    """Returns the folds that have begun; nothing for a single run.

    Raises:
      DataError: a fold's config.json or dataset.json is damaged.
    """
    runs = [(number, RunDirectory(run.fold(number))) for number in range(1, run.folds + 1)]
    return [_read(number, fold) for number, fold in runs if fold.dataset.exists()]


def _read(number: int, run: RunDirectory) -> FoldOfReport:
    history = read_history(run)
    found = next((one for one in predictions.evaluations(run) if one.split == "validation"), None)
    quality = {name: np.nan if value is None else value for name, value in found.quality.items()} if found else {}
    row = EvaluationRow(found.split, found.step, quality) if found else None
    return FoldOfReport(number, history.dataset.get("validation_images", 0), history, row)


def over_folds(folds: Sequence[FoldOfReport]) -> list[tuple[str, Mapping[str, float]]]:
    """Returns title and metrics of the mean and the standard deviation over the folds; nothing before all have some."""
    qualities = [fold.row.quality for fold in folds if fold.row]
    if not 1 < len(qualities) == len(folds):
        return []
    values = {name: [quality[name] for quality in qualities] for name in SINGLE_LABEL.metrics}
    return [
        (title, {name: summary(column) for name, column in values.items()})
        for title, summary in (("mean", statistics.fmean), ("standard deviation", deviation))
    ]


def deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation of two values or more; NaN if one is not finite, with which `stdev` fails."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def fold_curves(folds: Sequence[FoldOfReport]) -> list[tuple[str, Chart]]:
    """Returns title and chart of the folds' validation metrics."""
    charts = []
    for title, tag, percent in _CURVES:
        series = {f"fold {fold.number}": fold.history.curve("validation", tag) for fold in folds}
        if chart := line_chart(series, x_label="step", percent=percent):
            charts.append((title, chart))
    return charts
