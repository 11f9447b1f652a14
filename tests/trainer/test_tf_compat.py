"""Canaries: what Convoy goes around in TensorFlow and Keras is still there. Each says what may go when it is not.

A failure here is mostly good news, not a bug: an upgrade has mended something. The message names the code that may be
simplified.
"""

import ctypes
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops
from tensorflow.python.framework import config as tf_config

from convoy.launch.ports import reserved_ports
from convoy.trainer.tf_compat.internals import (
    automatic_names_kept,
    device_iterators_without_autotuning,
    is_seed_state,
    sigterm_kept,
    tensors_in,
)
from convoy.trainer.tf_compat.keras_state import global_state_kept
from convoy.trainer.tf_compat.layers import ByteDropout
from tests.trainer.step_program import make_batch, make_step


@pytest.fixture(scope="module")
def on_two_devices(forks):
    return forks.run("tests.trainer.tf_compat_program").report()


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


def test_keras_dropout_draws_the_same_mask_on_every_device(on_two_devices):
    assert on_two_devices["dropout_masks_are_the_same"] is True, (
        "Keras' Dropout now tells replicas apart. Seeds for each virtual replica (TrainStep._layer_seeds) are still "
        "needed, for masks that do not depend on the hardware."
    )


def test_keras_batch_normalization_leaves_the_devices_moving_averages_apart(on_two_devices):
    assert on_two_devices["moving_means_stay_apart"] is True, (
        "Keras now aggregates moving statistics over replicas: TrainStep may stop carrying them through the reduction."
    )


def test_keras_clips_each_devices_gradient_before_the_sum(on_two_devices):
    # 3 and -1 sum to 2, which clipping to 1 would make 1; clipped first, 1 and -1 sum to 0.
    assert on_two_devices["clipped_gradient"] == 0.0, (
        "Keras optimizers now clip the reduced gradient: one reason for trainer/optimizers.py is gone."
    )


def test_keras_loss_scaling_lets_another_devices_overflow_into_the_weights(on_two_devices):
    assert on_two_devices["overflow_on_the_second_device"] is True, (
        "Keras' LossScaleOptimizer now checks the reduced gradient: one reason for our own loss scaling is gone."
    )


def test_keras_gradient_accumulation_is_refused_under_a_strategy(on_two_devices):
    assert on_two_devices["accumulation_in_the_optimizer"] == "RuntimeError", (
        "Keras' gradient_accumulation_steps now works under tf.distribute; virtual replicas do not depend on that."
    )


def test_a_keras_optimizer_cannot_make_its_slots_inside_a_function(on_two_devices):
    assert on_two_devices["unbuilt_optimizer"] == "InvalidArgumentError", (
        "Keras optimizers may now be built inside tf.function."
    )


def test_xla_as_the_replica_function_itself_is_refused(on_two_devices):
    assert on_two_devices["compiled_replica_function"] == "InvalidArgumentError", (
        "strategy.run now takes a function compiled with XLA: TrainStep may compile the whole replica function "
        "in place of _forward_backward and Update._formulas."
    )


def test_xla_within_the_replica_function_works(on_two_devices):
    assert on_two_devices["compiled_function_within_a_replica_function"] == "worked", (
        "The one arrangement of XLA under tf.distribute that Convoy relies on broke: train with xla=off till then."
    )


@pytest.mark.slow
def test_all_to_all_among_many_local_devices_mixes_up_messages(forks):
    found = forks.run("tests.trainer.reduction_program", "twelve").report()
    assert found["eleven"] == 0, (
        "CollectiveAllToAllV2, or what trainer/tf_compat.py takes from the strategy to start it, broke: deterministic "
        "runs of several processes are wrong. Let them all_gather the sums and climb the whole tree till then."
    )
    assert found["refused"] is True
    assert found["twelve"] > 0, (
        "CollectiveAllToAllV2 now tells the message from device 1 to 11 from that of 11 to 1: all_to_all need no "
        "longer refuse more than 11 devices in a process."
    )


