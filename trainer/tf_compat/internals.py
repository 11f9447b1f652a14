"""Code that uses TensorFlow and Keras internals; `tests/trainer/test_tf_compat.py` fails when they change."""

import collections
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.data.ops import multi_device_iterator_ops
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.eager import context

_SEED_STATE = "seed_generator_state"
_NAME_NUMBERS = "object_name_uids"
MOST_EXCHANGING_DEVICES = 11


def is_seed_state(variable: keras.Variable) -> bool:
    """Whether a non-trainable variable is the state of a `keras.random.SeedGenerator`, [2] of the seed dtype.

    Keras has no public list of a model's seed generators; their variables share this name.
    """
    return variable.name == _SEED_STATE and tuple(variable.shape) == (2,)


def tensors_in(outputs: Any) -> list[keras.KerasTensor]:  # noqa: ANN401 (the outputs of any layer)
    """Returns the symbolic tensors that a layer was called with, given what that call returned.

    Keras has no public access to the edges of a functional model's graph.
    """
    operation, node, _ = keras.tree.flatten(outputs)[0]._keras_history
    return operation._inbound_nodes[node].input_tensors


@contextmanager
def automatic_names_kept() -> Iterator[None]:
    """Numbers automatic names of layers after the block as if none had been made in it."""
    numbers = dict(global_state.get_global_attribute(_NAME_NUMBERS) or {})
    try:
        yield
    finally:
        global_state.set_global_attribute(_NAME_NUMBERS, collections.defaultdict(int, numbers))


def set_heartbeat(cluster_spec: tf.train.ClusterSpec, *, heartbeat_seconds: float, register_seconds: float) -> None:
    """Sets the heartbeat timeout. Call before creating the strategy, which otherwise sets 10 s.

    With 10 s, a link that is down for 5 s ends every worker; the strategy has no argument for the timeout.

    Args:
      cluster_spec: workers of the run.
      heartbeat_seconds: silence after which a worker counts as lost.
      register_seconds: how long workers wait for each other at the start.
    """
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(cluster_spec),
        cluster_register_timeout_in_ms=int(1e3 * register_seconds),
        heartbeat_timeout_in_ms=int(1e3 * heartbeat_seconds),
        coordinated_jobs=[
            CoordinatedJob(name=job, num_tasks=cluster_spec.num_tasks(job)) for job in sorted(cluster_spec.jobs)
        ],
    )


@contextmanager
def cpu_devices_of_a_worker(count: int) -> Iterator[None]:
    """Makes a MultiWorkerMirroredStrategy created in the block use `count` logical CPU devices instead of one.

    On GPUs the strategy uses the count of the cluster resolver.
    """
    if count == 1:
        yield
        return

    def local_devices(self: object, resolver: object, worker_device: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker_device}/device:CPU:{index}" for index in range(count)), "CPU"

    with mock.patch.object(CollectiveAllReduceExtended, "_initialize_local_devices", local_devices):
        yield


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Restores the SIGTERM handler that a MultiWorkerMirroredStrategy created inside replaces.

    TensorFlow's handler only records the preemption, which nothing here reads: a worker terminated before training
    starts would keep running.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    with suppress(ValueError):  # outside of the main thread
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def device_iterators_without_autotuning() -> Iterator[None]:
    """Disables tf.data's autotuning for iterators over distributed datasets that are created inside.

    A dataset's own options do not reach the internal dataset that feeds each device, which has nothing to tune. Its
    tuning thread doubles its sleep up to a minute, and destroying the iterator waits for it: the wake-up call can
    arrive just before the thread starts to wait.
    """
    made = multi_device_iterator_ops._create_device_dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    with mock.patch.object(
        multi_device_iterator_ops,
        "_create_device_dataset",
        lambda *arguments: made(*arguments).with_options(options),
    ):
        yield


def all_to_all(context: tf.distribute.ReplicaContext, value: tf.Tensor) -> tf.Tensor:
    """Sends row `r` to device `r`. Must be called in a replica context inside a `tf.function`.

    `tf.distribute` has no such collective; this runs TensorFlow's in the strategy's group, with the strategy's
    instance keys and ordering token.

    Args:
      context: the replica context.
      value: [replicas, ...], the same shape and dtype on every device.

    Returns:
      Same shape: row `r` is what device `r` sent to this one.

    Raises:
      NotImplementedError: there are more than 11 devices in this process. TensorFlow names a message by sender and
        receiver without a separator, so messages from 1 to 11 and from 11 to 1 are both `111` and are mixed up.
    """
    launchers, own = _launchers(context)
    if len(launchers) > MOST_EXCHANGING_DEVICES:
        raise NotImplementedError(
            f"all_to_all among {len(launchers)} devices of a process; at most {MOST_EXCHANGING_DEVICES}."
        )
    with tf.device(own._device):
        received = tf.raw_ops.CollectiveAllToAllV2(
            input=value,
            group_size=own._group_size,
            group_key=own._group_key,
            instance_key=own._next_instance_key(),
            ordering_token=[own._get_ordering_token()],
            communication_hint=own._options.implementation.value.lower(),
        )
    return tf.ensure_shape(received, value.shape)


def all_gather(context: tf.distribute.ReplicaContext, value: tf.Tensor) -> tf.Tensor:
    """Concatenates vectors of equal length from all devices, in order. Must be called like `all_to_all`.

    `ReplicaContext.all_gather` exchanges lengths, transposes, pads, slices and concatenates, which copies all values
    several times.

    Args:
      context: the replica context.
      value: [values], the same shape and dtype on every device.

    Returns:
      [replicas * values].
    """
    _, own = _launchers(context)
    gathered = own._all_gather(value, None)
    return tf.ensure_shape(gathered, [value.shape[0] * context.num_replicas_in_sync])


def operations_of(graph: tf.Graph) -> Iterator[tf.Operation]:
    """Yields the operations of a traced graph and of the functions it calls, as Keras does for grouped convolutions.

    TensorFlow has no public API for the functions that a graph calls.
    """
    for operation in graph.get_operations():
        yield operation
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            called = graph._get_function(operation.get_attr("f").name)
            if isinstance(getattr(called, "graph", None), tf.Graph):
                yield from operations_of(called.graph)


def _launchers(context: tf.distribute.ReplicaContext) -> tuple[list, Any]:
    """Returns the strategy's collective launchers of this process, one per device, and the one of this device."""
    launchers = context.strategy.extended._cross_device_ops._launchers
    replica = tf.get_static_value(tf.convert_to_tensor(context.replica_id_in_sync_group))
    return launchers, launchers[replica % len(launchers)]


def iterate(dataset: tf.distribute.DistributedDataset) -> Generator[dict[str, tf.Tensor], None, None]:
    """Yields the batches of a dataset. Close the generator to stop reading, even if an exception keeps frames alive.

    An iterator that is still reading when Python shuts down deadlocks on the interpreter lock.
    """
    with device_iterators_without_autotuning():
        iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        del iterator
