"""The optimizers whose weights all follow one formula, without averaging."""

import tensorflow as tf

from convoy.trainer.step.optimizers.optimizer import Formula, InPlace, Optimizer, Slots
from convoy.trainer.step.optimizers.registry import OPTIMIZERS

_MOMENTS = ("momentum", "velocity")


@OPTIMIZERS.register("adam")
def adam(beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Optimizer:
    """Adam (Kingma and Ba 2015), without weight decay.

    Here and below `beta_1` and `beta_2` are the decay of the moments, in [0, 1), and `epsilon` is added to the
    denominator, above 0.
    """
    return adamw(beta_1, beta_2, epsilon, 0.0)


@OPTIMIZERS.register("adamw")
def adamw(beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7, weight_decay: float = 0.0) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019).

    Weight decay, 0 or more, is decoupled here and below: multiplied by the learning rate, except in lars.
    """
    options = (beta_1, beta_2, epsilon, weight_decay)
    return Optimizer(_MOMENTS, _adam(*options), _adam_in_place(*options))


@OPTIMIZERS.register("sgd")
def sgd(momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0) -> Optimizer:
    """SGD with momentum in [0, 1), Nesterov's by default."""
    options = (momentum, nesterov, weight_decay)
    return Optimizer(("momentum",), _sgd(*options), _sgd_in_place(*options))


@OPTIMIZERS.register("lamb")
def lamb(beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7, weight_decay: float = 0.0) -> Optimizer:
    """LAMB (You et al. 2020)."""
    return Optimizer(_MOMENTS, _lamb(beta_1, beta_2, epsilon, weight_decay))


@OPTIMIZERS.register("lars")
def lars(momentum: float = 0.9, weight_decay: float = 0.0, trust_coefficient: float = 0.001) -> Optimizer:
    """LARS (You et al. 2017).

    `trust_coefficient`, above 0, is the ratio of step norm to weight norm. Weight decay is added to the gradient.
    """
    return Optimizer(("momentum",), _lars(momentum, weight_decay, trust_coefficient))


@OPTIMIZERS.register("lion")
def lion(beta_1: float = 0.9, beta_2: float = 0.99, weight_decay: float = 0.0) -> Optimizer:
    """Lion (Chen et al. 2023).

    `beta_1` is the share of the momentum in a step, and `beta_2` the decay of the momentum, both in [0, 1).
    """

    def formula(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        del step
        direction = tf.sign(slots["momentum"] * beta_1 + gradient * (1.0 - beta_1))
        weight = decay(weight, learning_rate, weight_decay, decays) - learning_rate * direction
        return weight, {"momentum": slots["momentum"] * beta_2 + gradient * (1.0 - beta_2)}

    return Optimizer(("momentum",), formula)


def decay(weight: tf.Tensor, learning_rate: tf.Tensor, weight_decay: float, decays: bool) -> tf.Tensor:
    """Returns a weight after decoupled weight decay."""
    return weight * (1.0 - learning_rate * weight_decay) if weight_decay and decays else weight


def _moments(slots: Slots, gradient: tf.Tensor, beta_1: float, beta_2: float) -> tuple[tf.Tensor, tf.Tensor]:
    momentum = slots["momentum"] + (gradient - slots["momentum"]) * (1.0 - beta_1)
    velocity = slots["velocity"] + (tf.square(gradient) - slots["velocity"]) * (1.0 - beta_2)
    return momentum, velocity


def _adam(beta_1: float, beta_2: float, epsilon: float, weight_decay: float) -> Formula:
    def formula(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        momentum, velocity = _moments(slots, gradient, beta_1, beta_2)
        rate = learning_rate * tf.sqrt(1.0 - tf.pow(beta_2, step)) / (1.0 - tf.pow(beta_1, step))
        weight = decay(weight, learning_rate, weight_decay, decays)
        weight -= rate * momentum / (tf.sqrt(velocity) + epsilon)
        return weight, {"momentum": momentum, "velocity": velocity}

    return formula


def _adam_in_place(beta_1: float, beta_2: float, epsilon: float, weight_decay: float) -> InPlace:
    def in_place(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        if weight_decay and decays:
            weight.assign_sub(weight * (learning_rate * weight_decay))
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=slots["momentum"].handle,
            v=slots["velocity"].handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=learning_rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )

    return in_place


def _sgd(momentum: float, nesterov: bool, weight_decay: float) -> Formula:
    def formula(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        del step
        velocity = slots["momentum"] * momentum - gradient * learning_rate
        weight = decay(weight, learning_rate, weight_decay, decays)
        weight += velocity * momentum - gradient * learning_rate if nesterov else velocity
        return weight, {"momentum": velocity}

    return formula


def _sgd_in_place(momentum: float, nesterov: bool, weight_decay: float) -> InPlace:
    def in_place(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        del step
        if weight_decay and decays:
            weight.assign_sub(weight * (learning_rate * weight_decay))
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=weight.handle,
            accum=slots["momentum"].handle,
            lr=learning_rate,
            grad=gradient,
            momentum=momentum,
            use_nesterov=nesterov,
        )

    return in_place


def _lamb(beta_1: float, beta_2: float, epsilon: float, weight_decay: float) -> Formula:
    def formula(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        momentum, velocity = _moments(slots, gradient, beta_1, beta_2)
        update = (momentum / (1.0 - tf.pow(beta_1, step))) / (
            tf.sqrt(velocity / (1.0 - tf.pow(beta_2, step))) + epsilon
        )
        # As in Keras, decay comes before the update and outside the trust ratio.
        weight = decay(weight, learning_rate, weight_decay, decays)
        weight -= _trust_ratio(tf.norm(weight), tf.norm(update)) * learning_rate * update
        return weight, {"momentum": momentum, "velocity": velocity}

    return formula


def _lars(momentum: float, weight_decay: float, trust_coefficient: float) -> Formula:
    def formula(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        del step
        ratio = 1.0
        if decays:  # biases and normalizations use plain momentum, as in the authors' code
            gradient_norm = tf.norm(gradient) + weight_decay * tf.norm(weight)
            ratio = _trust_ratio(trust_coefficient * tf.norm(weight), gradient_norm)
            gradient += weight_decay * weight
        velocity = slots["momentum"] * momentum + gradient * (learning_rate * ratio)
        return weight - velocity, {"momentum": velocity}

    return formula


def _trust_ratio(weight_norm: tf.Tensor, update_norm: tf.Tensor) -> tf.Tensor:
    usable = (weight_norm > 0.0) & (update_norm > 0.0)
    return tf.where(usable, weight_norm / tf.where(usable, update_norm, 1.0), 1.0)
