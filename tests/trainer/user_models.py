"""User models for tests, `--config.model.name=tests/trainer/user_models.py:NAME`.

`small` compiles in a second. `hanging` is the same, but makes the input of worker 1 hang, like a dead network disk.
"""

import json
import os
import threading

import keras
import tensorflow as tf
from keras import layers

HANGING_WORKER = 1
_READS = 5  # before it hangs: the first image, then one or more steps per read


def small(num_classes: int, image_size: int) -> keras.Model:
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 5, strides=4, activation="relu", name="conv")(inputs)
    x = layers.Dropout(0.2, name="drop")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small")


def normalized(num_classes: int, image_size: int) -> keras.Model:
    """A backbone with batch norm and stochastic depth, and a head with dropout."""
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 5, strides=4, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.3, noise_shape=(None, 1, 1, 1), name="left_out")(x)
    x = layers.Dropout(0.2, name="drop")(layers.GlobalAveragePooling2D(name="average")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="normalized")


def wide(num_classes: int, image_size: int) -> keras.Model:
    """A model with checkpoints of 2.5 MB."""
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 5, strides=4, activation="relu", name="conv")(inputs)
    x = layers.Dense(512, activation="relu", name="dense")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="wide")


def linear(num_classes: int, image_size: int) -> keras.Model:
    """Two linear layers: each step of SGD multiplies the gradient by about the learning rate."""
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Dense(32, name="dense")(layers.Flatten(name="flatten")(inputs))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="linear")


def pooled(num_classes: int, image_size: int) -> keras.Model:
    """A model whose weights do not depend on the image size."""
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 5, strides=4, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.Activation("relu", name="relu")(layers.BatchNormalization(momentum=0.5, name="norm")(x))
    x = layers.Dropout(0.2, name="drop")(layers.GlobalAveragePooling2D(name="average")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="pooled")


def scaled(num_classes: int, image_size: int) -> keras.Model:
    """A model for images of one size that scales them with weights."""
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.GlobalAveragePooling2D(name="average")(layers.Normalization(name="scaling")(inputs))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="scaled")


def for_any_size(num_classes: int, image_size: int) -> keras.Model:
    """A model for images of any size that its convolutions do not reduce to nothing."""
    inputs = x = layers.Input((None, None, 3))
    for number in range(2):
        x = layers.Conv2D(8, 5, strides=2, name=f"conv{number}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="for_any_size")


class Halved(layers.Layer):
    """A layer defined only in this file."""

    def call(self, inputs):
        return inputs / 2


def with_own_layer(num_classes: int, image_size: int) -> keras.Model:
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 5, strides=4, activation="relu", name="conv")(inputs)
    x = Halved(name="halved")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="with_own_layer")


class Hungry(layers.Layer):
    """A layer whose training needs a tensor of 4 TB."""

    def call(self, inputs, training=False):
        if training:
            inputs *= tf.reduce_max(tf.random.stateless_uniform([2**20, 2**20], seed=[0, 0]))
        return inputs


def hungry(num_classes: int, image_size: int) -> keras.Model:
    inputs = layers.Input((image_size, image_size, 3))
    x = Hungry(name="hungry")(layers.GlobalAveragePooling2D(name="average")(inputs))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="hungry")


def hanging(num_classes: int, image_size: int) -> keras.Model:
    if json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index") == HANGING_WORKER:
        from convoy.input_pipeline.dataset import records

        read, reads = records.checked_payloads, []

        def read_and_hang(frames, *columns, **names):
            reads.append(1)
            if len(reads) > _READS:
                threading.Event().wait()
            return read(frames, *columns, **names)

        records.checked_payloads = read_and_hang
    return small(num_classes, image_size)
