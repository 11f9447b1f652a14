"""Losses per image, by name: `config.loss.name`.

    @convoy.register_loss("margin")
    def margin(logits, labels): ...

    make_loss(LOSSES.find("margin"), {}, label_smoothing=0.0)(logits, labels)      # [batch] float32

A loss takes logits [batch, num_classes] float32 and labels [batch] int32, and by name any field of `config.loss` and
`label_smoothing`. It returns the loss of each image, [batch] float32. The step adds them up, so a loss must not depend
on the other images of the batch, whose number changes with the virtual replicas.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.registry import Found, Registry, accepted

Loss = Callable[..., tf.Tensor]

LOSSES: Registry[Loss] = Registry(
    "loss",
    field="config.loss.name",
    contract="(logits [batch, num_classes] float32, labels [batch] int32) -> [batch] float32, a pure function of each "
    "image",
)


@LOSSES.register("cross_entropy")
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


@LOSSES.register("bce")
def binary_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the binary cross-entropy of each image: the mean over the classes, each a decision of its own.

    As in "ResNet strikes back" (Wightman, Touvron and Jegou 2021) and the code of its authors, timm. Arguments and
    result are those of `cross_entropy`.
    """
    targets = _smoothed(labels, logits.shape[-1], label_smoothing)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits), -1)


@LOSSES.register("focal")
def focal(logits: tf.Tensor, labels: tf.Tensor, gamma: float = 2.0, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the focal loss of each image, `-(1 - p)**gamma * log(p)` with the probability p of its class.

    Lin et al. 2017, with softmax; class weights are their alpha. With smoothing it is the sum over the classes, each
    times its share of the label, as in Keras. Arguments and result are those of `cross_entropy`, and:

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32.
      gamma: how much less well-classified images count, 0 or more; 0 is cross-entropy.
      label_smoothing: as in `cross_entropy`.
    """
    log_probabilities = tf.nn.log_softmax(logits)
    # Not 0, whose power has an infinite gradient for gamma < 1.
    missing = tf.maximum(-tf.math.expm1(log_probabilities), 1e-7)
    targets = _smoothed(labels, logits.shape[-1], label_smoothing)
    return -tf.reduce_sum(targets * tf.pow(missing, gamma) * log_probabilities, -1)


def make_loss(found: Found[Loss], fields: Mapping[str, Any], label_smoothing: float = 0.0) -> Loss:
    """Returns a function of logits and labels.

    Args:
      found: the loss.
      fields: fields of `config.loss`, of which the loss gets those that it names.
      label_smoothing: as in `cross_entropy`.

    Raises:
      UsageError: it is no function, or has no label smoothing.
    """
    if not callable(found.value):
        raise LOSSES.error(found.name, f"is a {type(found.value).__name__}. Name a function")
    options = accepted(found.value, {**fields, "label_smoothing": label_smoothing})
    if label_smoothing and "label_smoothing" not in options:
        raise UsageError(
            f"config.label_smoothing={label_smoothing}: loss {found.name!r} has no argument label_smoothing. Set "
            "config.label_smoothing=0."
        )
    return functools.partial(found.value, **options) if options else found.value


def weighted(losses: tf.Tensor, labels: tf.Tensor, class_weights: Sequence[float]) -> tf.Tensor:
    """Returns the losses of images, each times the weight of its class; as they are without weights."""
    return losses * tf.gather(tf.constant(class_weights, tf.float32), labels) if class_weights else losses


def _smoothed(labels: tf.Tensor, num_classes: int, label_smoothing: float) -> tf.Tensor:
    """Returns the labels as [batch, num_classes] float32."""
    targets = tf.one_hot(labels, num_classes)
    return (1.0 - label_smoothing) * targets + label_smoothing / num_classes if label_smoothing else targets
