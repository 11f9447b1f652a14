"""Registers pieces of users by name: losses, metrics, schedules, models and optimizers.

A registered name stands in a config where `FILE.py:NAME` could. A cell of a notebook may register it again: the last
piece counts. Each piece is tried before training, and refused with the reason if it breaks its contract.
"""

from collections.abc import Callable
from typing import Any

Decorator = Callable[[Any], Any]


def register_loss(name: str) -> Decorator:
    """Returns a decorator that makes a function the loss `config.loss.name=NAME`.

    The function takes logits [batch, classes] float32 and labels [batch] int32, and returns the loss of each image,
    [batch] float32. It also gets the fields of `config.loss`, and `label_smoothing`, that it names.

    Args:
      name: without `:` and `,`.

    Raises:
      UsageError: a built-in loss has this name.

    Example:
      @convoy.register_loss("squared_hinge")
      def squared_hinge(logits, labels):
          import tensorflow as tf

          sign = 2.0 * tf.one_hot(labels, logits.shape[-1]) - 1.0
          return tf.reduce_sum(tf.square(tf.nn.relu(1.0 - sign * logits)), -1)

      convoy.load_config("convnet", loss={"name": "squared_hinge"}).loss.name
    """
    from convoy.trainer.step.losses import LOSSES

    return LOSSES.register(name)


def register_metric(name: str) -> Decorator:
    """Returns a decorator that makes a class a metric of `config.metrics`.

    It is made with the number of classes, and has `size`; `batch_sums(logits, labels, losses, weights)`, which returns
    [size] float32 sums without images of weight 0; and `summarize(sums)`, which returns a number from the sums over all
    batches.

    Args:
      name: without `:` and `,`; the metric is `quality/NAME` in TensorBoard.

    Raises:
      UsageError: a built-in metric has this name.

    Example:
      @convoy.register_metric("mean_logit")
      class MeanLogit:
          size = 2

          def __init__(self, num_classes):
              self.num_classes = num_classes

          def batch_sums(self, logits, labels, losses, weights):
              import tensorflow as tf

              return tf.stack([tf.reduce_sum(weights * tf.reduce_mean(logits, -1)), tf.reduce_sum(weights)])

          def summarize(self, sums):
              return sums[0] / sums[1]

      convoy.load_config("convnet", metrics="mcc,mean_logit").metrics
    """
    from convoy.trainer.step.more_metrics import METRICS

    return METRICS.register(name)


def register_schedule(name: str) -> Decorator:
    """Returns a decorator that makes a function the schedule `config.schedule.name=NAME`.

    The function takes step, total_steps and peak and returns the learning rate of a step after warmup. It also gets the
    fields of `config.schedule` that it names.

    Args:
      name: without `:` and `,`.

    Raises:
      UsageError: a built-in schedule has this name.

    Example:
      @convoy.register_schedule("linear")
      def linear(step, total_steps, peak):
          return peak * (1 - step / total_steps)

      convoy.load_config("convnet", schedule={"name": "linear"}).schedule.name
    """
    from convoy.trainer.config.schedules import SCHEDULES

    return SCHEDULES.register(name)


def register_model(name: str) -> Decorator:
    """Returns a decorator that makes a function the model `config.model.name=NAME`.

    The function takes num_classes and image_size and returns a Keras model from RGB pixels [batch, size, size, 3] in
    [0, 1] to logits [batch, num_classes]; or that model and a function that scales pixels from [0, 255].

    Args:
      name: without `:` and `,`.

    Raises:
      UsageError: a built-in model has this name.

    Example:
      @convoy.register_model("linear_classifier")
      def linear_classifier(num_classes, image_size):
          import keras

          layers = [keras.layers.Flatten(), keras.layers.Dense(num_classes, name="logits")]
          return keras.Sequential([keras.Input((image_size, image_size, 3)), *layers])

      convoy.load_config("convnet", model={"name": "linear_classifier"}).model.name
    """
    from convoy.trainer.models import MODELS

    return MODELS.register(name)


def register_optimizer(name: str) -> Decorator:
    """Returns a decorator that makes a function the optimizer `config.optimizer.name=NAME`.

    The function gets the fields of `config.optimizer` that it names, and returns a `convoy.Optimizer`.

    Args:
      name: without `:` and `,`.

    Raises:
      UsageError: a built-in optimizer has this name.

    Example:
      @convoy.register_optimizer("sign_descent")
      def sign_descent(weight_decay):
          import tensorflow as tf

          def formula(weight, slots, gradient, learning_rate, step, decays):
              return weight - learning_rate * tf.sign(gradient), slots

          return convoy.Optimizer((), formula)

      convoy.load_config("convnet", optimizer={"name": "sign_descent"}).optimizer.name
    """
    from convoy.trainer.step.optimizers import OPTIMIZERS

    return OPTIMIZERS.register(name)
