"""Training steps on several logical devices, in a separate process: devices and determinism are set per process.

    python -m tests.trainer.step_program '{"devices": 2, "values": "values.npz", "runs": [{"id": "a", ...}]}'

prints a JSON object with the report of each run, by id, and writes the values of all variables to `values`, as
`ID/NAME`. With TF_CONFIG it is one of several workers with one device each; then only one run is possible. With
STEP_PROGRAM_DEVICES=GPU it runs on GPUs.
`tests/trainer/test_step.py` imports the same functions for tests on one device.
"""

import functools
import json
import os
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from convoy.core.cluster import find_cluster
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.trainer.cluster import strategy as devices
from convoy.trainer.models import ModelBundle, build_model
from convoy.trainer.step.losses import cross_entropy
from convoy.trainer.step.mixing import Mixing
from convoy.trainer.step.optimizers import make_optimizer
from convoy.trainer.step.settings import StepSettings
from convoy.trainer.step.state import TrainState
from convoy.trainer.step.step import TrainStep
from convoy.trainer.tf_compat.layers import ByteDropout, FusedBatchNormalization

CLASSES = 10
OPERATIONS = parse_pipeline(
    "flip | brightness(0.2) | contrast(0.3) | saturation(0.3) | hue(0.1) | erase(0.5)", image_size=8
).device
KIND = os.environ.get("STEP_PROGRAM_DEVICES", "CPU")
# The `planted` models scale a pixel of this brightness to infinity.
PLANTED, _BRIGHTEST = 255, 254


@keras.saving.register_keras_serializable(package="tests")
class Recorder(keras.layers.Layer):
    """Returns its input and stores the mean over the batch as a statistic, like batch norm."""

    def build(self, input_shape):
        self.seen = self.add_weight(shape=input_shape[1:], trainable=False, initializer="zeros", name="seen")

    def call(self, inputs, training=False):
        if training:
            self.seen.assign(tf.cast(tf.reduce_mean(inputs, 0), tf.float32))
        return inputs


def _unit_scale(pixels: tf.Tensor) -> tf.Tensor:
    return pixels / 255.0


def _planted_scale(pixels: tf.Tensor) -> tf.Tensor:
    return tf.where(pixels > _BRIGHTEST, np.inf, pixels / 255.0)


def make_model(name: str, image_size: int) -> ModelBundle:
    """Builds `baseline_cnn`, or one of the small models below."""
    layers = keras.layers
    inputs = layers.Input((image_size, image_size, 3))
    scale = _unit_scale
    if name == "baseline_cnn":
        return build_model("baseline_cnn", num_classes=CLASSES, image_size=image_size)
    if name == "mini":  # the layer types of baseline_cnn, with few parameters
        x = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
        x = FusedBatchNormalization(name="norm1")(x)
        x = ByteDropout(0.25, name="drop1")(x)
        x = layers.Conv2D(12, 3, strides=2, activation="relu", name="conv2")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(24, activation="relu", name="dense1")(x)
        x = FusedBatchNormalization(name="dense1_norm")(x)
        x = ByteDropout(0.5, name="dense1_drop")(x)
    elif name in ("plain", "regularized"):  # neither dropout nor batch norm
        regularizer = keras.regularizers.L2(0.05) if name == "regularized" else None
        x = layers.Conv2D(6, 3, strides=2, activation="tanh", name="conv1")(inputs)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(16, activation="tanh", kernel_regularizer=regularizer, name="dense1")(x)
    elif name == "planted":
        scale = _planted_scale
        x = layers.Conv2D(6, 3, strides=2, activation="relu", name="conv1")(inputs)
        x = FusedBatchNormalization(name="norm1")(x)
        x = layers.Flatten(name="flatten")(x)
    elif name == "frozen":
        x = layers.Conv2D(6, 3, strides=2, activation="tanh", name="conv1", trainable=False)(inputs)
        x = layers.Flatten(name="flatten")(x)
    elif name == "norm":  # only batch norm
        x = layers.Conv2D(6, 3, strides=2, activation="tanh", name="conv1")(inputs)
        x = FusedBatchNormalization(momentum=0.8, name="norm1")(x)
        x = layers.Flatten(name="flatten")(x)
    elif name == "masks":  # records which values each of two dropout layers keeps
        x = layers.Flatten(name="flatten")(inputs)
        first = Recorder(name="first")(ByteDropout(0.5, name="first_drop")(x))
        second = Recorder(name="second")(ByteDropout(0.5, name="second_drop")(x))
        x = layers.Add(name="add")([first, second])
    else:
        raise ValueError(name)
    return ModelBundle(keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x), name=name), scale)


@functools.cache  # collective keys of a second MirroredStrategy in the process would collide
def make_strategy(replicas: int) -> tf.distribute.Strategy:
    """Returns the strategy over the first `replicas` logical devices, or over the workers of the cluster."""
    if cluster := find_cluster(os.environ):
        return devices.make_strategy(devices.Devices("cpu"), cluster=cluster)
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy(f"{KIND}:0")
    return tf.distribute.MirroredStrategy([f"{KIND}:{index}" for index in range(replicas)])