@pytest.fixture(scope="module")
def in_a_cluster(forks):
    with reserved_ports(1) as (port,):
        pass
    return forks.run("tests.trainer.tf_compat_program", "cluster", port).report()


@pytest.mark.slow
def test_multi_worker_strategy_keeps_the_heartbeat(in_a_cluster):
    assert (in_a_cluster["heartbeat_ms"], in_a_cluster["register_ms"]) == (17_000, 34_000), (
        "MultiWorkerMirroredStrategy now overwrites the coordination service's settings: set_heartbeat of "
        "trainer/tf_compat.py has no effect, and a link that is down for a few seconds ends every worker."
    )


@pytest.mark.slow
def test_multi_worker_strategy_uses_one_cpu_device_by_default(in_a_cluster):
    assert in_a_cluster["by_itself"] == 1, (
        "MultiWorkerMirroredStrategy now takes several logical CPU devices: cpu_devices_of_a_worker of "
        "trainer/tf_compat.py may go."
    )


@pytest.mark.slow
def test_multi_worker_strategy_with_two_cpu_devices(in_a_cluster):
    assert (in_a_cluster["devices"], in_a_cluster["sums"]) == (["CPU:0", "CPU:1"], [3.0, 3.0]), (
        "cpu_devices_of_a_worker of trainer/tf_compat.py no longer works: workers train on one CPU device each."
    )


def test_keras_refuses_stateless_optimizers_on_tensorflow():
    weight = keras.Variable(np.zeros(2, np.float32))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([weight])
    refusal = ""
    try:
        optimizer.stateless_apply([v.value for v in optimizer.variables], [tf.ones(2)], [weight.value])
    except ValueError as error:
        refusal = str(error)
    assert "not supported with the TensorFlow backend" in refusal, (
        "Optimizer.stateless_apply now works on TensorFlow: the formulas of trainer/optimizers.py may be Keras' own."
    )


def test_grappler_reorders_additions_by_default():
    columns = [tf.fill([4], value) for value in (1e8, 1.0, -1e8, 1.0)]

    def added(arithmetic_optimization):
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": arithmetic_optimization})
        function = tf.function(lambda a, b, c, d: (a + b) + (c + d), autograph=False)
        return function(*columns).numpy().tolist()

    before = tf.config.optimizer.get_experimental_options().get("arithmetic_optimization", True)
    try:
        as_written, optimized = added(False), added(True)
    finally:
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": before})
    assert as_written == [0.0] * 4, "Additions are no longer done as written: deterministic runs may differ by device."
    assert optimized == [1.0] * 4, (
        "Grappler no longer merges additions into AddN: deterministic runs need not switch arithmetic optimization off."
    )


def test_clearing_keras_session_resets_the_dtype_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.clear_session()
    assert keras.config.dtype_policy().name == "float32", (
        "clear_session now keeps the dtype policy: make_runtime may set it before."
    )


def test_device_dataset_is_not_autotuned(monkeypatch):
    tuned, iterate = [], tf.data.Dataset.__iter__
    monkeypatch.setattr(
        tf.data.Dataset, "__iter__", lambda self: tuned.append(self.options().autotune.enabled) or iterate(self)
    )
    with device_iterators_without_autotuning():
        iterator = multi_device_iterator_ops.OwnedMultiDeviceIterator(tf.data.Dataset.range(4), devices=["/cpu:0"])
    assert tuned == [False], "the iterators of devices are made in another way: see device_iterators_without_autotuning"
    assert [int(value) for (value,) in iterator] == [0, 1, 2, 3]


def test_other_sigterm_handlers_are_removed():
    def is_ignored() -> bool:
        (mask,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "SigIgn" in line)
        return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)

    with sigterm_kept():
        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN
        assert is_ignored()
    assert not is_ignored()


