"""Quality metrics from additive sums, over a batch, over devices or over a split.

A device adds up `batch_sums(...)`, one float32 vector per batch; `summarize` computes the metrics from the total.
Training and validation use the same two functions, so their curves are comparable. `MetricSet` adds the metrics of
`config.metrics`, each with sums of its own behind those of this module.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from convoy.core.thresholds import CALIBRATION_BINS
from convoy.trainer.run.task import SINGLE_LABEL, Task


class Metric(Protocol):
    """A metric of users, made with the number of classes. Its sums add up over images, batches and devices.

    Attributes:
      size: length of its vector of sums, 1 or more.
    """

    size: int

    def batch_sums(self, logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Returns the sums of a batch, [size] float32.

        Args:
          logits: [batch, num_classes] float32.
          labels: [batch] int32; [batch, num_classes] float32 with several labels per image.
          losses: [batch] float32, finite where the model's outputs are.
          weights: [batch] float32: 1 for an image, 0 for padding, which must not count.
        """

    def summarize(self, sums: np.ndarray) -> float:
        """Returns the metric from the sums of one or more images, [size] float64."""


class Counts(NamedTuple):
    """The sums of `batch_sums` by name: scalars, then [num_classes] arrays, then [CALIBRATION_BINS] arrays."""

    loss: float
    hits: float
    top5_hits: float
    images: float
    true_positives: np.ndarray
    predictions: np.ndarray
    actual: np.ndarray
    bin_images: np.ndarray
    bin_confidence: np.ndarray
    bin_hits: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray) -> "Counts":
        """Splits [sums_size(num_classes)] sums."""
        sums = np.asarray(sums, np.float64)
        num_classes = (len(sums) - 4 - 3 * CALIBRATION_BINS) // 3
        per_class, per_bin = np.split(sums[4:], [3 * num_classes])
        return cls(*sums[:4].tolist(), *per_class.reshape(3, -1), *per_bin.reshape(3, -1))


