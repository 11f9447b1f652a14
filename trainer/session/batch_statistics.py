"""Batch-norm statistics for weights that were never trained, such as the mean of several checkpoints.

    renew_batch_statistics(runtime, layers, training_pixels(split, crop))

As in stochastic weight averaging (Izmailov et al. 2018, `update_bn` in PyTorch): the mean over batches of what each
layer measures while it normalizes with the batch's own statistics. Unlike there, the images are those that evaluation
sees, not augmented, and nothing is dropped: statistics are for inference, and augmented images have others. Images and
batches depend only on the split, and one device computes them, so the result is the same on any hardware.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.session.runtime import Runtime
from convoy.trainer.tf_compat.layers import inner_layers

# A thousand to ten thousand images suffice (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm").
NUM_IMAGES = 2048
_BATCH_SIZE = 128


def layers_to_renew(model: keras.Model, changed: Collection[str]) -> list[keras.layers.BatchNormalization]:
    """Returns the batch-norm layers with statistics in `changed`, the paths of variables: others are frozen."""
    norms = (layer for layer in inner_layers(model) if isinstance(layer, keras.layers.BatchNormalization))
    return [layer for layer in norms if {variable.path for variable in _statistics(layer)} & set(changed)]


def training_pixels(split: Split, crop: Crop) -> Iterator[np.ndarray]:
    """Yields batches [batch, size, size, 3] uint8 of up to `NUM_IMAGES` images, as evaluation sees them.

    They are evenly spaced in the split, and every batch is spread over all of it: it may be sorted by class.
    """
    count = min(split.num_images, NUM_IMAGES)
    numbers = np.arange(count) * split.num_images // count
    batches = -(-count // _BATCH_SIZE)
    with contextlib.closing(Reader(split, crop)) as reader:
        for number in range(batches):
            yield reader.seen(numbers[number::batches])


def renew_batch_statistics(
    runtime: Runtime, layers: Sequence[keras.layers.BatchNormalization], batches: Iterator[np.ndarray]
) -> None:
    """Sets the statistics of layers to those of images, with the weights that evaluation uses.

    Args:
      runtime: the model and its weights.
      layers: batch-norm layers of the model.
      batches: images, as in `training_pixels`.
    """
    state, built = runtime.state, runtime.built
    weights, others = state.evaluated_values()
    statistics = [variable for layer in layers for variable in _statistics(layer)]
    place_of = {id(variable): place for place, variable in enumerate(state.model.non_trainable_variables)}

    @tf.function(autograph=False, reduce_retracing=True)
    def measured(images: tf.Tensor) -> list[tf.Tensor]:
        _, values = built.model.stateless_call(weights, others, built.inputs(images), training=False)
        return [values[place_of[id(variable)]] for variable in statistics]

    total, count = [np.zeros(variable.shape) for variable in statistics], 0
    with _measuring(layers):
        for images in batches:
            count += len(images)
            for sums, values in zip(total, measured(tf.constant(images)), strict=True):
                sums += len(images) * values.numpy().astype(np.float64)
    for variable, sums in zip(statistics, total, strict=True):
        variable.assign((sums / count).astype(np.float32))


def _statistics(layer: keras.layers.BatchNormalization) -> tuple[keras.Variable, keras.Variable]:
    return layer.moving_mean, layer.moving_variance


@contextlib.contextmanager
def _measuring(layers: Sequence[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Makes layers normalize with the batch's statistics and store just these, while all others are in inference."""

    def as_in_training(layer: keras.Layer) -> Any:  # noqa: ANN401 (the layer's own call)
        call = layer.call
        return lambda *arguments, **options: call(*arguments, **{**options, "training": True})

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(mock.patch.object(layer, "call", as_in_training(layer)))
            stack.enter_context(mock.patch.object(layer, "momentum", 0.0))
        yield
