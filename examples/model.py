"""A model of your own, with its own scaling of pixels.

    convoy train --data=data --workdir=run --config.model.name=examples/model.py:small

The function takes the number of classes and the side of the images and returns a Keras model from RGB pixels
[batch, image_size, image_size, 3] to logits [batch, num_classes], without softmax. Pixels are in [0, 1], unless it
returns a second function that scales them from [0, 255], in arithmetic or `keras.ops`, so that exports contain it.

Name all layers: checkpoints are keyed by their names. Batch normalization sees one virtual replica.
"""

import keras
from keras import layers


def small(num_classes, image_size):
    """Returns a convolutional network of three stages, for images of any size."""
    inputs = x = layers.Input((image_size, image_size, 3), name="pixels")
    for stage, filters in enumerate((16, 32, 64)):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"conv{stage}")(x)
        x = layers.BatchNormalization(name=f"norm{stage}")(x)
        x = layers.Activation("relu", name=f"relu{stage}")(x)
    x = layers.Dropout(0.1, name="drop")(layers.GlobalAveragePooling2D(name="average")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small"), scale_pixels


def scale_pixels(pixels):
    """Maps [0, 255] to [-1, 1]."""
    return pixels / 127.5 - 1.0
