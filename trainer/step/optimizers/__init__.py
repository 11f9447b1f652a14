"""Optimizers as pure functions, applied once per step to reduced gradients.

Keras' optimizers cannot be used here: under `tf.distribute` they reduce, clip and check gradients per replica, and
their `stateless_apply` does not support TensorFlow. These are the same formulas, as functions of values
(`tests/trainer/test_optimizers.py` compares each with Keras, or with its paper, over several steps):

    optimizer = make_optimizer("adam", beta_1=0.9)
    slots = {slot: zeros for slot in optimizer.slots}
    weight, slots = optimizer.formula(weight, slots, gradient, learning_rate, step, decays)

On a GPU the formulas of all weights compile into one XLA program. On a CPU, Adam, AdamW and SGD run in place through
TensorFlow's fused kernels, in a third of the time (`optimizer.in_place`).
"""

from convoy.trainer.step.optimizers import built_in, muon, schedule_free  # noqa: F401 (they register themselves)
from convoy.trainer.step.optimizers.optimizer import Formula, InPlace, Optimizer, Slots, decays_weight, hidden_matrices
from convoy.trainer.step.optimizers.registry import OPTIMIZERS, find_optimizer, make_optimizer

__all__ = [
    "OPTIMIZERS",
    "Formula",
    "InPlace",
    "Optimizer",
    "Slots",
    "decays_weight",
    "find_optimizer",
    "hidden_matrices",
    "make_optimizer",
]
