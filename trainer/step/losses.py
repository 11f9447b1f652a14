"""Losses per image, by name: `config.loss.name`.

    @convoy.register_loss("margin")
    def margin(logits, labels): ...

    make_loss(LOSSES.find("margin"), {}, label_smoothing=0.0)(logits, labels)      # [batch] float32

A loss takes logits [batch, num_classes] float32 and labels [batch] int32, and by name any field of `config.loss` and
`label_smoothing`. It returns the loss of each image, [batch] float32. The step adds them up, so a loss must not depend
on the other images of the batch, whose number changes with the virtual replicas.

With several labels per image, labels are [batch, num_classes] float32, 1 for each label, else 0. Class weights then
multiply the loss of the images that have the class, inside the loss: its argument `positive_weights`, [num_classes].
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.registry import Found, Registry, accepted
from convoy.trainer.run.task import Task

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
def binary_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0, positive_weights: Sequence[float] = ()
) -> tf.Tensor:
    """Returns the binary cross-entropy of each image: the mean over the classes, each a decision of its own.

    As in "ResNet strikes back" (Wightman, Touvron and Jegou 2021) and the code of its authors, timm. Arguments and
    result are those of `cross_entropy`, also with several labels per image, and:

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32, or [batch, num_classes] float32.
      label_smoothing: as in `cross_entropy`; with several labels per image each class is smoothed on its own, 1 to
        `1 - label_smoothing / 2` and 0 to `label_smoothing / 2`.
      positive_weights: factor of the loss of an image for a class that it has, [num_classes]; empty for 1.
    """
    targets = _smoothed(labels, logits.shape[-1], label_smoothing)
    if positive_weights:
        weights = tf.constant(positive_weights, tf.float32)
        losses = tf.nn.weighted_cross_entropy_with_logits(labels=targets, logits=logits, pos_weight=weights)
    else:
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    return tf.reduce_mean(losses, -1)


@LOSSES.register("focal")
def focal(
    logits: tf.Tensor,
    labels: tf.Tensor,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    positive_weights: Sequence[float] = (),
) -> tf.Tensor:
    """Returns the focal loss of each image, `-(1 - p)**gamma * log(p)` with the probability p of its class.

    Lin et al. 2017, with softmax; class weights are their alpha. With smoothing it is the sum over the classes, each
    times its share of the label, as in Keras. With several labels per image it has a sigmoid as in the paper, and is
    the mean over the classes. Arguments and result are those of `binary_cross_entropy`, and:

    Args:
      logits: [batch, num_classes] float32.
      labels: [batch] int32, or [batch, num_classes] float32.
      gamma: how much less well-classified images count, 0 or more; 0 is cross-entropy.
      label_smoothing: as in `binary_cross_entropy`.
      positive_weights: as in `binary_cross_entropy`.
    """
    if _is_multi_hot(labels):
        targets = _smoothed(labels, logits.shape[-1], label_smoothing)
        present, absent = tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)
        present, absent = (tf.pow(_missing(logs), gamma) * logs for logs in (present, absent))
        present *= tf.constant(positive_weights, tf.float32) if positive_weights else 1.0
        return -tf.reduce_mean(targets * present + (1.0 - targets) * absent, -1)
    log_probabilities = tf.nn.log_softmax(logits)
    targets = _smoothed(labels, logits.shape[-1], label_smoothing)
    return -tf.reduce_sum(targets * tf.pow(_missing(log_probabilities), gamma) * log_probabilities, -1)


def _missing(log_probabilities: tf.Tensor) -> tf.Tensor:
    # Not 0, whose power has an infinite gradient for gamma < 1.
    return tf.maximum(-tf.math.expm1(log_probabilities), 1e-7)


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


def check_for_task(found: Found[Loss], task: Task, *, weighted: bool) -> None:
    """Checks that a loss fits what a run predicts.

    Args:
      found: the loss.
      task: what the run predicts.
      weighted: whether there are class weights.

    Raises:
      UsageError: it is for one label per image, or takes no weights for several.
    """
    if not task.multi_label:
        return
    if found.value is cross_entropy:
        raise UsageError(
            "config.loss.name=cross_entropy: is for one label per image. Set bce or focal for several labels per image."
        )
    if weighted and not accepted(found.value, {"positive_weights": ()}):
        raise UsageError(
            f"config.loss.class_weights: loss {found.name!r} has no argument positive_weights, which several labels "
            "per image need. Set config.loss.class_weights=none."
        )


def losses_of(loss: Loss, logits: tf.Tensor, labels: tf.Tensor, class_weights: Sequence[float] = ()) -> tf.Tensor:
    """Returns the loss of each image, with weights times that of its class, or with `positive_weights`."""
    if not class_weights:
        return loss(logits, labels)
    if _is_multi_hot(labels):
        return loss(logits, labels, positive_weights=tuple(class_weights))
    return loss(logits, labels) * tf.gather(tf.constant(class_weights, tf.float32), labels)


def _is_multi_hot(labels: tf.Tensor) -> bool:
    return len(labels.shape) == 2


def _smoothed(labels: tf.Tensor, num_classes: int, label_smoothing: float) -> tf.Tensor:
    """Returns the labels as [batch, num_classes] float32."""
    if _is_multi_hot(labels):
        return (1.0 - label_smoothing) * labels + label_smoothing / 2 if label_smoothing else labels
    targets = tf.one_hot(labels, num_classes)
    return (1.0 - label_smoothing) * targets + label_smoothing / num_classes if label_smoothing else targets
