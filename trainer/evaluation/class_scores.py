"""Exact metrics of several labels per image over a whole split: average precision, and F1 at one threshold per class.

    collector = ScoreCollector()
    collector.add(targets, probabilities)                # batch by batch, on each worker its own images
    scores = collector.gather(worker_group)              # the same on every worker
    scores.quality(), scores.thresholds

Workers exchange the probabilities of some classes at a time, because their messages have a limited size.
"""

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation.counts import THRESHOLDS
from convoy.trainer.run.task import DEFAULT_THRESHOLD
from convoy.trainer.step.label_quality import average_precisions, f1_scores, mean_average_precision

_EXCHANGED = 2**20  # probabilities at a time


@dataclass(frozen=True)
class ClassScores:
    """The metrics of each class, all [num_classes].

    Attributes:
      average_precision: float64; NaN for a class without images.
      thresholds: float64, smallest probability that counts as a label.
      hits: int64, images with the class that get it as a label.
      predicted: int64, images that get it as a label.
      actual: int64, images with it.
      histograms: [num_classes, 2, counts.THRESHOLDS] int64: how many images with the class, and how many others, have a
        probability in [k, k + 1) / (THRESHOLDS - 1).
    """

    average_precision: np.ndarray
    thresholds: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray
    histograms: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """F1 of each class, float64; 0 for a class that neither occurs nor is predicted."""
        return 2 * self.hits / np.maximum(1, self.predicted + self.actual)

    @property
    def precision(self) -> np.ndarray:
        """Precision of each class, float64; NaN for a class that is not predicted."""
        return np.divide(self.hits, self.predicted, out=np.full(len(self.hits), np.nan), where=self.predicted > 0)

    @property
    def recall(self) -> np.ndarray:
        """Recall of each class, float64; NaN for a class without images."""
        return np.divide(self.hits, self.actual, out=np.full(len(self.hits), np.nan), where=self.actual > 0)

    def quality(self) -> dict[str, float]:
        """Returns the metrics over all classes by name."""
        micro, macro = f1_scores(self.hits, self.predicted, self.actual)
        return {
            "mean_average_precision": mean_average_precision(self.average_precision),
            "micro_f1": micro,
            "macro_f1": macro,
        }


class ScoreCollector:
    """The targets and probabilities of one worker's images."""

    def __init__(self) -> None:
        """Starts without a batch."""
        self._targets: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []

    def add(self, targets: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch, maybe without images: [n, num_classes] float32 each."""
        self._targets.append(targets > 0.5)
        self._probabilities.append(np.nan_to_num(probabilities))

    def gather(
        self, worker_group: WorkerGroup, thresholds: Sequence[float] | None = None, *, seconds: float | None = None
    ) -> ClassScores:
        """Returns the metrics over the images of all workers, which must all call it at the same point.

        Args:
          worker_group: the workers that evaluated together.
          thresholds: threshold of each class; None chooses those with the highest F1 on these images.
          seconds: how long to wait for the other workers.

        Raises:
          PeerLostError: a worker is gone.
        """
        targets, probabilities = np.concatenate(self._targets), np.concatenate(self._probabilities)
        columns = _all_columns(targets, probabilities, worker_group, seconds)
        given = [None] * targets.shape[1] if thresholds is None else thresholds
        rows = [_of_class(*column, threshold) for column, threshold in zip(columns, given, strict=True)]
        precision, threshold, *counts, histograms = zip(*rows, strict=True)
        hits, predicted, actual = (np.array(count, np.int64) for count in counts)
        return ClassScores(np.array(precision), np.array(threshold), hits, predicted, actual, np.stack(histograms))


def scores_of(targets: np.ndarray, probabilities: np.ndarray, thresholds: Sequence[float]) -> ClassScores:
    """Returns the metrics of images, [n, num_classes] bool and float32, at given thresholds."""
    collector = ScoreCollector()
    collector.add(targets.astype(np.float32), probabilities)
    return collector.gather(WorkerGroup(None), thresholds)


def best_threshold(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the threshold of a class with the highest F1, halfway between two probabilities; 0.5 if it never occurs.

    Of equal ones, the nearest to 0.5.

    Args:
      targets: [n] bool, which images have the class.
      probabilities: [n] float32.
    """
    if not targets.any():
        return DEFAULT_THRESHOLD
    scores, present, absent = _by_score(targets, probabilities)
    f1 = 2 * np.cumsum(present) / (np.cumsum(present + absent) + present.sum())
    halfway = (scores + np.append(scores[1:], 0.0)) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(halfway[best[np.argmin(np.abs(halfway[best] - DEFAULT_THRESHOLD))]])


def _of_class(targets: np.ndarray, probabilities: np.ndarray, threshold: float | None) -> tuple[Any, ...]:
    """Returns the values of `ClassScores` for a class."""
    threshold = best_threshold(targets, probabilities) if threshold is None else threshold
    _, present, absent = _by_score(targets, probabilities)
    (precision,) = average_precisions(present[np.newaxis], absent[np.newaxis])
    predicted = probabilities >= np.float64(threshold)  # not rounded to float32
    bins = (probabilities * (THRESHOLDS - 1)).astype(np.int64)
    histogram = np.stack([np.bincount(bins[chosen], minlength=THRESHOLDS) for chosen in (targets, ~targets)])
    return precision, threshold, np.sum(predicted & targets), predicted.sum(), targets.sum(), histogram


def _by_score(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct probabilities as float64, the highest first, and how many images of each kind have them."""
    scores, place = np.unique(-probabilities.astype(np.float64), return_inverse=True)
    present, absent = (np.bincount(place[chosen], minlength=len(scores)) for chosen in (targets, ~targets))
    return -scores, present, absent


def _all_columns(
    targets: np.ndarray, probabilities: np.ndarray, worker_group: WorkerGroup, seconds: float | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields targets and probabilities of each class for the images of all workers."""
    if worker_group.num_workers == 1:
        yield from zip(targets.T, probabilities.T, strict=True)
        return
    numbers = worker_group.exchange("number of scores", len(targets), seconds=seconds)
    at_once = max(1, _EXCHANGED // max(1, sum(numbers)))
    for start in range(0, targets.shape[1], at_once):
        part = slice(start, start + at_once)
        own = [_packed(np.packbits(targets[:, part])), _packed(probabilities[:, part].astype("<f4"))]
        gathered = worker_group.exchange("scores", own, seconds=seconds)
        classes = targets[:, part].shape[1]
        bits, scores = [], []
        for number, (of_targets, of_probabilities) in zip(numbers, gathered, strict=True):
            unpacked = np.unpackbits(np.frombuffer(_unpacked(of_targets), np.uint8), count=number * classes)
            bits.append(unpacked.reshape(number, classes).astype(bool))
            scores.append(np.frombuffer(_unpacked(of_probabilities), "<f4").reshape(number, classes))
        yield from zip(np.concatenate(bits).T, np.concatenate(scores).T, strict=True)


def _packed(values: np.ndarray) -> str:
    return base64.b85encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 1)).decode("ascii")


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
