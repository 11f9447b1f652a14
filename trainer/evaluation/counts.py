"""Counts for the pictures and curves of an evaluation, gathered batch by batch and summed over all workers.

    counts = EvaluationCounts(num_classes)
    evaluator.metrics(each=counts.add)
    summary = counts.gather(worker_group)        # the same on every worker
    summary.curves, summary.mistakes

Keeps one number per image (label and prediction) and a histogram of the probabilities per class: enough for a confusion
matrix, precision-recall curves and the most confident errors, in memory that hardly grows with the number of images.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convoy.trainer.cluster.worker_group import WorkerGroup

THRESHOLDS = 101  # of a precision-recall curve, from 0 to 1
MISTAKES = 16
CURVES = 5


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
      probability: of the predicted class.
      index: of the image in the split.
      label: its class.
      predicted: the predicted class.
    """

    probability: float
    index: int
    label: int
    predicted: int

    def caption(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the lines below its picture."""
        confidence = f"confidence {self.probability:.1%}"
        return f"label {names[self.label]}", f"predicted {names[self.predicted]}", confidence


@dataclass(frozen=True)
class EvaluationSummary:
    """The counts of all workers.

    Attributes:
      num_classes: number of classes.
      labels: [pairs] int64; each pair of label and predicted class that occurs, once.
      predicted: [pairs] int64.
      counts: [pairs] int64: number of images per pair.
      curves: by class, -1 for all classes together, [2, THRESHOLDS] int64: how many images of the class, and how many
        others, have a probability in [k, k + 1) / (THRESHOLDS - 1). Only the classes with the lowest F1.
      mistakes: the most confident errors, the most confident first.
    """

    num_classes: int
    labels: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray
    curves: dict[int, np.ndarray]
    mistakes: list[Mistake]


class EvaluationCounts:
    """The counts of one worker."""

    def __init__(self, num_classes: int):
        """Starts with no images."""
        self._num_classes = num_classes
        self._pairs: list[np.ndarray] = []  # label * num_classes + predicted
        self._scores = np.zeros([2, num_classes * THRESHOLDS], np.int64)  # of images of the class, of all images
        self._mistakes: list[Mistake] = []

    def add(self, indices: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch.

        Args:
          indices: [n] int64: the images' indices in the split.
          labels: [n] int32.
          probabilities: [n, num_classes] float32.
        """
        images = np.arange(len(labels))
        probabilities = np.nan_to_num(probabilities)
        predicted = probabilities.argmax(1)
        self._pairs.append(labels.astype(np.int64) * self._num_classes + predicted)
        bins = (probabilities * (THRESHOLDS - 1)).astype(np.int64) + np.arange(self._num_classes) * THRESHOLDS
        for row, chosen in enumerate((bins[images, labels], bins.ravel())):
            self._scores[row] += np.bincount(chosen, minlength=self._scores.shape[1])
        confidences = probabilities[images, predicted]
        wrong = np.flatnonzero(predicted != labels)
        worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:MISTAKES]]
        columns = (column[worst].tolist() for column in (confidences, indices, labels, predicted))
        self._mistakes = _most_confident([*self._mistakes, *(Mistake(*row) for row in zip(*columns, strict=True))])

    def gather(self, worker_group: WorkerGroup, *, seconds: float | None = None) -> EvaluationSummary:
        """Returns the counts of all workers. All must call it at the same point; `add` must not be called after it.

        Args:
          worker_group: the workers that evaluated together.
          seconds: how long to wait for them.

        Raises:
          PeerLostError: a worker is gone.
        """
        classes = self._num_classes
        pairs = np.concatenate([np.zeros(0, np.int64), *self._pairs])
        mistakes = [[m.probability, m.index, m.label, m.predicted] for m in self._mistakes]
        gathered = worker_group.exchange("evaluation counts", [_packed(np.sort(pairs)), mistakes], seconds=seconds)
        codes, counts = np.unique(np.concatenate([_unpacked(packed) for packed, _ in gathered]), return_counts=True)
        labels, predicted = np.divmod(codes, classes)
        worst = _lowest_f1(labels, predicted, counts, classes)

        # [2, classes, THRESHOLDS] as counted, then images of the class and other images
        scores = self._scores.reshape(2, classes, THRESHOLDS)
        scores = np.stack([scores[0], scores[1] - scores[0]])
        rows = np.concatenate([scores.sum(1, keepdims=True), scores[:, worst]], axis=1)
        gathered_rows = worker_group.exchange("precision-recall curves", rows.tolist(), seconds=seconds)
        rows = np.sum(np.array(gathered_rows, np.int64), axis=0)
        return EvaluationSummary(
            classes,
            labels,
            predicted,
            counts,
            {label: rows[:, k] for k, label in enumerate([-1, *worst])},
            _most_confident([Mistake(*row) for _, of_worker in gathered for row in of_worker]),
        )


def _most_confident(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.index))[:MISTAKES]


def _lowest_f1(labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, classes: int) -> list[int]:
    """Returns the classes with the lowest F1 among those that have images, the lowest first."""
    hits = np.bincount(labels, counts * (labels == predicted), classes)
    images, predictions = (np.bincount(column, counts, classes) for column in (labels, predicted))
    f1 = np.where(images > 0, 2 * hits / np.maximum(1, images + predictions), np.inf)
    return np.argsort(f1, kind="stable")[: min(CURVES, np.count_nonzero(images))].tolist()


def _packed(ascending: np.ndarray) -> str:
    """Returns ascending int64 numbers as text, about one byte each: workers exchange JSON."""
    return base64.b85encode(zlib.compress(np.diff(ascending, prepend=0).astype("<i8").tobytes())).decode("ascii")


def _unpacked(packed: str) -> np.ndarray:
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b85decode(packed)), "<i8"))
