"""Schedule-free AdamW: an average of the steps in place of a decaying learning rate (Defazio et al. 2024)."""

import tensorflow as tf

from convoy.trainer.step.optimizers.optimizer import Optimizer, Slots
from convoy.trainer.step.optimizers.registry import OPTIMIZERS


@OPTIMIZERS.register("schedule_free_adamw")
def schedule_free_adamw(
    beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7, weight_decay: float = 0.0
) -> Optimizer:
    """Schedule-free AdamW, algorithm 1 of "The Road Less Scheduled".

    The weight is the paper's y, at which gradients are computed: between z, which takes the steps, and their average x,
    which is evaluated. An iterate counts in x with the square of its learning rate, so warmup counts little. Weight
    decay is that of y.
    """

    def formula(
        weight: tf.Tensor,
        slots: Slots,
        gradient: tf.Tensor,
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        decays: bool,
    ) -> tuple[tf.Tensor, Slots]:
        velocity = slots["velocity"] + (tf.square(gradient) - slots["velocity"]) * (1.0 - beta_2)
        direction = gradient / (tf.sqrt(velocity / (1.0 - tf.pow(beta_2, step))) + epsilon)
        if weight_decay and decays:
            direction += weight_decay * weight
        z = slots["z"] - learning_rate * direction
        total = slots["squared_rates"] + tf.square(learning_rate)
        share = tf.math.divide_no_nan(tf.square(learning_rate), total)
        x = slots["x"] + (z - slots["x"]) * share
        return z + (x - z) * beta_1, {"z": z, "x": x, "velocity": velocity, "squared_rates": total}

    return Optimizer(
        ("z", "x", "velocity", "squared_rates"), formula, scalars=("squared_rates",), copies=("z", "x"), average="x"
    )
