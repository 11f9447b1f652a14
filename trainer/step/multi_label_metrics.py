"""Quality metrics of several labels per image from additive sums, for log lines of training.

A device adds up a histogram of the logits of each class, over the images with the class and over those without it.
Evaluations replace what depends on its bins by exact values (`convoy.trainer.evaluation.class_scores`).
"""

import math

import numpy as np
import tensorflow as tf

from convoy.trainer.run.task import MULTI_LABEL
from convoy.trainer.step.label_quality import average_precisions, f1_scores, mean_average_precision

BINS = 80  # even, so that the probability 0.5 is between two bins
_LARGEST_LOGIT = 10.0  # larger ones are in the last bin


class MultiLabelMetrics:
    """The metrics of every run with several labels per image, as `metrics.SingleLabelMetrics` of others."""

    task = MULTI_LABEL

    def sums_size(self, num_classes: int) -> int:
        """Returns the length of the vector that `batch_sums` returns."""
        return 2 + 2 * num_classes * BINS

    def batch_sums(
        self, logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the contribution of a batch to all metrics.

        Args:
          logits: [batch, num_classes] float32.
          labels: [batch, num_classes] float32, 1 for each label, else 0.
          losses: [batch] float32.
          weights: [batch] float32: 1 for an image, 0 for padding; all ones by default.

        Returns:
          [sums_size(num_classes)] float32: loss, images, and by class and bin the images with and without the class.
          Exact up to 2**24 images.
        """
        weights = tf.ones_like(losses) if weights is None else weights
        finite = tf.where(tf.math.is_finite(logits), logits, -_LARGEST_LOGIT)
        places = tf.cast(tf.floor((finite / _LARGEST_LOGIT + 1.0) * (BINS / 2)), tf.int32)
        in_bin = tf.one_hot(tf.clip_by_value(places, 0, BINS - 1), BINS)  # [batch, num_classes, BINS]
        counts = [
            tf.reshape(tf.reduce_sum((weights[:, tf.newaxis] * chosen)[..., tf.newaxis] * in_bin, 0), [-1])
            for chosen in (labels, 1.0 - labels)
        ]
        loss = tf.reduce_sum(tf.where(weights > 0, losses * weights, 0.0))  # losses of padding may be NaN
        return tf.concat([tf.stack([loss, tf.reduce_sum(weights)]), *counts], 0)

    def summarize(self, sums: np.ndarray) -> dict[str, float]:
        """Returns the metrics of all summed batches.

        Returns:
          `loss`, the mean of `losses`; `mean_average_precision`, from the bins; `micro_f1` and `macro_f1` at the
          probability 0.5.

        Raises:
          ValueError: the sums contain no image.
        """
        loss, images = np.asarray(sums[:2], np.float64).tolist()
        if images <= 0:
            raise ValueError("no images were counted")
        present, absent = np.asarray(sums[2:], np.float64).reshape(2, -1, BINS)
        hits, wrong = (counts[:, BINS // 2 :].sum(1) for counts in (present, absent))
        micro, macro = f1_scores(hits, hits + wrong, present.sum(1))
        return {
            "loss": loss / images if math.isfinite(loss) else float("nan"),
            "mean_average_precision": mean_average_precision(average_precisions(present[:, ::-1], absent[:, ::-1])),
            "micro_f1": micro,
            "macro_f1": macro,
        }

    def image_count(self, sums: np.ndarray) -> float:
        """Returns the number of images in the sums."""
        return float(sums[1])
