"""Average precision and F1 of several labels per image, from counts. Imports no TensorFlow."""

import numpy as np


def average_precisions(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Returns the average precision of each class, [num_classes] float64; NaN without an image of the class.

    The mean of the precision over the images with the class, each at the threshold of its own score (as
    `sklearn.metrics.average_precision_score`).

    Args:
      present: [num_classes, n] images with the class by score, the highest score first.
      absent: likewise those without it.
    """
    hits, above = np.cumsum(present, 1), np.cumsum(present + absent, 1)
    precision = hits / np.maximum(above, 1)
    total = hits[:, -1]
    return np.divide((precision * present).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def f1_scores(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Returns micro F1, and macro F1: the mean over the classes with images or predictions.

    Args:
      hits: [num_classes] images with the class that are predicted to have it.
      predicted: [num_classes] images that are predicted to have it.
      actual: [num_classes] images with it.
    """
    both = predicted + actual
    occurs = both > 0
    macro = float(np.mean(2 * hits[occurs] / both[occurs])) if occurs.any() else 0.0
    return float(2 * hits.sum() / max(both.sum(), 1)), macro


def mean_average_precision(by_class: np.ndarray) -> float:
    """Returns the mean over the classes with images; 0 if there is none."""
    known = by_class[~np.isnan(by_class)]
    return float(known.mean()) if len(known) else 0.0
