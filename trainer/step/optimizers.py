"""Optimizers as pure functions, applied once per step to reduced gradients.

Keras' optimizers cannot be used here: under `tf.distribute` they reduce, clip and check gradients per replica, and
their `stateless_apply` does not support TensorFlow. These are the same formulas, as functions of values
(`tests/trainer/test_optimizers.py` compares each with Keras over several steps):

    optimizer = make_optimizer("adam", beta_1=0.9)
    slots = {slot: zeros for slot in optimizer.slots}
    weight, slots = optimizer.formula(weight, slots, gradient, learning_rate, step)

On a GPU the formulas of all weights compile into one XLA program. On a CPU, Adam, AdamW and SGD run in place through
TensorFlow's fused kernels, in a third of the time (`optimizer.in_place`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from convoy.core.errors import UsageError, did_you_mean

Slots = dict[str, tf.Tensor]
Formula = Callable[[tf.Tensor, Slots, tf.Tensor, tf.Tensor, tf.Tensor, bool], tuple[tf.Tensor, Slots]]
InPlace = Callable[[tf.Variable, dict[str, tf.Variable], tf.Tensor, tf.Tensor, tf.Tensor, bool], None]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Attributes:
      slots: names of the state of each weight: float32, in the weight's shape, initially zero.
      formula: `(weight, slots, gradient, learning_rate, step, decays) -> (weight, slots)` on float32 values. `step`
        is a float32 scalar, 1 at the first update; `decays` is whether weight decay applies to this weight.
      in_place: the same on variables, through a fused kernel; None if TensorFlow has no such kernel.
    """

    slots: tuple[str, ...]
    formula: Formula
    in_place: InPlace | None = None


def make_optimizer(
    name: str,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
) -> Optimizer:
    """Returns the optimizer called `name`.

    Args:
      name: `adam` (Kingma and Ba 2015), `adamw` (Loshchilov and Hutter 2019), `sgd` (with Nesterov momentum
        by default), `lamb` (You et al. 2020) or `lars` (You et al. 2017).
      beta_1: decay of the first moment, in [0, 1); adam, adamw, lamb.
      beta_2: decay of the second moment, in [0, 1); adam, adamw, lamb.
      epsilon: added to the denominator, above 0; adam, adamw, lamb.
      momentum: in [0, 1); sgd, lars.
      nesterov: whether sgd uses Nesterov momentum.
      weight_decay: 0 or more; decoupled (multiplied by the learning rate) for adamw, sgd and lamb; added to the
        gradient for lars.
      trust_coefficient: ratio of step norm to weight norm in lars, above 0.

    Raises:
      UsageError: unknown optimizer.
    """
    moments = ("momentum", "velocity")
    betas = (beta_1, beta_2, epsilon)
    optimizers = {
        "adam": Optimizer(moments, _adam(*betas, 0.0), _adam_in_place(*betas, 0.0)),
        "adamw": Optimizer(moments, _adam(*betas, weight_decay), _adam_in_place(*betas, weight_decay)),
        "sgd": Optimizer(
            ("momentum",), _sgd(momentum, nesterov, weight_decay), _sgd_in_place(momentum, nesterov, weight_decay)
        ),
        "lamb": Optimizer(moments, _lamb(*betas, weight_decay)),
        "lars": Optimizer(("momentum",), _lars(momentum, weight_decay, trust_coefficient)),
    }
    if name not in optimizers:
        raise UsageError(
            f"config.optimizer.name={name!r}: unknown optimizer{did_you_mean(name, optimizers)}. "
            f"Set one of {', '.join(optimizers)}."
        )
    return optimizers[name]


def _decay(weight: tf.Tensor, learning_rate: tf.Tensor, weight_decay: float, decays: bool) -> tf.Tensor:
    return weight * (1.0 - learning_rate * weight_decay) if weight_decay and decays else weight


def _moments(slots: Slots, gradient: tf.Tensor, beta_1: float, beta_2: float) -> tuple[tf.Tensor, tf.Tensor]:
    momentum = slots["momentum"] + (gradient - slots["momentum"]) * (1.0 - beta_1)
    velocity = slots["velocity"] + (tf.square(gradient) - slots["velocity"]) * (1.0 - beta_2)
    return momentum, velocity


def _adam(beta_1: float, beta_2: float, epsilon: float, weight_decay: float) -> Formula:
    def formula(weight, slots, gradient, learning_rate, step, decays):  # noqa: ANN001
        momentum, velocity = _moments(slots, gradient, beta_1, beta_2)
        rate = learning_rate * tf.sqrt(1.0 - tf.pow(beta_2, step)) / (1.0 - tf.pow(beta_1, step))
        weight = _decay(weight, learning_rate, weight_decay, decays)
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
        weight = _decay(weight, learning_rate, weight_decay, decays)
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
        weight = _decay(weight, learning_rate, weight_decay, decays)
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


def decays_weight(shape: tuple[int, ...]) -> bool:
    """Returns whether weight decay applies to a weight: to kernels, but not to biases and normalizations.

    The latter are the weights with at most one dimension (He et al. 2019, "Bag of tricks", section 3.1).
    """
    return len(shape) > 1
