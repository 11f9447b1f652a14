"""The architectures of `keras.applications`, each with its input scaling."""

import inspect
import sys
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

from convoy.core.errors import UsageError, did_you_mean
from convoy.trainer.models.head import trace


def application(name: str, num_classes: int, image_size: int) -> tuple[keras.Model, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns a randomly initialized architecture without softmax, and its scaling of float pixels in [0, 255].

    Some families scale inside the model; their function returns the pixels unchanged.

    Args:
      name: name of a constructor in `keras.applications`.
      num_classes: 2 or more.
      image_size: side of the square input in pixels. The model accepts other sizes too if its graph allows it.

    Raises:
      UsageError: unknown architecture.
      ValueError: the image is too small for it.
    """
    constructor = constructor_of(name)
    model = constructor(
        weights=None,
        include_top=True,
        input_shape=(image_size, image_size, 3),
        classes=num_classes,
        classifier_activation=None,
    )
    # Each family defines its scaling in the module of its constructor.
    preprocess = sys.modules[constructor.__module__].preprocess_input
    return _for_any_size(model), preprocess


def constructor_of(name: str) -> Callable[..., keras.Model]:
    """Returns a constructor of `keras.applications` by name. Raises a UsageError if there is none."""
    known = {key: value for key, value in vars(keras.applications).items() if inspect.isfunction(value)}
    if name not in known:
        raise UsageError(
            f"config.model.name='keras_applications:{name}': unknown architecture{did_you_mean(name, known)}."
        )
    return known[name]


def _for_any_size(model: keras.Model) -> keras.Model:
    """Returns the same layers on an input of any size, or `model` itself if some weights depend on the size."""
    images = layers.Input((None, None, 3))
    calls, logits = trace(model, images)
    needs_one_size = any(isinstance(layer, layers.Flatten) and None in outputs.shape[1:] for layer, _, outputs in calls)
    return model if needs_one_size else keras.Model(images, logits, name=model.name)
