"""Faster TensorFlow implementations of Keras' batch normalization and dropout.

Both subclass the Keras layer with the same arguments, weights and weight names, so `set_weights` works between models
with either layer (`with_fast_layers`). A `.weights.h5` file does not, since it is keyed by layer class. Cases that the
fast path does not cover fall back to Keras. `tests/trainer/test_layers.py` checks that both agree, forward and
backward.

Why: Keras 3 runs batch normalization on TensorFlow as separate mean, variance and multiply operations (about 40 % of
the seed model's step on a CPU), and dropout draws a 32-bit float for every value.
"""

from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

_PACKAGE = "convoy"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` through TensorFlow's fused kernel.

    The kernel serves inputs `[batch, height, width, channels]` and `[batch, channels]` (seen as 1x1 images),
    normalized over the last axis, in float32, bfloat16 or float16; means and variances are float32. Moving averages
    use the biased variance of the batch, as Keras does (the kernel reports the unbiased one).
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalizes `inputs` with the batch's statistics in training, otherwise with the moving averages."""
        rank = len(inputs.shape)
        use_batch_statistics = bool(training) and self.trainable
        # GPUs have no deterministic kernel for the gradient of a normalization with moving averages.
        has_kernel = use_batch_statistics or not (is_op_determinism_enabled() and tf.config.get_visible_devices("GPU"))
        if (
            not has_kernel
            or mask is not None
            or self.renorm
            or self.synchronized
            or rank not in (2, 4)
            or self.axis not in (-1, rank - 1)
        ):
            return super().call(inputs, training=training, mask=mask)
        images = inputs[:, tf.newaxis, tf.newaxis, :] if rank == 2 else inputs
        channels = inputs.shape[-1]
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels])
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros([channels])
        if use_batch_statistics:
            mean, variance = tf.zeros([0]), tf.zeros([0])
        else:
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        normalized, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=use_batch_statistics,
        )
        if use_batch_statistics:
            count = tf.cast(tf.size(images) // channels, tf.float32)
            biased_variance = batch_variance * ((count - 1) / count)
            self.moving_mean.assign(self.moving_mean * self.momentum + batch_mean * (1.0 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + biased_variance * (1.0 - self.momentum))
        return normalized[:, 0, 0, :] if rank == 2 else normalized


@keras.saving.register_keras_serializable(package=_PACKAGE)
class ByteDropout(keras.layers.Dropout):
    """`keras.layers.Dropout` that draws 8 random bits per value instead of 32.

    Four values share one 32-bit word of the Philox generator, a third of the cost. The rate is rounded to a multiple of
    1/256 (0.25 and 0.5 are exact) and kept values are scaled by the reciprocal of the rounded keep rate, so the
    expectation is exact. The mask is a pure function of the layer's seed state and the input's shape. With a
    `noise_shape` of (None, 1, 1, 1) it is stochastic depth: an image's values are kept or zeroed together.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Zeroes a random share `rate` of `inputs` in training and scales the rest; otherwise returns `inputs`."""
        threshold = round(self.rate * 256)
        if not training or threshold == 0 or threshold == 256:
            return super().call(inputs, training=training)
        seed = tf.bitcast(tf.cast(self.seed_generator.next(), tf.uint32), tf.int32)
        shape = tf.shape(inputs)
        if self.noise_shape is not None:  # 1 where all values along an axis are kept or zeroed together
            shape = tf.stack([shape[k] if side is None else side for k, side in enumerate(self.noise_shape)])
        count = tf.reduce_prod(shape)
        words = tf.random.stateless_uniform(
            [(count + 3) // 4], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        draws = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:count], shape)
        keep = draws >= tf.constant(threshold, tf.uint8)
        scale = tf.constant(256 / (256 - threshold), inputs.dtype)
        return tf.where(keep, inputs * scale, tf.zeros([], inputs.dtype))


_KERAS_LAYERS: dict[type[keras.Layer], type[keras.Layer]] = {
    FusedBatchNormalization: keras.layers.BatchNormalization,
    ByteDropout: keras.layers.Dropout,
}


def with_fast_layers(model: keras.Model) -> keras.Model:
    """Returns `model` rebuilt with the fast layers; names, weights and function are unchanged.

    Args:
      model: a functional or sequential model; subclassed models are returned as they are.
    """
    return _rebuilt(model, {own: fast for fast, own in _KERAS_LAYERS.items()})


def with_keras_layers(model: keras.Model) -> keras.Model:
    """Returns `model` rebuilt with Keras' own layers, for use without Convoy.

    Args:
      model: a model as returned by `with_fast_layers`.
    """
    return _rebuilt(model, _KERAS_LAYERS)


def all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yields a model's layers, including those of nested models."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def inner_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model's layers, including those of nested models and of other layers."""
    return list(model._flatten_layers(include_self=False))


def _rebuilt(model: keras.Model, classes: Mapping[type, type[keras.Layer]]) -> keras.Model:
    def replace(layer: keras.Layer) -> keras.Layer:
        new_class = classes.get(type(layer))
        # Other layers are shared with `model`: some cannot be rebuilt from their config.
        return new_class.from_config(layer.get_config()) if new_class else layer

    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        return model
    rebuilt = keras.models.clone_model(model, clone_function=replace, recursive=True)
    rebuilt.set_weights(model.get_weights())
    return rebuilt
