"""What predictions tell: by class, which class is taken for which, when to believe the model, what to look at.

    classes = by_class(predictions, num_classes)
    classes.f1[3], confused_pairs(predictions)[0].images
    reliability(predictions), risk_coverage(predictions), likely_label_errors(predictions, num_classes)

Nothing here grows with the square of the number of classes.
"""

from dataclasses import dataclass

import numpy as np

from convoy.core.thresholds import CALIBRATION_BINS
from convoy.trainer.evaluation.predictions import Predictions


@dataclass(frozen=True)
class ByClass:
    """Quality of each class; NaN where there is nothing to divide by.

    Attributes:
      support: [num_classes] int64: images with this label.
      predicted: [num_classes] int64: images taken for this class.
      hits: [num_classes] int64: both.
    """

    support: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Which share of the images taken for the class are of it, [num_classes] in [0, 1]."""
        return _share(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Which share of the class's images are found, [num_classes] in [0, 1]."""
        return _share(self.hits, self.support)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of the two, [num_classes] in [0, 1]; NaN where the class does not occur at all."""
        return _share(2 * self.hits, self.support + self.predicted)

    def worst_first(self) -> np.ndarray:
        """Returns the classes that occur, the lowest F1 first, of equals the larger class: [n] int64."""
        order = np.lexsort((-self.support, self.f1))
        return order[~np.isnan(self.f1[order])]

    def most_errors_first(self) -> np.ndarray:
        """Returns the classes that occur by how many images were missed or wrongly taken for them: [n] int64."""
        occurring = self.support + self.predicted
        order = np.argsort(2 * self.hits - occurring, kind="stable")
        return order[occurring[order] > 0]


@dataclass(frozen=True)
class Pair:
    """Images of one class that were taken for another, the most confident first: `members` are places in the split."""

    label: int
    predicted: int
    members: np.ndarray

    @property
    def images(self) -> int:
        """How many."""
        return len(self.members)


@dataclass(frozen=True)
class Reliability:
    """How often the model is right by how sure it is (Guo et al. 2017), in bins of confidence; NaN where one is empty.

    Attributes:
      images: [CALIBRATION_BINS] int64.
      confidence: [CALIBRATION_BINS]: mean probability of the predicted class.
      accuracy: [CALIBRATION_BINS].
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def overconfidence(self) -> float:
        """By how much the mean confidence is above the accuracy, in [-1, 1]."""
        return float(np.nansum(self.images * (self.confidence - self.accuracy)) / self.images.sum())


@dataclass(frozen=True)
class RiskCoverage:
    """What answering only the images it is most sure of gives (El-Yaniv & Wiener 2010), the surest first.

    Attributes:
      threshold: [n]: of confidence; images that share one are answered together.
      coverage: [n]: the share of images at or above it.
      accuracy: [n]: of them.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    accuracy: np.ndarray

    def at_coverage(self, share: float) -> tuple[float, float, float]:
        """Returns threshold, coverage and accuracy where at least this share of the images is answered."""
        return self._row(int(np.argmax(self.coverage >= share - 1e-9)))

    def at_accuracy(self, least: float) -> tuple[float, float, float] | None:
        """Returns the row of the largest coverage that has at least this accuracy, where there is one."""
        reached = np.flatnonzero(self.accuracy >= least)
        return self._row(int(reached[-1])) if len(reached) else None

    def _row(self, place: int) -> tuple[float, float, float]:
        return tuple(float(values[place]) for values in (self.threshold, self.coverage, self.accuracy))


def by_class(predictions: Predictions, num_classes: int) -> ByClass:
    """Returns the quality of each class."""
    label, predicted = predictions.label, predictions.predicted
    counts = (label, predicted, label[predictions.correct])
    return ByClass(*(np.bincount(values, minlength=num_classes) for values in counts))


def confused_pairs(predictions: Predictions) -> list[Pair]:
    """Returns which class was taken for which other one, the most images first."""
    wrong = mistakes(predictions)
    keys = predictions.label[wrong].astype(np.int64) << 32 | predictions.predicted[wrong]
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    members = np.split(wrong[order], starts[1:]) if len(found) else []
    pairs = [Pair(int(key >> 32), int(key & 0xFFFFFFFF), of_pair) for key, of_pair in zip(found, members, strict=True)]
    return sorted(pairs, key=lambda pair: -pair.images)


def confusion_matrix(predictions: Predictions, classes: np.ndarray) -> np.ndarray:
    """Counts the images of some classes by what they were taken for.

    Args:
      predictions: of a split.
      classes: [n] int64: which, in the order of rows and columns.

    Returns:
      [n, n + 1] int64: a row a label, a column a predicted class; the last one is every other class.
    """
    place = np.full(1 + max(predictions.label.max(), predictions.predicted.max(), classes.max()), len(classes))
    place[classes] = np.arange(len(classes))
    rows, columns = place[predictions.label], place[predictions.predicted]
    counts = np.bincount(rows * (len(classes) + 1) + columns, minlength=(len(classes) + 1) ** 2)
    return counts.reshape(len(classes) + 1, -1)[:-1]


def mistakes(predictions: Predictions) -> np.ndarray:
    """Returns the images that were classified wrongly, the most confident first: [n] int64."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-_confidence(predictions)[wrong], kind="stable")]


def likely_label_errors(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Returns the images whose labels the model confidently disagrees with, the most likely errors first: [n] int64.

    These are the off-diagonal entries of the confident joint (Northcutt et al. 2021, "Confident Learning"): an image is
    confidently of a class when that class's probability reaches its mean over the images labelled so. The predicted
    class is the only other one looked at, since its probability is the largest. Ordered by how far the label's
    probability lies below it.
    """
    totals = np.bincount(predictions.label, predictions.label_probability, minlength=num_classes)
    thresholds = _share(totals, np.bincount(predictions.label, minlength=num_classes))
    # A class without images has no threshold, and nothing compares to NaN.
    confident = _confidence(predictions) >= thresholds[predictions.predicted]
    found = np.flatnonzero(confident & ~predictions.correct)
    margin = predictions.predicted_probability - predictions.label_probability
    return found[np.argsort(-margin[found], kind="stable")]


def reliability(predictions: Predictions) -> Reliability:
    """Returns accuracy by confidence, in the bins that the expected calibration error is made of."""
    confidence = _confidence(predictions)
    # In float32, as `metrics.batch_sums` does it: an image at a bin's edge falls into the same bin.
    bins = np.minimum((confidence * np.float32(CALIBRATION_BINS)).astype(int), CALIBRATION_BINS - 1)
    images = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = (np.bincount(bins, values, minlength=CALIBRATION_BINS) for values in (confidence, predictions.correct))
    return Reliability(images, *(_share(values, images) for values in sums))


def risk_coverage(predictions: Predictions) -> RiskCoverage:
    """Returns accuracy by the share of images that are answered."""
    confidence = _confidence(predictions)
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    answered = last + 1
    return RiskCoverage(confidence[last], answered / len(order), np.cumsum(predictions.correct[order])[last] / answered)


def interval(hits: int, images: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / images
    centre = share + z**2 / (2 * images)
    half = z * np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return float((centre - half) / (1 + z**2 / images)), float((centre + half) / (1 + z**2 / images))


def _confidence(predictions: Predictions) -> np.ndarray:
    return np.nan_to_num(predictions.predicted_probability)  # a model that has diverged says NaN


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