def test_seed_states_are_identified():
    layers = keras.layers
    random_layers = [
        layers.Dropout(0.5),
        ByteDropout(0.5),
        layers.SpatialDropout2D(0.2),
        layers.GaussianNoise(0.1),
        layers.GaussianDropout(0.1),
        layers.RandomFlip(),
    ]
    model = keras.Sequential(
        [
            layers.Input((8, 8, 2)),
            *random_layers,
            layers.Conv2D(2, 3),  # a bias of shape [2]
            layers.BatchNormalization(),  # statistics of shape [2]
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    states = [v for v in model.variables if is_seed_state(v)]
    expected = [layer.seed_generator.state for layer in random_layers if hasattr(layer, "seed_generator")]
    # RandomFlip and its like keep a generator under another name.
    expected += [layer.generator.state for layer in random_layers if hasattr(layer, "generator")]
    assert len(expected) == len(random_layers)
    assert {id(v) for v in states} == {id(v) for v in expected}, (
        "The variables of seed generators are called otherwise now: mend trainer/tf_compat.py, or seeds will be "
        "averaged like statistics."
    )
    others = [v for v in model.variables if not is_seed_state(v)]
    assert {v.dtype for v in others} == {"float32"}


@pytest.mark.parametrize("model", ["mini"])
def test_every_dropout_of_a_model_gets_its_seeds_from_the_step(model):
    """Were one seed state missed, its layer would draw from its own state, and two equal steps would differ."""
    train_step, state, built = make_step(model, global_batch_size=4, image_size=24)
    dropouts = [layer for layer in built.model.layers if isinstance(layer, ByteDropout)]
    states = [v for v in built.model.non_trainable_variables if is_seed_state(v)]
    assert dropouts and [id(layer.seed_generator.state) for layer in dropouts] == [id(v) for v in states]
    before = [v.numpy().tolist() for v in states]
    start = state.values()
    batch = {name: tf.constant(column) for name, column in make_batch(4, 24).items()}
    losses = []
    for _ in range(2):
        state.assign(start, 0)
        losses.append(float(train_step(batch, 0.1).sums[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert [v.numpy().tolist() for v in states] == before


def test_global_state_is_restored_also_after_an_error():
    """It relies on where Keras and TensorFlow keep their state."""
    tf_config.disable_op_determinism()
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy("mixed_bfloat16")
    expected = tf.random.normal([2]).numpy(), np.random.rand(), keras.layers.Dense(1).name
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy("mixed_bfloat16")
    with pytest.raises(RuntimeError), global_state_kept():
        assert keras.config.dtype_policy().name == "float32"
        keras.layers.Dense(1)
        keras.utils.set_random_seed(7)
        tf.random.normal([5])
        tf.config.experimental.enable_op_determinism()
        raise RuntimeError
    found = tf.random.normal([2]).numpy(), np.random.rand(), keras.layers.Dense(1).name
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1] and found[2].startswith("dense")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert not tf_config.is_op_determinism_enabled()


def test_runs_of_one_process_do_not_warn_that_functions_are_traced_again(caplog):
    advice = "5 out of the last 8 calls to f triggered tf.function retracing."
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        with global_state_kept():
            with global_state_kept():
                logger.warning("another warning")
            logger.warning(advice)
        assert {record.message for record in caplog.records} == {"another warning"}
        logger.warning(advice)
        assert caplog.records[-1].message == advice
    finally:
        logger.removeHandler(caplog.handler)


def test_automatic_names_continue_after_a_block_in_which_they_are_kept():
    first = keras.layers.Dense(1).name
    with automatic_names_kept():
        inside = keras.layers.Dense(1).name
        keras.layers.Flatten()
    assert keras.layers.Dense(1).name == inside != first


def test_the_edges_of_the_graph_of_a_model_are_found():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4)
    first, second = shared(inputs), shared(keras.layers.Dense(4)(inputs))
    total = keras.layers.Add()([first, second])
    for outputs, expected in ((first, [inputs]), (total, [first, second])):
        assert [id(tensor) for tensor in tensors_in(outputs)] == [id(tensor) for tensor in expected]
    assert tensors_in(second)[0] is not inputs
