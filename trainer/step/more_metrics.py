"""Metrics by name, beyond those that every run has: `config.metrics`.

@convoy.register_metric("mean_margin")
class MeanMargin: ...                   # a `metrics.Metric`

METRICS.find("mcc").value(num_classes)
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from convoy.core.registry import Registry
from convoy.trainer.step.losses import cross_entropy
from convoy.trainer.step.metrics import Counts, DerivedMetric, Metric

METRICS: Registry[Callable[[int], Metric]] = Registry(
    "metric",
    field="config.metrics",
    contract="NAME(num_classes) has size, batch_sums(logits, labels, losses, weights) -> [size] float32, a pure "
    "function whose sums add up over images and leave out those of weight 0, and summarize(sums) -> float",
)


@METRICS.register("balanced_accuracy")
class BalancedAccuracy(DerivedMetric):
    """Mean over the classes with images of the share of their images that are classified correctly (mean recall)."""

    def from_counts(self, counts: Counts) -> float:
        """Returns a number in [0, 1]."""
        occurs = counts.actual > 0
        return float(np.mean(counts.true_positives[occurs] / counts.actual[occurs]))


@METRICS.register("mcc")
class MatthewsCorrelation(DerivedMetric):
    """Matthews correlation coefficient for several classes (Gorodkin 2004): 1 is perfect, 0 as good as chance."""

    def from_counts(self, counts: Counts) -> float:
        """Returns a number in [-1, 1]; 0 if all images or all predictions are of one class."""
        images, predictions, actual = counts.images, counts.predictions, counts.actual
        covariance = counts.hits * images - predictions @ actual
        spread = (images**2 - predictions @ predictions) * (images**2 - actual @ actual)
        return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


class _Mean:
    """The mean of a value per image."""

    size = 2

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def values(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns [batch] float32."""
        raise NotImplementedError

    def batch_sums(self, logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Implements `Metric.batch_sums`."""
        counted = tf.where(weights > 0, weights * self.values(logits, labels), 0.0)
        return tf.stack([tf.reduce_sum(counted), tf.reduce_sum(weights)])

    def summarize(self, sums: np.ndarray) -> float:
        """Implements `Metric.summarize`."""
        return sums[0] / sums[1]


@METRICS.register("brier")
class Brier(_Mean):
    """Brier score: the squared distance of probabilities and label, summed over the classes, in [0, 2]."""

    def values(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns [batch] float32."""
        return tf.reduce_sum(tf.square(tf.nn.softmax(logits) - tf.one_hot(labels, self._num_classes)), -1)


@METRICS.register("nll")
class NegativeLogLikelihood(_Mean):
    """Cross-entropy in nats, whatever the loss is; without label smoothing and class weights."""

    def values(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns [batch] float32."""
        return cross_entropy(logits, labels)


def metric_names(text: str) -> Sequence[str]:
    """Returns the names in `config.metrics`."""
    return [name.strip() for name in text.split(",") if name.strip()]
