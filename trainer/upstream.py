"""What rests on how TensorFlow and Keras are built inside; `tests/trainer/test_upstream.py` fails when that moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import keras
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.eager import context

_SEED_STATE = "seed_generator_state"


def is_seed_state(variable: keras.Variable) -> bool:
    """Whether a non-trainable variable is the state of a `keras.random.SeedGenerator`, [2] of the seed dtype.

    Keras has no public list of a model's seed generators; their variables share this name.
    """
    return variable.name == _SEED_STATE and tuple(variable.shape) == (2,)


def set_heartbeat(cluster_spec: tf.train.ClusterSpec, *, heartbeat_seconds: float, register_seconds: float) -> None:
    """Sets how long a worker may be silent. To be called before the strategy, which else sets 10 s.

    With 10 s a link that is down for 5 s ends every worker; the strategy has no argument for it.

    Args:
      cluster_spec: the workers.
      heartbeat_seconds: silence after which a worker is given up.
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
    """Makes a MultiWorkerMirroredStrategy that is made inside use `count` logical CPU devices; by itself it takes one.

    For GPUs it takes as many as the cluster resolver says.
    """
    if count == 1:
        yield
        return

    def local_devices(self: object, resolver: object, worker_device: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker_device}/device:CPU:{index}" for index in range(count)), "CPU"

    with mock.patch.object(CollectiveAllReduceExtended, "_initialize_local_devices", local_devices):
        yield
