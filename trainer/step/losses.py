"""Losses per image."""

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the softmax cross-entropy of each image in nats.

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32.
      label_smoothing: share of a label's mass spread evenly over all classes, in [0, 1) (Szegedy et al. 2016).

    Returns:
      [batch] float32.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if label_smoothing:
        log_probabilities = tf.nn.log_softmax(logits)
        losses = (1.0 - label_smoothing) * losses - label_smoothing * tf.reduce_mean(log_probabilities, -1)
    return losses
