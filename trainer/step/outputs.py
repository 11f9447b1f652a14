"""What the logits of a model mean: one class of several, or each class for itself."""

import math
from collections.abc import Sequence

import tensorflow as tf

from convoy.trainer.run.task import Task
from convoy.trainer.run.temperature import SCORE_UNIT, TEMPERATURES


def probabilities(logits: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns the class probabilities, [batch, num_classes] float32; those of several labels add up to anything."""
    return tf.sigmoid(logits) if task.multi_label else tf.nn.softmax(logits)


def logits_of_mean(batches: Sequence[tf.Tensor], task: Task) -> tf.Tensor:
    """Returns logits whose probabilities are the mean of those of one or more batches of logits."""

    def log_mean(log_probabilities: list[tf.Tensor]) -> tf.Tensor:
        return tf.reduce_logsumexp(tf.stack(log_probabilities), 0) - math.log(len(batches))

    if len(batches) == 1:
        return batches[0]
    if not task.multi_label:
        return log_mean([tf.nn.log_softmax(logits) for logits in batches])
    present = log_mean([tf.math.log_sigmoid(logits) for logits in batches])
    return present - log_mean([tf.math.log_sigmoid(-logits) for logits in batches])


def calibrated(logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns logits divided by a temperature; by 1, they are not touched."""
    return logits if temperature == 1.0 else logits * (1.0 / temperature)


def temperature_scores(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns the Brier score of a batch at each temperature, in whole units: their sum is the same in any order.

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32; [batch, num_classes] float32 with several labels per image.
      weights: [batch] float32: 1 for an image, 0 for padding.
      task: what the run predicts.

    Returns:
      [len(TEMPERATURES)] int64, the sum over the images in units of `SCORE_UNIT`. The score of an image is the sum over
      the classes of the square of probability minus label.
    """
    targets = labels if task.multi_label else tf.one_hot(labels, logits.shape[-1])

    def at(temperature: float) -> tf.Tensor:
        scores = tf.reduce_sum((probabilities(calibrated(logits, temperature), task) - targets) ** 2, -1)
        scores = tf.where(tf.math.is_finite(scores), scores, 2.0)
        units = tf.cast(tf.round(scores / SCORE_UNIT), tf.int64)
        return tf.reduce_sum(tf.where(weights > 0, units, 0))

    return tf.stack([at(temperature) for temperature in TEMPERATURES])
