"""What the logits of a model mean: one class of several, or each class for itself."""

import math
from collections.abc import Sequence

import tensorflow as tf

from convoy.trainer.run.task import Task


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