class DerivedMetric:
    """A built-in metric that needs no sums but those that every run has."""

    size = 0

    def __init__(self, num_classes: int):
        """Takes the number of classes, as every metric."""

    def from_counts(self, counts: Counts) -> float:
        """Returns the metric."""
        raise NotImplementedError

    def batch_sums(self, logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Implements `Metric`; not called."""
        return tf.zeros([0])

    def summarize(self, sums: np.ndarray) -> float:
        """Implements `Metric`; not called."""
        raise NotImplementedError


def sums_size(num_classes: int) -> int:
    """Returns the length of the vector that `batch_sums` returns."""
    return 4 + 3 * num_classes + 3 * CALIBRATION_BINS


def batch_sums(logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the contribution of a batch to all quality metrics.

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32 in [0, num_classes).
      losses: [batch] float32.
      weights: [batch] float32: 1 for an image, 0 for padding; all ones by default.

    Returns:
      [sums_size(num_classes)] float32: loss, top-1 hits, top-5 hits, images; per class true positives, predictions,
      images; per confidence bin images, confidence, hits. Exact up to 2**24 images.
    """
    num_classes = logits.shape[-1]
    weights = tf.ones_like(losses) if weights is None else weights
    # In int64 and float32: TensorFlow compares and adds int32 on the host, which a GPU would have to wait for.
    labels = tf.cast(labels, tf.int64)
    predicted = tf.argmax(logits, -1)
    hits = weights * tf.cast(predicted == labels, tf.float32)
    label_logits = tf.gather(logits, labels, batch_dims=1)
    # Ties go to the lower class number, as in argmax.
    above = logits > label_logits[:, tf.newaxis]
    lower_classes = tf.constant([*range(num_classes)], tf.int64)[tf.newaxis] < labels[:, tf.newaxis]
    ties = (logits == label_logits[:, tf.newaxis]) & lower_classes
    top5_hits = weights * tf.cast(tf.reduce_sum(tf.cast(above | ties, tf.float32), -1) < 5, tf.float32)
    confidence = tf.reduce_max(tf.nn.softmax(logits), -1)
    confidence = tf.where(tf.math.is_finite(confidence), confidence, 0.0)
    bins = tf.cast(tf.minimum(confidence * CALIBRATION_BINS, CALIBRATION_BINS - 1), tf.int32)

    def per_class(values: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec(tf.one_hot(classes, num_classes, axis=0), values)

    def per_bin(values: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec(tf.one_hot(bins, CALIBRATION_BINS, axis=0), values)

    counted_losses = tf.where(weights > 0, losses * weights, 0.0)  # losses of padding may be NaN
    scalars = [tf.reduce_sum(values) for values in (counted_losses, hits, top5_hits, weights)]
    classes = [per_class(hits, labels), per_class(weights, predicted), per_class(weights, labels)]
    return tf.concat([tf.stack(scalars), *classes, per_bin(weights), per_bin(confidence * weights), per_bin(hits)], 0)


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Returns the quality metrics of all summed batches.

    Args:
      sums: [sums_size(num_classes)] total, preferably float64.

    Returns:
      `loss`, the mean of `losses`; `top1`, `top5`, `macro_f1` (mean over the classes with images or predictions) and
      `ece` (expected calibration error over 15 equal bins, Guo et al. 2017), each in [0, 1].

    Raises:
      ValueError: the sums contain no image.
    """
    counts = Counts.of(sums)
    loss, images = counts.loss, counts.images
    if images <= 0:
        raise ValueError("no images were counted")
    occurs = counts.predictions + counts.actual > 0
    f1 = 2 * counts.true_positives[occurs] / (counts.predictions + counts.actual)[occurs]
    return {
        "loss": loss / images if math.isfinite(loss) else float("nan"),
        "top1": counts.hits / images,
        "top5": counts.top5_hits / images,
        "macro_f1": float(f1.mean()),
        "ece": float(np.abs(counts.bin_confidence - counts.bin_hits).sum() / images),
    }


def image_count(sums: np.ndarray) -> float:
    """Returns the number of images in the sums."""
    return float(sums[3])


class BaseMetrics(Protocol):
    """The metrics of every run with a task. Its sums add up over images, batches and devices."""

    task: Task

    def sums_size(self, num_classes: int) -> int:
        """Returns the length of the vector that `batch_sums` returns."""

    def batch_sums(
        self, logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the contribution of a batch, [sums_size] float32."""

    def summarize(self, sums: np.ndarray) -> dict[str, float]:
        """Returns the metrics of all summed batches, those of `task.metrics`."""

    def image_count(self, sums: np.ndarray) -> float:
        """Returns the number of images in the sums."""


class SingleLabelMetrics:
    """The functions of this module, as `BaseMetrics`."""

    task = SINGLE_LABEL
    sums_size = staticmethod(sums_size)
    batch_sums = staticmethod(batch_sums)
    summarize = staticmethod(summarize)
    image_count = staticmethod(image_count)


class MetricSet:
    """The metrics of every run with a task, and more."""

    def __init__(self, more: Mapping[str, Metric] | None = None, base: BaseMetrics | None = None):
        """Takes further metrics by name, and those of the task, by default one label per image."""
        self._more = dict(more or {})
        self.base = base or SingleLabelMetrics()
        self.task = self.base.task

    @property
    def names(self) -> list[str]:
        """Names of the further metrics."""
        return list(self._more)

    def sums_size(self, num_classes: int) -> int:
        """Returns the length of the vector that `batch_sums` returns."""
        return self.base.sums_size(num_classes) + sum(metric.size for metric in self._more.values())

    def batch_sums(
        self, logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the contribution of a batch, [sums_size] float32: as the function, then that of each other metric."""
        sums = [self.base.batch_sums(logits, labels, losses, weights)]
        own = [metric for metric in self._more.values() if metric.size]
        if own:
            weights = tf.ones_like(losses) if weights is None else weights
            counted_losses = tf.where(weights > 0, losses, 0.0)
            sums += [metric.batch_sums(logits, labels, counted_losses, weights) for metric in own]
        return tf.concat(sums, 0) if own else sums[0]

    def summarize(self, sums: np.ndarray) -> dict[str, float]:
        """Returns the metrics by name; see `summarize`."""
        base, *parts = self._split(np.asarray(sums, np.float64))
        quality = self.base.summarize(base)
        for (name, metric), part in zip(self._more.items(), parts, strict=True):
            if isinstance(metric, DerivedMetric):
                quality[name] = metric.from_counts(Counts.of(base))
            else:
                quality[name] = float(metric.summarize(part))
        return quality

    def restored(self, sums: Sequence[float], num_classes: int, *, same_metrics: bool) -> np.ndarray:
        """Returns the sums of a checkpoint, [sums_size(num_classes)] float64; those of other metrics begin at 0.

        Args:
          sums: as saved; empty for none.
          num_classes: number of classes.
          same_metrics: whether these were the further metrics then.
        """
        total = np.zeros(self.sums_size(num_classes))
        are_these = same_metrics and len(sums) == len(total)
        known = np.array(sums[: None if are_these else self.base.sums_size(num_classes)], np.float64)
        total[: len(known)] = known
        return total

    def _split(self, sums: np.ndarray) -> list[np.ndarray]:
        sizes = [metric.size for metric in self._more.values()]
        return np.split(sums, np.cumsum([len(sums) - sum(sizes), *sizes[:-1]])) if sizes else [sums]
