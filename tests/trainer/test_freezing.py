"""Frozen backbones: what changes in each phase, and resuming before and after the change of phase."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.models import build_model
from tests.trainer import user_models
from tests.trainer.run_files import measured, result_of
from tests.trainer.step_program import distribute, make_batch, make_step

BACKBONE = {  # variables of the model `mini` before its Flatten
    *("conv1/kernel", "conv1/bias", "norm1/gamma", "norm1/beta", "norm1/moving_mean", "norm1/moving_variance"),
    *("conv2/kernel", "conv2/bias"),
}
ADAMW = {
    **{"optimizer": "adamw", "optimizer_options": {"weight_decay": 0.1}, "average_decay": 0.9},
    **{"global_batch_size": 12, "virtual_replicas": 3},
}
PLAIN_SGD = {
    **{"optimizer_options": {"momentum": 0.0, "nesterov": False}, "global_batch_size": 12, "virtual_replicas": 3},
}


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


def changed_by_a_step(train_step, state, number=0, learning_rate=0.01):
    """Trains for a step; returns the difference of each variable that changed in any bit, by name."""
    before = state.values()
    train_step(distribute(state.strategy, make_batch(12, seed=number)), learning_rate)
    return {
        name: value - before[name]
        for name, value in state.values().items()
        if value.tobytes() != before[name].tobytes()
    }


def paths(names):
    return {name.split("/", 2 if name.startswith("optimizer") else 1)[-1] for name in names}


@pytest.mark.slow
def test_frozen_variables_stay_bit_identical():
    train_step, state, _ = make_step("mini", **ADAMW, freeze_steps=2)
    negative_zero = np.full([8], -0.0, np.float32)
    state.weights[1].assign(negative_zero)
    state.averages[1].assign(negative_zero)
    everything = paths(state.values()) - {"scale", "good_steps"}
    for number in range(2):
        assert paths(changed_by_a_step(train_step, state, number)) == everything - BACKBONE
    assert paths(changed_by_a_step(train_step, state, 2)) == everything


def test_a_frozen_backbone_runs_in_inference_mode():
    train_step, state, built = make_step("norm", **PLAIN_SGD, freeze_steps=1)
    for statistic in state.statistics:
        statistic.assign(tf.random.stateless_uniform(statistic.shape, [1, 2], 0.5, 1.5))
    batch = make_batch(12)
    features = keras.Model(built.model.input, built.model.get_layer("flatten").output)(
        tf.cast(batch["image"], tf.float32) / 255.0, training=False
    )
    head = built.model.get_layer("logits")
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], head(features))
        loss = tf.reduce_mean(losses)
    kernel, bias = tape.gradient(loss, [w.value for w in head.weights])
    expected = {"logits/kernel": kernel, "logits/bias": bias}
    changes = changed_by_a_step(train_step, state, learning_rate=0.5)
    assert paths(changes) == expected.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(changes[f"model/{path}"], -0.5 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_bias_correction_of_adam_counts_from_the_first_update_of_a_weight():
    """The first update has the size of the learning rate; counted from the start it would be three times as large."""
    train_step, state, _ = make_step("mini", **{**ADAMW, "optimizer_options": {}}, freeze_steps=3)
    for number in range(3):
        changes = changed_by_a_step(train_step, state, number)
        if number == 0:
            assert np.abs(changes["model/logits/kernel"]).max() == pytest.approx(0.01, rel=1e-2)
    first = changed_by_a_step(train_step, state, 3)
    assert np.abs(first["model/conv2/kernel"]).max() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.slow
def test_backbone_rate_scales_the_learning_rate_of_the_backbone():
    changes = {}
    for rate in (1.0, 0.25):
        train_step, state, _ = make_step("mini", **PLAIN_SGD, backbone_rate=rate)
        changes[rate] = changed_by_a_step(train_step, state)
    for path in BACKBONE - {"norm1/moving_mean", "norm1/moving_variance"}:
        np.testing.assert_allclose(
            changes[0.25][f"model/{path}"], 0.25 * changes[1.0][f"model/{path}"], rtol=1e-3, atol=1e-7
        )
    for path in ("dense1/kernel", "logits/kernel"):
        assert np.array_equal(changes[0.25][f"model/{path}"], changes[1.0][f"model/{path}"])


def test_a_model_without_a_separate_head_is_rejected():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = keras.layers.Dense(3)

        def call(self, images):
            return self.dense(keras.ops.mean(images, (1, 2)))

    from convoy.trainer.models import ModelBundle
    from convoy.trainer.step.freezing import training_phases

    own = Own()
    own.build((None, 8, 8, 3))
    with pytest.raises(UsageError, match=r"'own'.*config\.model\.freeze"):
        training_phases(ModelBundle(own, lambda pixels: pixels), freeze_steps=1)


def test_freezing_random_weights_is_rejected():
    config = configs.load_recipe("resnet10")
    config.model.freeze_epochs = 2
    with pytest.raises(UsageError, match=r"config\.model\.freeze_epochs=2\.0: .*config\.model\.weights"):
        configs.check(config)
    config.model.name = "mine.py:function"  # which may load weights itself
    configs.check(config)


FREEZE, STEPS = 4, 7


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, convoy, dataset):
    """Fine-tunes on one device from weights for other classes, with a checkpoint per step.

    Returns the command, the run directory and the output.
    """
    folder = tmp_path_factory.mktemp("finetuned")
    weights, model = folder / "other.weights.h5", f"{user_models.__file__}:normalized"
    keras.utils.set_random_seed(5)
    build_model(model, num_classes=20, image_size=32).model.save_weights(weights)
    command = (
        *("train", "--config=smoke", "--deterministic", "--config.precision=float32", "--config.virtual_replicas=2"),
        *(f"--config.model.name={model}", f"--config.model.weights={weights}"),
        *(f"--config.model.freeze_steps={FREEZE}", "--config.model.backbone_rate=0.5", f"--config.steps={STEPS}"),
        "--config.model.layer_decay=0.8",
        *("--config.checkpoint_every_steps=1", "--config.keep_checkpoints=100", "--config.log_every_steps=1"),
        f"--data={dataset.data}",
    )
    run = folder / "run"
    answer = convoy(*command, "--devices=cpu:1", f"--workdir={run}", check=True)
    return command, run, answer.stdout


@pytest.mark.slow
def test_a_run_logs_loaded_weights_and_frozen_steps(finetuned):
    output = " ".join(finetuned[2].replace("│", " ").split())
    assert re.search(rf"step {FREEZE}\b", output)
    assert "5 of 5" in output and "0 of 2" in output
    assert "2 learning rates" in output and "0.4" in output


@pytest.mark.slow
def test_only_the_head_differs_between_checkpoints_of_frozen_steps(finetuned):
    store = CheckpointStore(finetuned[1] / "checkpoints")
    values = [store.load(step)[0] for step in (1, FREEZE, STEPS)]

    def changed(before, after):
        return {name for name in before if before[name].tobytes() != after[name].tobytes()}

    assert all("/logits/" in name for name in changed(values[0], values[1]))
    assert changed(values[1], values[2]) == {name for name in values[0] if not name.startswith("loss_scale")}


@pytest.mark.slow
def test_runs_resumed_before_and_at_unfreezing_give_the_same_result_on_two_devices(finetuned, convoy, tmp_path):
    command, run, _ = finetuned
    runs = {step: tmp_path / f"from-{step}" for step in (FREEZE - 1, FREEZE)}
    for step, copy in runs.items():
        shutil.copytree(run, copy)
        (copy / "result.json").unlink()
        for later in range(step + 1, STEPS + 1):
            (copy / f"checkpoints/step-{later:09d}.npz").unlink()
    # The weights come from the checkpoint, so the file is not needed any more.
    weights = next(flag for flag in command if "model.weights" in flag).partition("=")[2]
    hidden = shutil.move(weights, f"{weights}.away")
    answers = [convoy(*command, "--devices=cpu:2", f"--workdir={copy}") for copy in runs.values()]
    shutil.move(hidden, weights)
    for (step, copy), answer in zip(runs.items(), answers, strict=True):
        assert answer.returncode == 0 and f"step {step} of {STEPS}" in answer.output, answer.output
        assert result_of(copy)["weights_sha256"] == result_of(run)["weights_sha256"]
        assert measured(copy, "train") == measured(run, "train")
    assert json.loads((run / "config.json").read_text())["model"]["weights"] == weights
