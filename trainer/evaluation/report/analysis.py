"""Error analysis of predictions: metrics per class, confused pairs, calibration, coverage, likely label errors.

    classes = by_class(predictions, num_classes)
    classes.f1[3], confused_pairs(predictions)[0].images
    reliability(predictions), risk_coverage(predictions), likely_label_errors(predictions, num_classes)

Memory never grows with the square of the number of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.thresholds import CALIBRATION_BINS
from convoy.trainer.evaluation.predictions import Predictions

_TRUSTED = 0.8  # accuracy of predictions that may say that a label is wrong
_LEAST_RISE = 0.01  # of top-1

ClassRow = tuple[str, int, float, float, float]  # name, images, precision, recall, F1


@dataclass(frozen=True)
class ByClass:
    """Metrics per class; NaN where the denominator is 0.

    Attributes:
      support: [num_classes] int64: images with this label.
      predicted: [num_classes] int64: images predicted as this class.
      hits: [num_classes] int64: images of this class predicted as it.
    """

    support: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the images predicted as the class that are of it, [num_classes] in [0, 1]."""
        return _share(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Share of the class's images predicted as it, [num_classes] in [0, 1]."""
        return _share(self.hits, self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, [num_classes] in [0, 1]; NaN for a class that does not occur."""
        return _share(2 * self.hits, self.support + self.predicted)

    def rows(self, class_names: Sequence[str], labels: np.ndarray) -> list[ClassRow]:
        """Returns name, number of images, precision, recall and F1 of the classes `labels`, [n] int64."""
        columns = (self.support, self.precision, self.recall, self.f1)
        return [(class_names[label], *(column[label].item() for column in columns)) for label in labels]

    def worst_first(self) -> np.ndarray:
        """Returns the classes that occur by rising F1, ties by falling number of images: [n] int64."""
        order = np.lexsort((-self.support, self.f1))
        return order[~np.isnan(self.f1[order])]

    def most_errors_first(self) -> np.ndarray:
        """Returns the classes that occur by falling number of false negatives and false positives: [n] int64."""
        occurring = self.support + self.predicted
        order = np.argsort(2 * self.hits - occurring, kind="stable")
        return order[occurring[order] > 0]


@dataclass(frozen=True)
class Pair:
    """Images of one class predicted as another: `members` are their indices, the most confident first."""

    label: int
    predicted: int
    members: np.ndarray

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.members)


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence (Guo et al. 2017), in equal bins of confidence; NaN for an empty bin.

    Attributes:
      images: [CALIBRATION_BINS] int64.
      confidence: [CALIBRATION_BINS] float64: mean probability of the predicted class.
      accuracy: [CALIBRATION_BINS] float64.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy, in [-1, 1]."""
        return float(np.nansum(self.images * (self.confidence - self.accuracy)) / self.images.sum())


@dataclass(frozen=True)
class RiskCoverage:
    """Accuracy when the model abstains below a confidence threshold (El-Yaniv & Wiener 2010), by falling threshold.

    Attributes:
      threshold: [n] float32: confidence; each value that occurs, once.
      coverage: [n] float64: share of images at or above the threshold.
      accuracy: [n] float64: accuracy on those images.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    accuracy: np.ndarray

    def at_coverage(self, share: float) -> tuple[float, float, float]:
        """Returns threshold, coverage and accuracy of the smallest coverage that is at least `share`."""
        return self._row(int(np.argmax(self.coverage >= share - 1e-9)))

    def at_accuracy(self, least: float) -> tuple[float, float, float] | None:
        """Returns threshold, coverage and accuracy of the largest coverage with at least this accuracy, if any."""
        reached = np.flatnonzero(self.accuracy >= least)
        return self._row(int(reached[-1])) if len(reached) else None

    def _row(self, place: int) -> tuple[float, float, float]:
        return float(self.threshold[place]), float(self.coverage[place]), float(self.accuracy[place])


def by_class(predictions: Predictions, num_classes: int) -> ByClass:
    """Returns the metrics of each class."""
    label, predicted = predictions.label, predictions.predicted
    counts = (label, predicted, label[predictions.correct])
    return ByClass(*(np.bincount(values, minlength=num_classes) for values in counts))


def confused_pairs(predictions: Predictions) -> list[Pair]:
    """Returns the pairs of label and wrongly predicted class, those with the most images first."""
    wrong = predictions.mistakes()
    keys = predictions.label[wrong].astype(np.int64) << 32 | predictions.predicted[wrong]
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    members = np.split(wrong[order], starts[1:]) if len(found) else []
    pairs = [Pair(int(key >> 32), int(key & 0xFFFFFFFF), of_pair) for key, of_pair in zip(found, members, strict=True)]
    return sorted(pairs, key=lambda pair: -pair.images)


def confusion_matrix(predictions: Predictions, classes: np.ndarray) -> np.ndarray:
    """Returns the confusion matrix of some classes.

    Args:
      predictions: of a split.
      classes: [n] int64: the classes, in the order of rows and columns.

    Returns:
      [n, n + 1] int64: rows are labels, columns are predicted classes; the last column counts all other classes.
    """
    place = np.full(1 + max(predictions.label.max(), predictions.predicted.max(), classes.max()), len(classes))
    place[classes] = np.arange(len(classes))
    rows, columns = place[predictions.label], place[predictions.predicted]
    counts = np.bincount(rows * (len(classes) + 1) + columns, minlength=(len(classes) + 1) ** 2)
    return counts.reshape(len(classes) + 1, -1)[:-1]


def likely_label_errors(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Returns the images whose label is probably wrong, the most likely errors first: [n] int64.

    These are the off-diagonal entries of the confident joint (Northcutt et al. 2021, "Confident Learning"): an image
    confidently belongs to a class if that class's probability reaches its mean over the images with that label. Only
    the predicted class is considered, and only where predictions of at least this probability are nearly always right
    (the lower end of their accuracy's confidence interval is `_TRUSTED`): a model that is often sure and wrong says
    nothing about labels. Ordered by its probability minus that of the label.
    """
    totals = np.bincount(predictions.label, predictions.label_probability, minlength=num_classes)
    thresholds = _share(totals, np.bincount(predictions.label, minlength=num_classes))
    # A class without images has no threshold, and nothing compares to NaN.
    confident = predictions.confidence >= thresholds[predictions.predicted]
    by_confidence = risk_coverage(predictions)
    images = np.rint(by_confidence.coverage * len(predictions.label)).astype(int)
    lows = np.array([interval(round(share * n), n)[0] for share, n in zip(by_confidence.accuracy, images, strict=True)])
    trusted = by_confidence.threshold[lows >= _TRUSTED].min(initial=np.inf)
    found = np.flatnonzero(confident & ~predictions.correct & (predictions.confidence >= trusted))
    margin = predictions.predicted_probability - predictions.label_probability
    return found[np.argsort(-margin[found], kind="stable")]


def reliability(predictions: Predictions) -> Reliability:
    """Returns accuracy by confidence, in the bins of the expected calibration error."""
    confidence = predictions.confidence
    # In float32 like `metrics.batch_sums`, so that an image at a bin's edge falls into the same bin.
    bins = np.minimum((confidence * np.float32(CALIBRATION_BINS)).astype(int), CALIBRATION_BINS - 1)
    images = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = (np.bincount(bins, values, minlength=CALIBRATION_BINS) for values in (confidence, predictions.correct))
    return Reliability(images, *(_share(values, images) for values in sums))


def risk_coverage(predictions: Predictions) -> RiskCoverage:
    """Returns accuracy by coverage."""
    confidence = predictions.confidence
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    answered = last + 1
    return RiskCoverage(confidence[last], answered / len(order), np.cumsum(predictions.correct[order])[last] / answered)


def interval(hits: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the confidence interval of a share (Wilson 1927): that of 95 % for z = 1.96, of 90 % for 1.645."""
    share = hits / images
    center = share + z**2 / (2 * images)
    half = z * np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return float((center - half) / (1 + z**2 / images)), float((center + half) / (1 + z**2 / images))


def difference_interval(first: tuple[float, int], second: tuple[float, int]) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the difference of two shares (Newcombe 1998, method 10).

    Args:
      first: a share in [0, 1], and the number of images that it was measured on.
      second: what is subtracted.
    """
    (low, high), (other_low, other_high) = (
        interval(round(share * images), images) for share, images in (first, second)
    )
    difference = first[0] - second[0]
    below = np.hypot(first[0] - low, other_high - second[0])
    above = np.hypot(high - first[0], second[0] - other_low)
    return float(difference - below), float(difference + above)


def still_improves(top1: np.ndarray, images: int) -> bool:
    """Returns whether a curve rises to its end by more than its noise.

    The last third, of at least 4 evaluations, must have a slope of more than twice its standard error, a rise of more
    than a point and of more than the standard error of one evaluation, and must end at its best, but for half that
    error.

    Args:
      top1: [n] in [0, 1], at equal intervals.
      images: number of images evaluated each time; 0 if unknown.
    """
    tail = top1[-max(4, len(top1) // 3) :]
    if len(top1) < 5:
        return False
    place = np.arange(len(tail)) - (len(tail) - 1) / 2
    slope = (place * tail).sum() / (place**2).sum()
    left = tail - tail.mean() - slope * place
    error = np.sqrt((left**2).sum() / (len(tail) - 2) / (place**2).sum())
    noise = np.sqrt(tail.mean() * (1 - tail.mean()) / images) if images else 0.0
    rise = slope * (len(tail) - 1)
    return bool(slope > 2 * error and rise > max(_LEAST_RISE, noise) and tail[-1] >= top1.max() - noise / 2)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
