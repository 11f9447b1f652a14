"""Grad-CAM (Selvaraju et al. 2017): where in an image a model finds the evidence for a class.

    grad_cam = GradCam(state, built, image_size=64)
    if not grad_cam.obstacle:
        maps = grad_cam.maps(images, labels)         # [n, k, 64, 64] in [0, 1]

A heat map is the backbone's last feature map, its channels weighted with the mean gradient of the class's logit,
without what speaks against the class. Only the head is differentiated. The model runs in inference on one device, with
the weights that evaluation uses; neither these nor random states are changed.
"""

import numpy as np
import tensorflow as tf

from convoy.core.errors import failure
from convoy.trainer.models import ModelBundle
from convoy.trainer.models.head import split, values_of
from convoy.trainer.step.state import TrainState

_BATCH_SIZE = 32
_LARGEST_FACTOR = 4096  # float16 ends at 65504


class GradCam:
    """Makes heat maps with the current weights.

    Attributes:
      obstacle: why there are none of this model, as a sentence; empty if there are.
    """

    def __init__(self, state: TrainState, built: ModelBundle, image_size: int):
        """Splits the model.

        Args:
          state: the weights.
          built: the model for images of this size.
          image_size: side of the images.
        """
        self._state = state
        self._built = built
        self._size = image_size
        self.obstacle = self._split()

    def _split(self) -> str:
        model = f"model {self._built.model.name!r}"
        try:
            parts = split(self._built.model, before_pooling=True)
        except Exception as error:  # layers of users raise anything
            return f"{model} cannot be split into backbone and head ({failure(error)})."
        if parts is None:
            return f"{model} has no pooling or Flatten between a backbone and a head."
        self._backbone, self._head = parts
        if len(self._backbone.output.shape) != 4:
            return f"{model} has no feature map [height, width, channels] before its head."
        _, height, width, _ = self._backbone.compute_output_shape((1, self._size, self._size, 3))
        if height * width == 1:
            return f"the last feature map of {model} is a single point for images of {self._size} pixels."
        return ""

    def maps(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns heat maps, [n, k, size, size] float32 in [0, 1], each relative to its largest value.

        A map is 0 everywhere if nothing speaks for the class.

        Args:
          images: pixels as the model sees them, [n, size, size, 3] uint8.
          labels: labels of the classes to explain in each image, [n, k].
        """
        variables = [*self._built.model.trainable_variables, *self._built.model.non_trainable_variables]
        weights, others = self._state.evaluated_values()
        value_of = {id(variable): value for variable, value in zip(variables, [*weights, *others], strict=True)}
        batches = [
            self._maps(value_of, tf.constant(images[start:][:_BATCH_SIZE]), tf.constant(labels[start:][:_BATCH_SIZE]))
            for start in range(0, len(images), _BATCH_SIZE)
        ]
        maps = np.nan_to_num(np.concatenate(batches))  # NaN after divergence
        return maps.reshape([*labels.shape, self._size, self._size])

    def _maps(self, value_of: dict[int, tf.Tensor], images: tf.Tensor, labels: tf.Tensor) -> np.ndarray:
        """Returns the heat maps of a batch, [n * k, size, size]."""
        backbone, head = (values_of(part, value_of) for part in (self._backbone, self._head))
        features, _ = self._backbone.stateless_call(*backbone, self._built.inputs(images), training=False)
        features = tf.repeat(features, labels.shape[1], axis=0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(features)
            logits, _ = self._head.stateless_call(*head, features, training=False)
            of_labels = tf.gather(tf.cast(logits, tf.float32), tf.reshape(labels, [-1]), axis=1, batch_dims=1)
            # Average pooling divides the gradient by the number of places, and float16 would round it to 0.
            target = min(features.shape[1] * features.shape[2], _LARGEST_FACTOR) * tf.reduce_sum(of_labels)
        gradient = tf.cast(tape.gradient(target, features), tf.float32)
        importance = tf.reduce_mean(gradient, [1, 2], keepdims=True)
        coarse = tf.nn.relu(tf.reduce_sum(importance * tf.cast(features, tf.float32), -1, keepdims=True))
        fine = tf.image.resize(coarse, [self._size, self._size])[..., 0]
        return tf.math.divide_no_nan(fine, tf.reduce_max(fine, [1, 2], keepdims=True)).numpy()
