"""Reductions on several devices or in several processes, for tests.

    python -m tests.trainer.reduction_program devices       # logical devices, all methods
    python -m tests.trainer.reduction_program twelve        # exchange among twelve devices: wrong in TensorFlow
    TF_CONFIG=... python -m tests.trainer.reduction_program worker    # one of several processes; the last is killed

prints a JSON object, which `tests/trainer/test_reduction.py` and `test_tf_compat.py` check.
"""

import contextlib
import json
import os
import signal
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from convoy.trainer.step import reduction
from convoy.trainer.tf_compat import internals as upstream

# Sums of these depend on the order of additions: magnitudes differ by up to 2**30, so each addition rounds.
_generator = np.random.default_rng(0)
VALUES = (_generator.standard_normal((64, 50)) * 2.0 ** _generator.integers(-15, 15, (64, 50))).astype(np.float32)
SIMILAR = _generator.standard_normal((64, 50)).astype(np.float32)
# (devices, virtual replicas); with 15 on 3 and 10 on 2, devices have different numbers of blocks.
ON_DEVICES = [(2, 10), (3, 3), (3, 9), (3, 15), (4, 4), (4, 12), (6, 6), (6, 12)]
ON_WORKERS = (3, 6, 9, 15)
STEPS = 40


def term(virtual_replica: tf.Tensor) -> list[tf.Tensor]:
    """Returns the terms of one virtual replica: [50], [2, 3] and a scalar, float32."""
    row = tf.constant(VALUES)[virtual_replica]
    return [row, tf.reshape(row[:6] * 3.0, [2, 3]), row[0]]


def tree_sum(start: int, size: int, total: int, values: np.ndarray = VALUES) -> np.ndarray:
    """Returns the sum along the tree, computed with numpy in float32."""
    if size == 1:
        return values[start]
    left = tree_sum(start, size // 2, total, values)
    middle = start + size // 2
    return left + tree_sum(middle, size // 2, total, values) if middle < total else left


def is_tree_sum(result: list[tf.Tensor], total: int) -> bool:
    """Returns whether the results are bit-identical to the sums along the tree."""
    size = 1 << (total - 1).bit_length()
    row = tree_sum(0, size, total)
    smaller = tree_sum(0, size, total, (VALUES[:, :6] * np.float32(3)).astype(np.float32))
    return (
        np.array_equal(result[0].numpy(), row)
        and np.array_equal(result[1].numpy(), smaller.reshape(2, 3))
        and np.array_equal(result[2].numpy(), row[0])
    )


def _compiled(strategy: tf.distribute.Strategy, in_replica: Any) -> Any:  # noqa: ANN401
    """Returns a function that returns the results of each device of this process."""
    function = tf.function(lambda: strategy.run(in_replica), autograph=False)

    def run() -> list[list[tf.Tensor]]:
        by_tensor = [strategy.experimental_local_results(value) for value in function()]
        return [list(values) for values in zip(*by_tensor, strict=True)]

    return run


def _deterministic(virtual_replicas: int) -> Any:  # noqa: ANN401
    return lambda: reduction.reduce_over_virtual_replicas(term, virtual_replicas=virtual_replicas, deterministic=True)


def _in_bfloat16(virtual_replicas: int) -> Any:  # noqa: ANN401
    def similar(virtual_replica: tf.Tensor) -> list[tf.Tensor]:
        row = tf.constant(SIMILAR)[virtual_replica]
        return [row, row + 0.0]

    return lambda: reduction.reduce_over_virtual_replicas(
        similar, virtual_replicas=virtual_replicas, deterministic=False, bfloat16_terms=1
    )


def _exchange_instead(context, sums, blocks_of, virtual_replicas, *, cut):  # noqa: ANN001, ANN202
    return reduction._exchange_chunks(context, sums, blocks_of, virtual_replicas)


def _strategy(devices: int) -> tf.distribute.Strategy:
    # Without distinct keys the collectives of several strategies in one process would collide.
    tf.distribute.MirroredStrategy._collective_key_base = 1000 * devices
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(devices)])


