"""The contract of a model from a user's file, and the checks that a model keeps it.

    def FUNCTION(num_classes, image_size):
        return keras.Model(...)

The model maps pixels [batch, image_size, image_size, 3], float, RGB in [0, 1], to logits [batch, num_classes]: the
values before a softmax. `return keras.Model(...), scale_pixels` instead gives it other pixels: the function maps those
in [0, 255] to the range that the model expects, with arithmetic or `keras.ops`, which an exported model needs too.
Convoy adds the softmax, in the loss and in what it reports. What a violation does is silent:
a model that ends in softmax learns from a flat loss, and one that scales its input again sees black images.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from convoy.core.text import counted
from convoy.trainer.tf_compat.layers import all_layers

CONTRACT = (
    "FUNCTION(num_classes, image_size) returns a Keras model from RGB pixels in [0, 1] to logits [batch, num_classes], "
    "or the model and a function that scales its pixels from [0, 255]"
)
_PASSED_ON = ("Identity", "Cast", "Reshape", "Squeeze", "EnsureShape", "StopGradient")
_SQUASHING = {"Softmax": "softmax", "Sigmoid": "sigmoid"}  # TensorFlow's operations: the activations
_SMALL_SCALE = 1 / 50  # a Rescaling layer with a smaller one expects pixels up to 255
_PROBES = 2


def check_arguments(function: Callable[..., Any]) -> str:
    """Returns why a function cannot be called with `num_classes` and `image_size`, or ""."""
    if not callable(function):
        return f"is a {type(function).__name__}. Name a function"
    try:
        inspect.signature(function).bind(num_classes=2, image_size=32)
    except TypeError:
        return f"takes {inspect.signature(function)}. Its arguments must be num_classes and image_size"
    return ""


def check_inputs(model: Any, image_size: int) -> str:  # noqa: ANN401
    """Returns why what a function returned does not take the images, or "". Subclassed models show it when called."""
    if not isinstance(model, keras.Model):
        hint = " (is a `return` missing?)" if model is None else ""
        return f"returns {'None' if model is None else f'a {type(model).__name__}'}{hint}. Return a keras.Model"
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) > 1:
        return f"returns a model with {len(inputs)} inputs. Use one, Input((image_size, image_size, 3))"
    shape = tuple(inputs[0].shape[1:]) if inputs else (image_size, image_size, 3)
    if len(shape) != 3 or shape[2] not in (3, None):
        return (
            f"returns a model of inputs {_sizes(shape)}. Use Input((image_size, image_size, 3)): pixels are RGB, and a "
            "gray image has three equal channels"
        )
    if any(side not in (image_size, None) for side in shape[:2]):
        return (
            f"returns a model for images of {shape[0]}x{shape[1]} pixels, and config.image_size={image_size}. Use "
            f"Input((image_size, image_size, 3)), or set config.image_size"
        )
    for layer in all_layers(model):
        if getattr(layer, "synchronized", False):
            return (
                f"has synchronized=True in the layer {layer.name!r}. Remove it: the statistics are those of one "
                "virtual replica, and config.virtual_replicas chooses its size on any hardware"
            )
    return ""


def check_scaling(scale_pixels: Callable[[Any], Any], image_size: int) -> str:
    """Returns why a function cannot scale the pixels of a model, or ""."""
    pixels = _pixels(image_size)
    scaled = scale_pixels(pixels)
    if not tf.is_tensor(scaled) or scaled.shape != pixels.shape or not scaled.dtype.is_floating:
        return "returns a scaling that does not return float pixels of the same shape"
    if not np.isfinite(scaled).all():
        return "returns a scaling with results that are NaN or infinite"
    again = tf.concat([scale_pixels(pixels[k : k + 1]) for k in range(_PROBES)], 0)
    if not np.allclose(scaled, again, rtol=1e-4, atol=1e-6):
        return (
            "returns a scaling with other results when it is called again, image by image. It must not depend on "
            "random numbers or on the other images of the batch"
        )
    try:
        scale_pixels(keras.Input((image_size, image_size, 3)))
    except Exception as error:
        return (
            "returns a scaling that an exported Keras model could not contain. Use arithmetic and keras.ops instead of "
            f"tf: {type(error).__name__}"
        )
    return ""


def check_outputs(
    model: keras.Model, scale_pixels: Callable[[tf.Tensor], tf.Tensor], num_classes: int, image_size: int
) -> str:
    """Returns why a model does not return logits that can be trained, or "". Calls it on a few images."""
    pixels = scale_pixels(_pixels(image_size))
    with contextlib.ExitStack() as stack:
        largest = {layer: stack.enter_context(_recorded(layer)) for layer in all_layers(model) if _expects_bytes(layer)}
        outputs = model(pixels, training=False)
    if isinstance(outputs, (list, tuple, dict)):
        return (
            f"returns a model with {counted(len(outputs), 'output')} in a {type(outputs).__name__}. Return the logits "
            "alone"
        )
    if not tf.is_tensor(outputs) or tuple(outputs.shape) != (_PROBES, num_classes):
        shape = f"outputs {_sizes(tuple(outputs.shape[1:]))} per image" if tf.is_tensor(outputs) else type(outputs)
        return f"returns a model with {shape}. Return logits of shape [batch, num_classes={num_classes}]"
    if not model.trainable_weights:
        return f"returns a model of {counted(len(model.weights), 'weight')}, none trainable. Set trainable=True"
    for weight in model.weights:
        if weight.dtype in ("float16", "bfloat16"):
            return (
                f"has weights of {weight.dtype} ({weight.path}). Remove dtype= from the layer: weights are float32, "
                f"and config.precision chooses the type of the computation"
            )
    if squashing := _last_activation(model, image_size):
        return (
            f"returns a model that ends in {squashing}, and training needs logits, the values before it. Remove "
            f'activation="{squashing}" from its last layer'
        )
    for layer, seen in largest.items():
        if seen and max(seen) < 2:
            return (
                f"has the layer {layer.name!r} ({type(layer).__name__}) for pixels in [0, 255], and pixels are in "
                "[0, 1]. Remove it, or put layers.Rescaling(255.0) before it"
            )
    values = tf.cast(outputs, tf.float32).numpy()
    if not np.isfinite(values).all():
        return "returns a model with outputs that are not finite for images of random pixels. Check its layers"
    has_zeros = any(weight.shape.rank > 1 and not np.any(weight.numpy()) for weight in model.trainable_variables)
    if (values == values[0]).all() and not has_zeros:
        return "returns a model with the same outputs for different images. Check its layers"
    return ""


def _pixels(image_size: int) -> tf.Tensor:
    """Returns a few random images, [_PROBES, image_size, image_size, 3] float32 in [0, 255]."""
    pixels = np.random.default_rng(0).random((_PROBES, image_size, image_size, 3), np.float32)
    return tf.constant(255.0 * pixels * np.linspace(1.0, 0.3, _PROBES, dtype=np.float32).reshape(-1, 1, 1, 1))


def _expects_bytes(layer: keras.Layer) -> bool:
    """Returns whether a layer scales pixels from [0, 255], as those in keras.applications do."""
    if isinstance(layer, keras.layers.Rescaling):
        return bool(np.max(np.abs(layer.scale)) < _SMALL_SCALE)
    return isinstance(layer, keras.layers.Normalization) and np.max(np.abs(layer.input_mean or 0)) > 2


@contextlib.contextmanager
def _recorded(layer: keras.Layer) -> Iterator[list[float]]:
    """Yields a list of the largest value in each input of a layer, filled while it is called in the context."""
    seen: list[float] = []
    call = layer.call

    def recording(inputs: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        seen.append(float(tf.reduce_max(tf.cast(inputs, tf.float32))))
        return call(inputs, *arguments, **options)

    with mock.patch.object(layer, "call", recording):
        yield seen


def _last_activation(model: keras.Model, image_size: int) -> str:
    """Returns `softmax` or `sigmoid` if that is the last operation, in the graph of any kind of model; else ""."""
    pixels = tf.TensorSpec([1, image_size, image_size, 3], tf.float32)
    graph = tf.function(lambda images: model(images, training=False), autograph=False).get_concrete_function(pixels)
    operation = graph.outputs[0].op
    while operation.type in _PASSED_ON:
        operation = operation.inputs[0].op
    return _SQUASHING.get(operation.type, "")


def _sizes(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if side is None else str(side) for side in shape)}]"
