"""Convoy's layers and optimizers compared with those of Keras, on one device.

python -m tests.gpu.against_keras GPU:0

prints a JSON object: for each layer and optimizer and each dtype, the largest difference relative to the largest value.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from convoy.trainer.step.optimizers import make_optimizer
from convoy.trainer.tf_compat.layers import ByteDropout
from tests.trainer import test_layers, test_optimizers

DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def difference(ours: list[object], theirs: list[object]) -> float:
    """Returns the largest difference of two lists of arrays, each relative to the largest value."""
    largest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        one, other = (np.asarray(tf.cast(value, tf.float32)) for value in (one, other))
        largest = max(largest, float(np.abs(one - other).max() / max(1.0, np.abs(other).max())))
    return largest


def normalization(policy: str, shape: tuple[int, ...], *, training: bool) -> float:
    """Compares outputs, gradients and moving averages of batch normalization."""
    theirs, ours = test_layers.normalizations(shape, policy)
    inputs = test_layers.inputs_of(shape, ours.compute_dtype)
    values = [
        [*test_layers.forward_and_gradients(layer, inputs, training), *layer.non_trainable_variables]
        for layer in (ours, theirs)
    ]
    return difference(*values)


def dropout(policy: str, device: str) -> float:
    """Compares the mask of a device with that of the CPU, which have to be equal on any hardware."""
    results = []
    for where in (device, "CPU:0"):
        with tf.device(where):
            layer = ByteDropout(0.3, seed=7, dtype=policy)
            results.append([layer(tf.ones([64, 33], layer.compute_dtype), training=True)])
    return difference(*results)


def optimizer(name: str) -> float:
    """Compares the updates of a few steps, by kernel where there is one, and by formula."""
    own, options, of_keras = test_optimizers.SAME[name]
    weights, gradients = test_optimizers.weights_and_gradients()
    expected = test_optimizers.run_keras(of_keras(), weights, gradients)
    runs = [test_optimizers.run_formula] + [test_optimizers.run_in_place] * (name not in test_optimizers.NO_KERNEL)
    histories = [run(make_optimizer(own, **options), weights, gradients) for run in runs]
    return max(
        difference(list(step.values()), list(other.values()))
        for history in histories
        for step, other in zip(history, expected, strict=True)
    )


def main(device: str) -> None:
    """Compares everything on a device."""
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    found: dict[str, dict[str, float]] = {}
    with tf.device(device):
        for dtype, policy in DTYPES.items():
            keras.config.set_dtype_policy("float32")
            for shape in test_layers.SHAPES:
                for training in (True, False):
                    name = f"normalization of {len(shape)} dimensions, {'' if training else 'not '}training"
                    found.setdefault(name, {})[dtype] = normalization(policy, shape, training=training)
            found.setdefault("dropout", {})[dtype] = dropout(policy, device)
        for name in test_optimizers.SAME:  # updates are in float32 with every precision
            found[name] = {"float32": optimizer(name)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
