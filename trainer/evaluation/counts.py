"""What a model got right and wrong in one evaluation, counted batch by batch and put together over all workers.

    judgements = EvaluationCounts(num_classes)
    evaluator.metrics(each=judgements.add)
    gathered = judgements.of_all(peers)          # the same on every worker
    gathered.confusion, gathered.curves, gathered.mistakes

Of every image its label and its prediction are kept, of all probabilities their counts a class: enough for a confusion
matrix, precision-recall curves and the worst mistakes, in memory that hardly grows with the number of images.
"""

import base64
import zlib
from dataclasses import dataclass

import numpy as np

from convoy.trainer.callbacks.tensorboard.summaries import THRESHOLDS
from convoy.trainer.cluster.worker_group import WorkerGroup

MISTAKES = 16
_CURVES = 5


@dataclass(frozen=True)
class Mistake:
    """An image that was classified wrongly: its number in the split, its label, and what was said with what share."""

    probability: float
    index: int
    label: int
    predicted: int


@dataclass(frozen=True)
class EvaluationSummary:
    """What all workers found together.

    Attributes:
      num_classes: how many classes there are.
      labels: [pairs] int64; with `predicted` each pair that occurs, once.
      predicted: [pairs] int64.
      counts: [pairs] int64: how many images of that label were predicted so.
      curves: by class, -1 for all together, [2, THRESHOLDS] int64: how many images of the class, and how many others,
        got a probability in [k, k + 1) / (THRESHOLDS - 1). Those of the classes with the lowest F1.
      mistakes: the most confident ones, the worst first.
    """

    num_classes: int
    labels: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray
    curves: dict[int, np.ndarray]
    mistakes: list[Mistake]


class EvaluationCounts:
    """One worker's part."""

    def __init__(self, num_classes: int):
        """Starts with no images."""
        self._num_classes = num_classes
        self._pairs: list[np.ndarray] = []  # label * num_classes + predicted
        self._scores = np.zeros([2, num_classes * THRESHOLDS], np.int64)  # of images of the class, of all
        self._mistakes: list[Mistake] = []

    def add(self, indices: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds images: their numbers in the split [n], labels [n], and probabilities [n, num_classes]."""
        images = np.arange(len(labels))
        probabilities = np.nan_to_num(probabilities)
        predicted = probabilities.argmax(1)
        self._pairs.append(labels.astype(np.int64) * self._num_classes + predicted)
        places = (probabilities * (THRESHOLDS - 1)).astype(np.int64) + np.arange(self._num_classes) * THRESHOLDS
        for row, chosen in enumerate((places[images, labels], places.ravel())):
            self._scores[row] += np.bincount(chosen, minlength=self._scores.shape[1])
        confidences = probabilities[images, predicted]
        wrong = np.flatnonzero(predicted != labels)
        worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:MISTAKES]]
        columns = (column[worst].tolist() for column in (confidences, indices, labels, predicted))
        self._mistakes = _worst([*self._mistakes, *(Mistake(*row) for row in zip(*columns, strict=True))])

    def of_all(self, worker_group: WorkerGroup, *, seconds: float | None = None) -> EvaluationSummary:
        """Returns what all workers counted. All must call it at the same point; none adds anything after it.

        Args:
          worker_group: the workers that evaluated together.
          seconds: how long to wait for them.

        Raises:
          PeerLostError: one is gone.
        """
        classes = self._num_classes
        pairs = np.concatenate([np.zeros(0, np.int64), *self._pairs])
        mistakes = [[m.probability, m.index, m.label, m.predicted] for m in self._mistakes]
        gathered = worker_group.exchange("judgements", [_packed(np.sort(pairs)), mistakes], seconds=seconds)
        codes, counts = np.unique(np.concatenate([_unpacked(packed) for packed, _ in gathered]), return_counts=True)
        labels, predicted = np.divmod(codes, classes)
        worst = _lowest_f1(labels, predicted, counts, classes)

        # [2, classes, THRESHOLDS] as they were counted, then images of the class and others
        scores = self._scores.reshape(2, classes, THRESHOLDS)
        scores = np.stack([scores[0], scores[1] - scores[0]])
        rows = np.concatenate([scores.sum(1, keepdims=True), scores[:, worst]], axis=1)
        everyones_rows = worker_group.exchange("precision-recall curves", rows.tolist(), seconds=seconds)
        rows = np.sum(np.array(everyones_rows, np.int64), axis=0)
        return EvaluationSummary(
            classes,
            labels,
            predicted,
            counts,
            {name: rows[:, k] for k, name in enumerate([-1, *worst])},
            _worst([Mistake(*row) for _, theirs in gathered for row in theirs]),
        )


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.index))[:MISTAKES]


def _lowest_f1(labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, classes: int) -> list[int]:
    """Returns the classes with the lowest F1 of those that have images, the worst first."""
    hits = np.bincount(labels, counts * (labels == predicted), classes)
    images, predictions = (np.bincount(column, counts, classes) for column in (labels, predicted))
    f1 = np.where(images > 0, 2 * hits / np.maximum(1, images + predictions), np.inf)
    return np.argsort(f1, kind="stable")[: min(_CURVES, np.count_nonzero(images))].tolist()


def _packed(ascending: np.ndarray) -> str:
    """Returns ascending int64 numbers as text, about a byte each: what travels between workers is JSON."""
    return base64.b85encode(zlib.compress(np.diff(ascending, prepend=0).astype("<i8").tobytes())).decode("ascii")


def _unpacked(packed: str) -> np.ndarray:
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b85decode(packed)), "<i8"))
