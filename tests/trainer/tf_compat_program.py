"""What TensorFlow and Keras do under a strategy over two devices, each probe by name; prints a JSON object.

python -m tests.trainer.tf_compat_program
python -m tests.trainer.tf_compat_program cluster PORT     # a cluster of one worker with two devices
"""

import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from convoy.trainer.tf_compat.internals import cpu_devices_of_a_worker, set_heartbeat


def per_device(strategy: tf.distribute.Strategy, value) -> list[np.ndarray]:
    return [np.asarray(component) for component in strategy.experimental_local_results(value)]


def sharing(strategy: tf.distribute.Strategy, columns: list[np.ndarray]):
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(columns[context.replica_id_in_sync_group])
    )


def dropout_masks_are_the_same(strategy: tf.distribute.Strategy) -> bool:
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dropout(0.5)])
    ones = sharing(strategy, [np.ones((4, 64), np.float32)] * 2)
    outputs = tf.function(lambda x: strategy.run(lambda x: model(x, training=True), (x,)))(ones)
    first, second = per_device(strategy, outputs)
    assert 0 < (first == 0).mean() < 1
    return bool(np.array_equal(first, second))


def moving_means_stay_apart(strategy: tf.distribute.Strategy) -> bool:
    """Whether each replica keeps a moving mean of its own, and a reader gets the first one's."""
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((3,)), keras.layers.BatchNormalization(momentum=0.0)])
    columns = [np.full((4, 3), 1.0, np.float32), np.full((4, 3), 5.0, np.float32)]
    tf.function(lambda x: strategy.run(lambda x: model(x, training=True), (x,)))(sharing(strategy, columns))
    moving_mean = model.layers[0].moving_mean
    first, second = per_device(strategy, moving_mean.value)
    return bool((first == 1).all() and (second == 5).all() and (np.asarray(moving_mean.value) == 1).all())


def clipped_gradient(strategy: tf.distribute.Strategy) -> float:
    """Returns how far a weight moves along gradients 3 and -1 under a clipping norm of 1, at a learning rate of 1."""
    with strategy.scope():
        weight = keras.Variable(np.zeros(1, np.float32))
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        optimizer.build([weight])

    def update(gradient):
        optimizer.apply([gradient], [weight])

    gradients = sharing(strategy, [np.array([3.0], np.float32), np.array([-1.0], np.float32)])
    tf.function(lambda g: strategy.run(update, (g,)))(gradients)
    return float(-per_device(strategy, weight.value)[0][0])


def _doubled(strategy: tf.distribute.Strategy, replica_function) -> str:
    with strategy.scope():
        variable = tf.Variable(2.0)
    try:
        result = tf.function(lambda: strategy.run(replica_function(variable)))()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        return type(error).__name__
    return "worked" if [float(value) for value in per_device(strategy, result)] == [4.0, 4.0] else "wrong"


def compiled_replica_function(strategy: tf.distribute.Strategy) -> str:
    """Returns what comes of XLA directly as the replica function."""
    return _doubled(strategy, lambda variable: tf.function(lambda: variable * 2.0, jit_compile=True))


def compiled_function_within_a_replica_function(strategy: tf.distribute.Strategy) -> str:
    """Returns what comes of XLA on a pure function that the replica function calls."""
    double = tf.function(lambda value: value * 2.0, jit_compile=True)
    return _doubled(strategy, lambda variable: lambda: double(tf.convert_to_tensor(variable)))


def accumulation_in_the_optimizer(strategy: tf.distribute.Strategy) -> str:
    """Returns what comes of Keras' own gradient accumulation."""
    with strategy.scope():
        weight = keras.Variable(np.zeros(1, np.float32))
        optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
        optimizer.build([weight])
    gradients = sharing(strategy, [np.ones(1, np.float32)] * 2)
    try:
        tf.function(lambda g: strategy.run(lambda g: optimizer.apply([g], [weight]), (g,)))(gradients)
    except RuntimeError as error:
        return type(error).__name__
    return "worked"


def unbuilt_optimizer(strategy: tf.distribute.Strategy) -> str:
    """Returns what comes of an optimizer that makes its slots inside a `tf.function`."""
    with strategy.scope():
        weight = keras.Variable(np.zeros(1, np.float32))
        optimizer = keras.optimizers.Adam(1.0)
    gradients = sharing(strategy, [np.ones(1, np.float32)] * 2)
    try:
        tf.function(lambda g: strategy.run(lambda g: optimizer.apply([g], [weight]), (g,)))(gradients)
    except (ValueError, TypeError, RuntimeError, AttributeError, tf.errors.OpError) as error:
        return type(error).__name__
    return "worked"


def overflow_on_the_second_device(strategy: tf.distribute.Strategy) -> bool:
    """Whether Keras' loss scaling lets an infinite gradient of the second device alone into the weights."""
    with strategy.scope():
        weight = keras.Variable(np.zeros(1, np.float32))
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
        optimizer.build([weight])
    gradients = sharing(strategy, [np.ones(1, np.float32), np.full(1, np.inf, np.float32)])
    tf.function(lambda g: strategy.run(lambda g: optimizer.apply([g], [weight]), (g,)))(gradients)
    return bool(not np.isfinite(per_device(strategy, weight.value)[0]).all())


PROBES = (
    dropout_masks_are_the_same,
    moving_means_stay_apart,
    clipped_gradient,
    compiled_function_within_a_replica_function,
    accumulation_in_the_optimizer,
    unbuilt_optimizer,
    overflow_on_the_second_device,
    compiled_replica_function,  # last: what fails on a device may leave it unusable
)


def in_a_cluster(port: str) -> dict:
    """Returns which devices a worker takes, and what becomes of the heartbeat that was set before."""
    spec = tf.train.ClusterSpec({"worker": [f"127.0.0.1:{port}"]})
    set_heartbeat(spec, heartbeat_seconds=17.0, register_seconds=34.0)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="worker", task_id=0, num_accelerators={"GPU": 0}, rpc_layer="grpc"
    )
    with cpu_devices_of_a_worker(2):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    by_itself, _ = strategy.extended._initialize_local_devices(resolver, "")
    configured = context.context().config.experimental.coordination_config

    def in_replica():
        replica = tf.distribute.get_replica_context()
        own = tf.cast(replica.replica_id_in_sync_group, tf.float32) + 1.0
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, own)

    sums = per_device(strategy, tf.function(lambda: strategy.run(in_replica))())
    return {
        "heartbeat_ms": configured.heartbeat_timeout_in_ms,
        "register_ms": configured.cluster_register_timeout_in_ms,
        "by_itself": len(by_itself),
        "devices": [device.split("device:")[-1] for device in strategy.extended.worker_devices],
        "sums": [float(value) for value in sums],
    }


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    if sys.argv[1:2] == ["cluster"]:
        print(json.dumps(in_a_cluster(sys.argv[2])), flush=True)
        os._exit(0)  # a server that still runs need not end by itself
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {}
    for probe in PROBES:
        try:
            found[probe.__name__] = probe(strategy)
        except Exception as error:  # noqa: BLE001 (a probe that broke is a finding, and must not hide the others)
            found[probe.__name__] = f"unexpected {type(error).__name__}: {str(error)[:500]}"
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
