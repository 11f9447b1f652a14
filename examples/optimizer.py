"""An optimizer of your own: AdaBelief (Zhuang et al. 2020), Adam whose steps are small where gradients surprise.

    convoy train --data=data --workdir=run --config.optimizer.name=examples/optimizer.py:adabelief

The factory gets the fields of config.optimizer that it names; a field that is not in a config gets its default here. It
returns the names of the state that each weight has, and a formula. Convoy calls the formula once per step and weight,
with the mean gradient of the global batch, on every device alike. So it must be a pure function of its arguments, made
of TensorFlow operations: the same values in, the same values out. Convoy tries it on small weights before training.

Learning rate, schedule, clipping, loss scaling, frozen layers, moving average and checkpoints are Convoy's part.
"""

import tensorflow as tf

import convoy


def adabelief(beta_1: float, beta_2: float, weight_decay: float, epsilon_root: float = 1e-16) -> convoy.Optimizer:
    """Returns the optimizer for decay rates of mean and variance, and decoupled weight decay."""

    def formula(
        weight: tf.Tensor,  # float32, as are all others
        slots: dict[str, tf.Tensor],  # each in the shape of the weight, and zero before the first update
        gradient: tf.Tensor,
        learning_rate: tf.Tensor,  # of this step, after schedule and warmup
        step: tf.Tensor,  # 1 at the first update of this weight
        decays: bool,  # whether weight decay applies: to kernels, not to biases and normalizations
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        mean = beta_1 * slots["mean"] + (1.0 - beta_1) * gradient
        variance = beta_2 * slots["variance"] + (1.0 - beta_2) * tf.square(gradient - mean) + epsilon_root
        direction = (mean / (1.0 - tf.pow(beta_1, step))) / tf.sqrt(variance / (1.0 - tf.pow(beta_2, step)))
        if decays:
            direction += weight_decay * weight
        return weight - learning_rate * direction, {"mean": mean, "variance": variance}

    return convoy.Optimizer(("mean", "variance"), formula)
