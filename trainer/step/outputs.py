"""What the logits of a model mean: one class of several, or each class for itself."""

import math

import tensorflow as tf

from convoy.trainer.run.task import Task


def probabilities(logits: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns the class probabilities, [batch, num_classes] float32; those of several labels add up to anything."""
    return tf.sigmoid(logits) if task.multi_label else tf.nn.softmax(logits)


def logits_of_mean(first: tf.Tensor, second: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns logits whose probabilities are the mean of those of two batches of logits."""

    def log_mean(log_probabilities: list[tf.Tensor]) -> tf.Tensor:
        return tf.reduce_logsumexp(tf.stack(log_probabilities), 0) - math.log(2.0)

    both = (first, second)
    if not task.multi_label:
        return log_mean([tf.nn.log_softmax(logits) for logits in both])
    present = log_mean([tf.math.log_sigmoid(logits) for logits in both])
    return present - log_mean([tf.math.log_sigmoid(-logits) for logits in both])
