"""A loss of your own: cross-entropy in which images of a wrong label count less.

    convoy train --data=data --workdir=run --config.loss.name=examples/loss.py:generalized_cross_entropy \\
        --config.label_smoothing=0

"Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels" (Zhang and Sabuncu 2018).

A loss takes logits [batch, num_classes] float32 and labels [batch] int32 and returns the loss of each image, [batch]
float32. The training step adds them up. It must depend on each image alone, because every device, and every virtual
replica, has its own part of the batch; and it must give the same result whenever it is called.

Arguments named as fields of `config.loss` get their values, and `label_smoothing` that of the config; without this
argument it must be 0, and the default recipe sets 0.1. A recipe can add fields:

    config.loss.update({"name": "examples/loss.py:generalized_cross_entropy"})
    with config.unlocked():
        config.loss.power = 0.5
"""

import tensorflow as tf


def generalized_cross_entropy(logits, labels, power=0.7):
    """Returns `(1 - p**power) / power`, with the probability p of an image's label; power 0 is cross-entropy."""
    log_probability = tf.gather(tf.nn.log_softmax(logits), labels, batch_dims=1)
    return -tf.math.expm1(power * log_probability) / power
