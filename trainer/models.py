"""The models by name: two built-ins, everything in `keras.applications`, and a function in a file. All return logits.

    built = build_model("seed42", num_classes=42, image_size=64)
    logits = built.model(built.scale_pixels(images))

Models are written in Keras' own layers, then rebuilt with the fast ones of `trainer.layers`. Their layers are named
explicitly, because checkpoints are keyed by the paths of variables.
"""

import dataclasses
import inspect
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

from input_pipeline.errors import DataError, UsageError, did_you_mean
from trainer.layers import with_fast_layers

_APPLICATIONS = "keras_applications:"


@dataclasses.dataclass(frozen=True)
class BuiltModel:
    """A model and the scaling its input wants.

    Attributes:
      model: maps [batch, size, size, 3] of the compute dtype to logits [batch, num_classes].
      scale_pixels: maps float pixels in [0, 255] to what the model takes.
    """

    model: keras.Model
    scale_pixels: Callable[[tf.Tensor], tf.Tensor]


def build_model(
    name: str, *, num_classes: int, image_size: int, weights: str = "", dropout: float = -1.0
) -> BuiltModel:
    """Builds a model with random weights, or with those of a file.

    Args:
      name: `seed42`, `convnet`, `keras_applications:NAME` (for example `keras_applications:ResNet50`), or
        `FILE.py:FUNCTION`, a function of `num_classes` and `image_size` that returns a Keras model; it sees pixels in
        [0, 1] and returns logits.
      num_classes: 2 or more.
      image_size: side of the square input in pixels.
      weights: a `.weights.h5` file with weights of this very model, in Keras' own layers or ours; random where empty.
      dropout: rate before the last layer of `convnet`, in [0, 1); the model's own where negative.

    Raises:
      UsageError: no such model, or an image too small for it.
      DataError: the weights file is missing or fits another model.
    """
    try:
        if name.startswith(_APPLICATIONS):
            model, scale_pixels = _application(name.removeprefix(_APPLICATIONS), num_classes, image_size)
        elif ".py:" in name:
            model, scale_pixels = _from_file(name, num_classes, image_size), _unit_scale
        elif name in _BUILT_IN:
            model, scale_pixels = _BUILT_IN[name](num_classes, image_size, dropout), _unit_scale
        else:
            raise UsageError(
                f"config.model.name={name!r} is no known model{did_you_mean(name, _BUILT_IN)}. "
                f"Known: {', '.join(_BUILT_IN)}, {_APPLICATIONS}NAME, FILE.py:FUNCTION."
            )
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"config.model.name={name!r} cannot be built for images of {image_size} pixels: {reason}"
        ) from error
    fast = with_fast_layers(model)
    if weights:
        _load_weights(model, fast, weights)
    return BuiltModel(fast, scale_pixels)


def seed42(num_classes: int, image_size: int, dropout: float = -1.0) -> keras.Model:
    """The published 42-category model, unchanged; its softmax is part of the loss.

    11,253,258 parameters at 64x64x3 and 42 classes, 98 % of them in the first Dense layer.
    """
    del dropout  # the published rates are part of the model
    return keras.Sequential(
        [
            layers.Input((image_size, image_size, 3)),
            *_seed_block(1, 32),
            *_seed_block(2, 32),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Dropout(0.25, name="drop1"),
            *_seed_block(3, 64),
            layers.Dropout(0.25, name="drop2"),
            *_seed_block(4, 128),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Dropout(0.25, name="drop3"),
            layers.Flatten(name="flatten"),
            *_seed_dense(1, 512),
            *_seed_dense(2, 128),
            layers.Dense(num_classes, name="logits"),
        ],
        name="seed42",
    )


def convnet(num_classes: int, image_size: int, dropout: float = -1.0) -> keras.Model:
    """The seed's trunk made to generalize.

    Convolutions without bias, batch normalization before ReLU, and global average pooling in place of the
    11-million-weight Dense. Each stage halves the image; the channels grow to 256.
    """
    rate = 0.2 if dropout < 0 else dropout
    inputs = x = layers.Input((image_size, image_size, 3))
    for stage, filters in enumerate((32, 64, 128, 256), start=1):
        for half in ("a", "b"):
            x = _conv_norm_relu(x, filters, f"{stage}{half}")
        if stage < 4:
            x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(rate, name="drop")(x) if rate > 0 else x
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="convnet")


_BUILT_IN = {"seed42": seed42, "convnet": convnet}


def _seed_block(number: int, filters: int) -> list[keras.Layer]:
    return [
        layers.Conv2D(filters, 3, name=f"conv{number}"),
        layers.Activation("relu", name=f"relu{number}"),
        layers.BatchNormalization(name=f"norm{number}"),
    ]


def _seed_dense(number: int, units: int) -> list[keras.Layer]:
    return [
        layers.Dense(units, name=f"dense{number}"),
        layers.Activation("relu", name=f"dense{number}_relu"),
        layers.BatchNormalization(name=f"dense{number}_norm"),
        layers.Dropout(0.5, name=f"dense{number}_drop"),
    ]


def _conv_norm_relu(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"conv{name}")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"norm{name}")(x)
    return layers.Activation("relu", name=f"relu{name}")(x)


def _unit_scale(pixels: tf.Tensor) -> tf.Tensor:
    return pixels / 255.0


def _application(name: str, num_classes: int, image_size: int) -> tuple[keras.Model, Callable]:
    known = {key: value for key, value in vars(keras.applications).items() if inspect.isfunction(value)}
    if name not in known:
        raise UsageError(
            f"config.model.name='{_APPLICATIONS}{name}' is not in keras.applications{did_you_mean(name, known)}."
        )
    model = known[name](
        weights=None,
        include_top=True,
        input_shape=(image_size, image_size, 3),
        classes=num_classes,
        classifier_activation=None,
    )
    # Each family keeps its scaling beside its constructor.
    preprocess = sys.modules[known[name].__module__].preprocess_input
    return model, preprocess


def _from_file(name: str, num_classes: int, image_size: int) -> keras.Model:
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UsageError(f"config.model.name={name!r}: there is no file {path}.")
    try:
        namespace = runpy.run_path(path)
    except Exception as error:
        raise UsageError(f"config.model.name={name!r}: {path} fails: {type(error).__name__}: {error}") from error
    if not callable(namespace.get(function)):
        functions = [key for key, value in namespace.items() if inspect.isfunction(value)]
        raise UsageError(
            f"config.model.name={name!r}: {path} has no function {function}{did_you_mean(function, functions)}."
        )
    try:
        model = namespace[function](num_classes=num_classes, image_size=image_size)
        outputs = model(tf.zeros([1, image_size, image_size, 3]), training=False)  # builds a model that is not yet
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(f"config.model.name={name!r}: {function} fails: {type(error).__name__}: {reason}") from error
    if tuple(outputs.shape) != (1, num_classes):
        raise UsageError(
            f"config.model.name={name!r} gives {list(outputs.shape)} for one image: [1, {num_classes}] is needed."
        )
    return model


def _load_weights(model: keras.Model, fast: keras.Model, weights: str) -> None:
    """Loads a file into `fast`, saved from either: Keras finds weights by their layers' classes."""
    if not Path(weights).is_file():
        raise DataError(f"config.model.weights={weights!r}: no such file.")
    reasons = []
    for loaded in (model, fast):
        try:
            loaded.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            reasons.append(str(error).splitlines()[0])
        else:
            fast.set_weights(loaded.get_weights())
            return
    raise DataError(f"config.model.weights={weights!r} does not fit model {model.name!r}: {reasons[0]}")
