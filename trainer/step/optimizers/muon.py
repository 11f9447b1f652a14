"""Muon: steps that are orthogonal matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

import math

import tensorflow as tf

from convoy.trainer.step.optimizers.built_in import adamw, decay
from convoy.trainer.step.optimizers.optimizer import Optimizer, Slots
from convoy.trainer.step.optimizers.registry import OPTIMIZERS

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEP_RMS = 0.2


@OPTIMIZERS.register("muon")
def muon(
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Muon for the matrices of hidden layers, AdamW for all other weights (`hidden_matrices`).

    A convolution is one matrix, from all inputs of an output pixel to its channels. Steps are scaled to the size of
    those of AdamW (Liu et al. 2025, "Muon is scalable for LLM training"), so that all weights share a learning rate
    and weight decay. So does Keras, which leaves convolutions to AdamW and all layers but named ones to Muon.
    """

    def formula(
        weight: tf.Tensor,
        slots: Slots,
        gradient: tf.Tensor,
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        decays: bool,
    ) -> tuple[tf.Tensor, Slots]:
        del step
        average = slots["momentum"] * momentum + gradient
        direction = gradient + momentum * average if nesterov else average
        matrix = tf.reshape(direction, [math.prod(weight.shape[:-1]), weight.shape[-1]])
        scale = _STEP_RMS * math.sqrt(max(matrix.shape))
        weight = decay(weight, learning_rate, weight_decay, decays)
        weight -= learning_rate * scale * tf.reshape(_orthogonal(matrix), weight.shape)
        return weight, {"momentum": average}

    return Optimizer(("momentum",), formula, others=adamw(beta_1, beta_2, epsilon, weight_decay))


def _orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Returns about the closest matrix with orthogonal rows or columns, through the Newton-Schulz iteration.

    Singular values end between 0.7 and 1.2: the coefficients favor speed over convergence to 1.
    """
    a, b, c = _COEFFICIENTS
    rows, columns = matrix.shape
    wide = tf.transpose(matrix) if rows > columns else matrix
    wide /= tf.norm(wide) + 1e-7
    for _ in range(_ITERATIONS):
        squared = tf.matmul(wide, wide, transpose_b=True)
        wide = a * wide + tf.matmul(b * squared + c * tf.matmul(squared, squared), wide)
    return tf.transpose(wide) if rows > columns else wide