def make_step(
    model: str,
    *,
    replicas: int = 1,
    precision: str = "float32",
    optimizer: str = "sgd",
    optimizer_options: dict[str, Any] | None = None,
    image_size: int = 8,
    initial_seed: int = 0,
    **settings: Any,  # noqa: ANN401
) -> tuple[TrainStep, TrainState, ModelBundle]:
    """Builds a model and its step; `settings` are fields of `StepSettings`."""
    keras.utils.clear_session()
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(initial_seed)
    strategy = make_strategy(replicas)
    formulas = make_optimizer(optimizer, **(optimizer_options or {}))
    with strategy.scope():
        built = make_model(model, image_size)
    float16 = precision == "mixed_float16"
    state = TrainState(
        built.model, formulas, strategy, average_weights=settings.get("average_decay", 0) > 0, float16=float16
    )
    step = TrainStep(state, built, StepSettings(float16=float16, **{"seed": 1, **settings}))
    return step, state, built


def make_batch(images: int, image_size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a random global batch."""
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, _BRIGHTEST, (images, image_size, image_size, 3)).astype(np.uint8),
        "label": random.integers(0, CLASSES, images).astype(np.int32),
        "randomness": random.random((images, 16)).astype(np.float32),
    }


def distribute(strategy: tf.distribute.Strategy, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Splits a global batch over the replicas, in order."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return {name: tf.constant(column) for name, column in batch.items()}

    def share(column: np.ndarray) -> Any:  # noqa: ANN401
        shares = np.split(column, replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(shares[context.replica_id_in_sync_group])
        )

    return {name: share(column) for name, column in batch.items()}


def values_on_every_device(state: TrainState) -> dict[str, list[np.ndarray]]:
    """Returns the values of all variables on each device, by name."""
    return {
        name: [component.numpy() for component in state.strategy.experimental_local_results(variable)]
        for name, variable in state.named_variables().items()
    }


def run(
    *,
    steps: int = 3,
    batch_size: int = 16,
    image_size: int = 8,
    learning_rate: float = 0.01,
    planted_step: int = -1,
    planted_image: int = 0,
    loss_scale: float = 0.0,
    augmented: bool = False,
    mixing: dict[str, float] | None = None,
    label_smoothing: float = 0.0,
    **options: Any,  # noqa: ANN401
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains for `steps` steps.

    Args:
      planted_step: step whose batch contains an infinite pixel.
      planted_image: index of the image with that pixel.
      loss_scale: initial loss scale, if not 0.
      mixing: fields of `Mixing`.
      label_smoothing: of the cross-entropy.

    Returns:
      The report of the steps; and the values of all variables before the first step, as `before/NAME`, and after the
      last, as `after/NAME`, with the mean gradient of the first batch, as `gradient/PATH`.
    """
    if augmented:
        options["operations"] = OPERATIONS
    if label_smoothing:
        options["loss"] = functools.partial(cross_entropy, label_smoothing=label_smoothing)
    mixing = Mixing(**(mixing or {}))
    train_step, state, _ = make_step(image_size=image_size, global_batch_size=batch_size, mixing=mixing, **options)
    if loss_scale:
        state.loss_scale.assign(loss_scale)
    report: dict[str, Any] = {"losses": [], "norms": [], "finite": [], "scales": [], "changed": []}
    values = {f"before/{name}": value for name, value in state.values().items()}
    if options["model"] in ("plain", "regularized"):
        gradients = train_step.gradients(distribute(state.strategy, make_batch(batch_size, image_size)))
        values |= {f"gradient/{w.path}": g.numpy() for w, g in zip(state.weights, gradients, strict=True)}
    for number in range(steps):
        batch = make_batch(batch_size, image_size, seed=number)
        if number == planted_step:
            batch["image"][planted_image, 0, 0] = PLANTED
        before = values_on_every_device(state)
        result = train_step(distribute(state.strategy, batch), learning_rate)
        after = values_on_every_device(state)
        same = {
            name: all(np.array_equal(a, b) for a, b in zip(before[name], after[name], strict=True)) for name in after
        }
        report["changed"].append([name for name in same if not same[name]])
        report["losses"].append(float(result.sums[0]))
        report["norms"].append(float(result.gradient_norm))
        report["finite"].append(bool(result.finite))
        report["scales"].append(float(result.loss_scale))
    copies = values_on_every_device(state).values()
    report["devices_agree"] = all(np.array_equal(copy, components[0]) for components in copies for copy in components)
    report["sha256"] = state.weights_sha256()
    values |= {f"after/{name}": value for name, value in state.values().items()}
    return report, values


def main(specification: dict[str, Any]) -> None:
    """Executes the runs of a specification, those without determinism first: it cannot be switched off again."""
    if KIND == "CPU":
        cpu, logical = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [logical] * specification["devices"])
    else:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.experimental.enable_tensor_float_32_execution(False)  # float32 is compared
    reports, values, deterministic = {}, {}, False
    for options in sorted(specification["runs"], key=lambda options: options.get("deterministic", False)):
        identity = options.pop("id")
        if options.get("deterministic") and not deterministic:
            tf.config.experimental.enable_op_determinism()
            tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
            deterministic = True
        reports[identity], run_values = run(**options)
        values |= {f"{identity}/{name}": value for name, value in run_values.items()}
    np.savez(specification["values"], **values)
    print(json.dumps(reports))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(json.loads(sys.argv[1]))
