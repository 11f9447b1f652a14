"""What the logits of a model mean: one class of several, or each class for itself."""

import math
from collections.abc import Sequence

import tensorflow as tf

from convoy.trainer.run.task import Task
from convoy.trainer.run.temperature import LOSS_UNIT, NOISES, TEMPERATURES

_LARGEST_LOSS = 1e4


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


def temperature_losses(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns the loss of a batch by `run.temperature`, in whole units: their sum is the same in any order.

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32; [batch, num_classes] float32 with several labels per image.
      weights: [batch] float32: 1 for an image, 0 for padding.
      task: what the run predicts.

    Returns:
      [len(NOISES), len(TEMPERATURES)] int64, the sum over the images in units of `LOSS_UNIT`: the negative logarithm of
      the probability of an image's label, or with several labels of each of them, summed over the classes.
    """
    choices = 2 if task.multi_label else logits.shape[-1]

    def at(log_probability: tf.Tensor, noise: float) -> tf.Tensor:
        if noise:
            # log((1 - noise) * p + noise / choices)
            of_noise = tf.fill(tf.shape(log_probability), math.log(noise / choices))
            log_probability = tf.reduce_logsumexp(tf.stack([log_probability + math.log(1 - noise), of_noise]), 0)
        losses = -tf.reduce_sum(log_probability, -1)
        losses = tf.minimum(tf.where(tf.math.is_finite(losses), losses, _LARGEST_LOSS), _LARGEST_LOSS)
        units = tf.cast(tf.round(losses / LOSS_UNIT), tf.int64)
        return tf.reduce_sum(tf.where(weights > 0, units, 0))

    rows = []
    for temperature in TEMPERATURES:
        scaled = calibrated(logits, temperature)
        if task.multi_label:
            of_label = -tf.nn.sigmoid_cross_entropy_with_logits(labels, scaled)
        else:
            of_label = -tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scaled)[:, tf.newaxis]
        rows.append([at(of_label, noise) for noise in NOISES])
    return tf.transpose(tf.stack([tf.stack(row) for row in rows]))
