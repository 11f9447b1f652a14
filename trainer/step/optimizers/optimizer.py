"""What an optimizer is: its state per weight, and its formula. And which weights get which."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

Slots = dict[str, tf.Tensor]
Formula = Callable[[tf.Tensor, Slots, tf.Tensor, tf.Tensor, tf.Tensor, bool], tuple[tf.Tensor, Slots]]
InPlace = Callable[[tf.Variable, dict[str, tf.Variable], tf.Tensor, tf.Tensor, tf.Tensor, bool], None]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Attributes:
      slots: names of the state of each weight: float32, in the weight's shape, initially zero.
      formula: `(weight, slots, gradient, learning_rate, step, decays) -> (weight, slots)` on float32 values: a pure
        function of TensorFlow operations. `step` is a float32 scalar, 1 at the first update; `decays` is whether weight
        decay applies to this weight.
      in_place: the same on variables, through a fused kernel; None if TensorFlow has no such kernel.
      scalars: those of `slots` that are a single number per weight.
      copies: those of `slots` that begin as a copy of the weight.
      average: the one of `slots` that evaluation uses in place of the weight; empty: evaluation uses the weight.
      others: the optimizer of the weights that are not matrices of hidden layers (`hidden_matrices`); None: this one.

    Example:
      def momentum(weight, slots, gradient, learning_rate, step, decays):
          mean = 0.9 * slots["mean"] + gradient
          return weight - learning_rate * mean, {"mean": mean}

      convoy.Optimizer(slots=("mean",), formula=momentum).slots
    """

    slots: tuple[str, ...]
    formula: Formula
    in_place: InPlace | None = None
    scalars: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    average: str = ""
    others: "Optimizer | None" = None

    def initial(self, slot: str, weight: tf.Tensor) -> tf.Tensor:
        """Returns the initial value of a slot of a weight."""
        if slot in self.copies:
            return weight
        return tf.zeros([] if slot in self.scalars else weight.shape)

    def of_weights(self, weights: Sequence[keras.Variable]) -> "list[Optimizer]":
        """Returns the optimizer of each of a model's weights, in the order of the model."""
        return [self if is_hidden or not self.others else self.others for is_hidden in hidden_matrices(weights)]


def decays_weight(shape: tuple[int, ...]) -> bool:
    """Returns whether weight decay applies to a weight: to kernels, but not to biases and normalizations.

    The latter are the weights with at most one dimension (He et al. 2019, "Bag of tricks", section 3.1).
    """
    return len(shape) > 1


def hidden_matrices(weights: Sequence[keras.Variable]) -> list[bool]:
    """Returns which weights of a model are matrices of hidden layers, in the order of the model.

    These are the kernels of dense layers and 2-D convolutions, without the first one, which takes the images, and the
    last one, which returns the logits. Embeddings, biases, and kernels with one number per channel (depthwise) are not
    matrices.
    """

    def is_matrix(weight: keras.Variable) -> bool:
        shape, name = tuple(weight.shape), weight.path.lower()
        is_other = "embedding" in name or name.endswith("bias")
        return len(shape) in (2, 4) and min(math.prod(shape[:-1]), shape[-1]) > 1 and not is_other

    matrices = [number for number, weight in enumerate(weights) if is_matrix(weight)]
    return [number in matrices[1:-1] for number in range(len(weights))]