def on_devices() -> dict[str, Any]:
    """Returns the methods that deviated from the tree, and terms that were exchanged in bfloat16."""
    strategies = {devices: _strategy(devices) for devices in dict(ON_DEVICES)}
    methods = {
        "whole": contextlib.nullcontext(),
        "cut": mock.patch.object(reduction, "runs_on_gpu", lambda strategy: True),
        "exchange": mock.patch.object(reduction, "_add_on_devices", _exchange_instead),
    }
    wrong = []
    for method, patch in methods.items():
        with patch:
            for devices, virtual_replicas in ON_DEVICES:
                results = _compiled(strategies[devices], _deterministic(virtual_replicas))()
                if not all(is_tree_sum(result, virtual_replicas) for result in results):
                    wrong.append([method, devices, virtual_replicas])
    narrow = {}
    for devices in (2, 4):
        results = _compiled(strategies[devices], _in_bfloat16(2 * devices))()
        narrow[devices] = [[value.numpy().tolist() for value in result] for result in results]
    return {"wrong": wrong, "bfloat16": narrow}


def on_twelve_devices() -> dict[str, Any]:
    """Returns how often exchanges among 11 and among 12 devices of one process failed."""

    def failures(devices: int) -> int:
        def in_replica() -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            own = tf.get_static_value(tf.convert_to_tensor(context.replica_id_in_sync_group))
            sent = tf.constant([[100.0 * own + other] for other in range(devices)])
            return [upstream.all_to_all(context, sent)[:, 0]]

        run = _compiled(_strategy(devices), in_replica)
        found = 0
        for _ in range(STEPS):
            try:
                received = [result[0].numpy() for result in run()]
            except tf.errors.OpError:
                return found + 1
            expected = [[100.0 * other + own for other in range(devices)] for own in range(devices)]
            found += not np.array_equal(received, expected)
        return found

    refused = False
    try:
        failures(12)
    except NotImplementedError:
        refused = True
    with mock.patch.object(upstream, "MOST_EXCHANGING_DEVICES", 12):
        return {"refused": refused, "eleven": failures(11), "twelve": failures(12)}


def on_workers() -> dict[str, Any]:
    """Returns the results of one of several processes, and how it detected the death of another."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    replicas = strategy.num_replicas_in_sync
    wrong = []
    for virtual_replicas in ON_WORKERS:

        def among_others(virtual_replicas: int = virtual_replicas) -> list[tf.Tensor]:
            """Reduces between other collectives, which only their order separates."""
            context = tf.distribute.get_replica_context()
            one = tf.ones([1000]) * 1.0
            counted = context.all_reduce(tf.distribute.ReduceOp.SUM, [one])[0][0]
            total = _deterministic(virtual_replicas)()
            gathered = context.all_gather(tf.cast([context.replica_id_in_sync_group], tf.float32) * 1.0, axis=0)
            return [*total, counted, gathered]

        run = _compiled(strategy, among_others)
        for _ in range(STEPS):
            ((*total, counted, gathered),) = run()
            others = float(counted) == replicas and gathered.numpy().tolist() == list(range(replicas))
            if not (is_tree_sum(total, virtual_replicas) and others):
                wrong.append(virtual_replicas)
                break
    narrow = [value.numpy().tolist() for value in _compiled(strategy, _in_bfloat16(2 * replicas))()[0]]
    if strategy.cluster_resolver.task_id == replicas - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    try:
        while True:
            run()
    except tf.errors.OpError as error:
        found = type(error).__name__
    return {"wrong": wrong, "bfloat16": narrow, "error": found, "seconds": time.monotonic() - started}


def main(kind: str) -> None:
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    if kind != "worker":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 12)
    found = {"devices": on_devices, "twelve": on_twelve_devices, "worker": on_workers}[kind]()
    print(json.dumps(found), flush=True)
    os._exit(0)  # a process with aborted collectives may hang at exit


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(sys.argv[1])
