"""Quality metrics from additive sums, over a batch, over devices or over a split.

A device adds up `batch_sums(...)`, one float32 vector per batch; `summarize` computes the metrics from the total.
Training and validation use the same two functions, so their curves are comparable.
"""

import math

import numpy as np
import tensorflow as tf

from convoy.core.thresholds import CALIBRATION_BINS


def sums_size(num_classes: int) -> int:
    """Returns the length of the vector that `batch_sums` returns."""
    return 4 + 3 * num_classes + 3 * CALIBRATION_BINS


def batch_sums(logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the contribution of a batch to all quality metrics.

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32 in [0, num_classes).
      losses: [batch] float32, in nats.
      weights: [batch] float32: 1 for an image, 0 for padding; all ones by default.

    Returns:
      [sums_size(num_classes)] float32: loss, top-1 hits, top-5 hits, images; per class true positives, predictions,
      images; per confidence bin images, confidence, hits. Exact up to 2**24 images.
    """
    num_classes = logits.shape[-1]
    weights = tf.ones_like(losses) if weights is None else weights
    predicted = tf.argmax(logits, -1, output_type=tf.int32)
    hits = weights * tf.cast(predicted == labels, tf.float32)
    label_logits = tf.gather(logits, labels, batch_dims=1)
    # Ties go to the lower class number, as in argmax.
    above = tf.reduce_sum(tf.cast(logits > label_logits[:, tf.newaxis], tf.int32), -1)
    ties = (logits == label_logits[:, tf.newaxis]) & (tf.range(num_classes)[tf.newaxis] < labels[:, tf.newaxis])
    top5_hits = weights * tf.cast(above + tf.reduce_sum(tf.cast(ties, tf.int32), -1) < 5, tf.float32)
    confidence = tf.reduce_max(tf.nn.softmax(logits), -1)
    confidence = tf.where(tf.math.is_finite(confidence), confidence, 0.0)
    bins = tf.minimum(tf.cast(confidence * CALIBRATION_BINS, tf.int32), CALIBRATION_BINS - 1)

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
      `loss` in nats; `top1`, `top5`, `macro_f1` (mean over the classes with images or predictions) and
      `ece` (expected calibration error over 15 equal bins, Guo et al. 2017), each in [0, 1].

    Raises:
      ValueError: the sums contain no image.
    """
    sums = np.asarray(sums, np.float64)
    loss, hits, top5_hits, images = sums[:4]
    if images <= 0:
        raise ValueError("no images were counted")
    num_classes = (len(sums) - 4 - 3 * CALIBRATION_BINS) // 3
    true_positives, predictions, actual = sums[4 : 4 + 3 * num_classes].reshape(3, num_classes)
    _, bin_confidence, bin_hits = sums[4 + 3 * num_classes :].reshape(3, CALIBRATION_BINS)
    occurs = predictions + actual > 0
    f1 = 2 * true_positives[occurs] / (predictions + actual)[occurs]
    return {
        "loss": loss / images if math.isfinite(loss) else float("nan"),
        "top1": hits / images,
        "top5": top5_hits / images,
        "macro_f1": float(f1.mean()),
        "ece": float(np.abs(bin_confidence - bin_hits).sum() / images),
    }


def image_count(sums: np.ndarray) -> float:
    """Returns the number of images in the sums."""
    return float(sums[3])
