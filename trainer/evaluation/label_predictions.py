"""Predictions of several labels per image, and RUN/predictions_SPLIT.csv of them: a column per class.

    predictions = collector.predictions(filenames)
    save(run, evaluation, predictions, class_names, label_delimiter=" ")       # of `predictions`
    predictions = load(run, evaluation, decision)

The columns are `index`, `filename`, `labels`, `predicted` and `correct`, then one with the probability of each class.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.core.reading import read_file
from convoy.core.text import counted
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation.predictions import Evaluation, Table, cell, mismatch
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.task import Decision

COLUMNS = ("index", "filename", "labels", "predicted", "correct")
_DIGITS = 9  # significant ones, which restore a float32


@dataclass(frozen=True)
class LabelPredictions:
    """The predictions for every image of a split, in the split's order.

    Attributes:
      filename: file name in the record; empty if it has none.
      targets: [n, num_classes] bool: the labels.
      probabilities: [n, num_classes] float32.
    """

    filename: Sequence[str]
    targets: np.ndarray
    probabilities: np.ndarray

    def predicted(self, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns which classes each image gets as labels, [n, num_classes] bool."""
        return self.probabilities >= np.asarray(thresholds)

    def table(self, decision: Decision) -> Table:
        """Returns header and rows of RUN/predictions_SPLIT.csv."""
        return [*COLUMNS, *map(cell, decision.class_names)], self._rows(decision)

    def _rows(self, decision: Decision) -> Iterator[Sequence[Any]]:
        predicted = self.predicted(decision.thresholds or ())
        for i, filename in enumerate(self.filename):
            texts = [
                decision.delimiter.join(decision.class_names[label] for label in np.flatnonzero(chosen[i]).tolist())
                for chosen in (self.targets, predicted)
            ]
            correct = int((self.targets[i] == predicted[i]).all())
            numbers = [float(f"{value:.{_DIGITS}g}") for value in self.probabilities[i]]
            yield [i, cell(filename), *map(cell, texts), correct, *numbers]


class Collector:
    """Collects the predictions of an evaluation: pass it as `Evaluator.metrics(each=...)`."""

    def __init__(self) -> None:
        """Starts with no images."""
        self._batches: list[tuple[np.ndarray, ...]] = []

    def __call__(self, index: np.ndarray, targets: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch: indices in the split [batch], targets and probabilities, each [batch, num_classes]."""
        self._batches.append((index, targets > 0.5, probabilities))

    def predictions(self, filename: Sequence[str], worker_group: WorkerGroup | None = None) -> LabelPredictions:
        """Returns the predictions once all images were added, by this process; as `predictions.Collector`."""
        assert not worker_group or worker_group.num_workers == 1
        index, *columns = (np.concatenate(column) for column in zip(*self._batches, strict=True))
        order = np.argsort(index)
        return LabelPredictions(filename, *(column[order] for column in columns))


def load(run: RunDirectory, evaluation: Evaluation, decision: Decision) -> LabelPredictions:
    """Reads RUN/predictions_SPLIT.csv, even if a spreadsheet has sorted it.

    Raises:
      DataError: it cannot be read, or does not match the evaluation.
    """
    try:
        text = read_file(run.predictions(evaluation.split)).decode("utf-8-sig")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        if len(header) != len(COLUMNS) + len(decision.class_names) or tuple(header[: len(COLUMNS)]) != COLUMNS:
            raise ValueError(f"it has {counted(len(header), 'column')}")
        rows.sort(key=lambda row: int(row[0]))
        if len(rows) != evaluation.images or [int(row[0]) for row in rows] != list(range(len(rows))):
            raise ValueError(f"it has {counted(len(rows), 'row')} for {counted(evaluation.images, 'image')}")
        targets = np.zeros([len(rows), len(decision.class_names)], bool)
        label_of = {name: label for label, name in enumerate(decision.class_names)}
        for i, row in enumerate(rows):
            names = row[2].removeprefix("'")
            for name in names.split(decision.delimiter) if names else ():
                targets[i, label_of[name]] = True
        probabilities = np.array([row[len(COLUMNS) :] for row in rows], np.float32)
        return LabelPredictions([row[1].removeprefix("'") for row in rows], targets, probabilities)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise mismatch(run, evaluation, error) from None
