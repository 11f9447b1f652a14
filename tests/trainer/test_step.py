"""The training step: its mathematics, and identical results on any number of devices.

Tests on one device run in this process. Tests that need several logical devices or determinism use `step_program.py`,
with many runs per process.
"""

import contextlib
import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.trainer.step import metrics
from convoy.trainer.step.losses import cross_entropy
from tests.trainer.step_program import (
    CLASSES,
    OPERATIONS,
    PLANTED,
    distribute,
    make_batch,
    make_step,
    values_on_every_device,
)

DEADLINE_SECONDS = 240
SMOOTHED = functools.partial(cross_entropy, label_smoothing=0.2)
PROGRAM = "tests.trainer.step_program"
# All options whose results could depend on the devices, at once.
EVERYTHING = {
    "optimizer": "adamw",
    "optimizer_options": {"weight_decay": 0.01},
    "clip_norm": 1.0,
    "average_decay": 0.9,
    "label_smoothing": 0.1,
    "class_weights": [0.5 + 0.1 * label for label in range(CLASSES)],
    "augmented": True,
    "mixing": {"mixup": 0.4, "cutmix": 1.0},
    "deterministic": True,
}


@pytest.fixture(scope="module")
def run_together(forks, tmp_path_factory):
    """Returns a function that runs `step_program.py` for several numbers of devices at the same time.

    Its argument has the options of each run by number of devices and name. It returns the reports and values.
    """

    def run(runs: dict[int, dict[str, dict]]) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
        folder = tmp_path_factory.mktemp("step")
        reports, values = {}, {}
        with contextlib.ExitStack() as stack:
            started = {}
            for devices, named in runs.items():
                command = (PROGRAM, specification(folder / f"{devices}.npz", devices, named))
                started[devices] = stack.enter_context(forks.started(*command, output=folder / f"{devices}.log"))
            for devices, process in started.items():
                code, output = process.wait(DEADLINE_SECONDS), (folder / f"{devices}.log").read_text()
                assert code == 0, output
                reports |= json.loads(output.splitlines()[-1])
                with np.load(folder / f"{devices}.npz") as found:
                    values |= found
        return reports, values

    return run


def specification(values: Path, devices: int, runs: dict[str, dict]) -> str:
    """Returns the argument of `step_program.py`."""
    named = [{"id": name, **options} for name, options in runs.items()]
    return json.dumps({"devices": devices, "values": str(values), "runs": named})


def part(values: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def on_two_devices(run_together):
    plain_sgd = {"optimizer_options": {"momentum": 0.0, "nesterov": False}}
    planted = {
        **{"model": "planted", "replicas": 2, "virtual_replicas": 2, "optimizer": "adamw", "average_decay": 0.9},
        **{"planted_step": 1, "planted_image": 13},  # image 13 of 16 belongs to the second replica
    }
    runs = {
        "fast_1": {"model": "mini", "replicas": 1, "virtual_replicas": 4, **EVERYTHING, "deterministic": False},
        "fast_2": {"model": "mini", "replicas": 2, "virtual_replicas": 4, **EVERYTHING, "deterministic": False},
        "masks": {"model": "masks", "replicas": 2, "virtual_replicas": 4, "batch_size": 4, "steps": 1},
        "gradient_2": {"model": "plain", "replicas": 2, "virtual_replicas": 2, "steps": 0},
        "gradient_4": {"model": "plain", "replicas": 2, "virtual_replicas": 4, "steps": 0},
        "clipped": {
            **{"model": "plain", "replicas": 2, "virtual_replicas": 2, "clip_norm": 0.05, "steps": 1},
            **{"learning_rate": 1.0, **plain_sgd},
        },
        "xla": {"model": "plain", "replicas": 2, "virtual_replicas": 2, "use_xla": True},
        "no_xla": {"model": "plain", "replicas": 2, "virtual_replicas": 2, "use_xla": False},
        "planted": {**planted, "precision": "mixed_float16", "loss_scale": 2.0**8},
        "planted_float32": planted,
        "exact_1": {"model": "mini", "replicas": 1, "virtual_replicas": 4, **EVERYTHING},
        "exact_2": {"model": "mini", "replicas": 2, "virtual_replicas": 4, **EVERYTHING},
        "other_seed": {"model": "mini", "replicas": 1, "virtual_replicas": 4, **EVERYTHING, "seed": 2},
    }
    return run_together({2: runs})


SIZED = {"batch_size": 16, "image_size": 24}
HARDWARE = {  # name of a configuration: (numbers of devices, options)
    "baseline_float32": ((1, 2), {"model": "baseline_cnn", "virtual_replicas": 2, **SIZED}),
    "baseline_bfloat16": (
        (1, 2),
        {"model": "baseline_cnn", "virtual_replicas": 2, "precision": "mixed_bfloat16", **SIZED},
    ),
    "four": ((1, 4), {"model": "mini", "virtual_replicas": 4, **SIZED}),
    "six": ((1, 3), {"model": "mini", "virtual_replicas": 6, "batch_size": 12, "image_size": 16}),
    "sixteen": ((1, 2), {"model": "mini", "virtual_replicas": 16, "batch_size": 32, "image_size": 16}),
    **{
        name: ((1, 2), {"model": "mini", "virtual_replicas": 2, "optimizer": name, "average_decay": 0.0})
        for name in ("lion", "muon", "schedule_free_adamw")
    },
}


@pytest.fixture(scope="module")
def on_any_hardware(run_together):
    runs = {devices: {} for devices in (1, 2, 3, 4)}
    for name, (numbers, options) in HARDWARE.items():
        for devices in numbers:
            runs[devices][f"{name}_{devices}"] = {**EVERYTHING, **options, "replicas": devices}
    return run_together(runs)


def assert_bit_identical(reports, values, one: str, other: str):
    first, second = part(values, f"{one}/after/"), part(values, f"{other}/after/")
    assert first.keys() == second.keys()
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} variables of {one} and {other} differ: {different[:3]}"
    for report in ("sha256", "losses", "norms"):
        assert reports[one][report] == reports[other][report], report


@pytest.mark.slow
@pytest.mark.parametrize("name", HARDWARE)
def test_deterministic_runs_are_bit_identical_on_any_number_of_devices(on_any_hardware, name):
    reports, values = on_any_hardware
    devices, _ = HARDWARE[name]
    first, *others = (f"{name}_{replicas}" for replicas in devices)
    assert all(reports[first]["finite"]) and len(set(reports[first]["losses"])) == 3
    before, after = part(values, f"{first}/before/"), part(values, f"{first}/after/")
    unchanged = {name for name in before if np.array_equal(before[name], after[name])}
    assert unchanged == {"loss_scale/scale", "loss_scale/good_steps"}
    for other in others:
        assert_bit_identical(reports, values, first, other)
        assert reports[other]["devices_agree"]


@pytest.mark.slow
def test_results_depend_on_the_precision(on_any_hardware):
    reports, _ = on_any_hardware
    assert reports["baseline_float32_1"]["sha256"] != reports["baseline_bfloat16_1"]["sha256"]


@pytest.mark.slow
def test_deterministic_runs_on_one_and_two_devices_are_bit_identical(on_two_devices):
    reports, values = on_two_devices
    assert_bit_identical(reports, values, "exact_1", "exact_2")
    assert reports["exact_2"]["devices_agree"]
    assert reports["other_seed"]["sha256"] != reports["exact_1"]["sha256"]


@pytest.mark.slow
def test_runs_on_one_and_two_devices_agree_up_to_rounding_without_determinism(on_two_devices):
    reports, values = on_two_devices
    one, two = part(values, "fast_1/after/"), part(values, "fast_2/after/")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
    assert reports["fast_1"]["losses"] == pytest.approx(reports["fast_2"]["losses"], rel=1e-4)
    assert reports["fast_2"]["devices_agree"]


def reference_gradients(built, batch) -> list[np.ndarray]:
    """Returns the gradient of the mean loss over a global batch, computed directly."""
    with tf.GradientTape() as tape:
        logits = built.model(tf.cast(batch["image"], tf.float32) / 255.0, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        loss = tf.reduce_mean(losses) + sum(built.model.losses)
    return [g.numpy() for g in tape.gradient(loss, [w.value for w in built.model.trainable_variables])]


@pytest.mark.parametrize("virtual_replicas", [1, 2, 4, 16])
@pytest.mark.parametrize("model", ["plain", "regularized"])
def test_the_gradient_is_that_of_the_mean_loss_for_any_number_of_virtual_replicas(model, virtual_replicas):
    train_step, state, built = make_step(model, global_batch_size=16, virtual_replicas=virtual_replicas)
    batch = make_batch(16)
    gradients = train_step.gradients(distribute(state.strategy, batch))
    for variable, own, expected in zip(state.weights, gradients, reference_gradients(built, batch), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6, err_msg=variable.path)
    assert state.step == 0


@pytest.mark.slow
@pytest.mark.parametrize("virtual_replicas", [2, 4])
def test_the_gradient_on_two_devices_is_that_of_the_mean_loss(on_two_devices, virtual_replicas):
    _, values = on_two_devices
    _, state, built = make_step("plain", global_batch_size=16)
    for path, value in part(values, f"gradient_{virtual_replicas}/before/model/").items():
        {w.path: w for w in state.weights}[path].assign(value)
    expected = dict(zip([w.path for w in state.weights], reference_gradients(built, make_batch(16)), strict=True))
    gradients = part(values, f"gradient_{virtual_replicas}/gradient/")
    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("virtual_replicas", [1, 4])
def test_batch_norm_uses_one_virtual_replica_and_averages_statistics_over_all(virtual_replicas):
    train_step, state, built = make_step(
        "norm",
        global_batch_size=16,
        virtual_replicas=virtual_replicas,
        optimizer_options={"momentum": 0.0, "nesterov": False},
    )
    batch = make_batch(16)
    weights = [w.numpy() for w in state.weights]
    statistics = [v.numpy() for v in state.statistics]
    gradient_sums, statistic_sums = [np.zeros_like(w) for w in weights], [np.zeros_like(v) for v in statistics]
    for images, labels in zip(*(np.split(batch[name], virtual_replicas) for name in ("image", "label")), strict=True):
        for variable, value in zip(state.statistics, statistics, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            logits = built.model(tf.cast(images, tf.float32) / 255.0, training=True)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        for total, gradient in zip(gradient_sums, tape.gradient(loss, [w.value for w in state.weights]), strict=True):
            total += gradient.numpy()
        for total, variable in zip(statistic_sums, state.statistics, strict=True):
            total += variable.numpy()
    for variable, value in zip(state.statistics, statistics, strict=True):
        variable.assign(value)

    train_step(distribute(state.strategy, batch), 0.5)
    for variable, before, gradient in zip(state.weights, weights, gradient_sums, strict=True):
        expected = before - 0.5 * gradient / 16
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-6, err_msg=variable.path)
    for variable, total in zip(state.statistics, statistic_sums, strict=True):
        np.testing.assert_allclose(variable.numpy(), total / virtual_replicas, rtol=1e-5, err_msg=variable.path)


@pytest.mark.parametrize("virtual_replicas", [1, 3])
def test_weights_of_frozen_layers_stay_bit_identical(virtual_replicas):
    train_step, state, _ = make_step("frozen", global_batch_size=12, virtual_replicas=virtual_replicas)
    before = {v.path: v.numpy() for v in state.model_variables}
    for _ in range(2):
        train_step(distribute(state.strategy, make_batch(12)), 0.5)
    unchanged = {v.path for v in state.model_variables if np.array_equal(v.numpy(), before[v.path])}
    assert unchanged == {"conv1/kernel", "conv1/bias"}


@pytest.mark.slow
def test_the_gradient_is_clipped_once_after_the_reduction(on_two_devices):
    reports, values = on_two_devices
    before, after = part(values, "clipped/before/model/"), part(values, "clipped/after/model/")
    gradient = part(values, "clipped/gradient/")
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
    assert norm > 0.1  # well above the limit of 0.05
    assert reports["clipped"]["norms"] == pytest.approx([norm], rel=1e-5)
    for path, value in after.items():
        expected = before[path] - gradient[path] * 0.05 / norm
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=path)
    # Clipping per replica would have given another update.
    _, state, built = make_step("plain", global_batch_size=16)
    for weight in state.weights:
        weight.assign(before[weight.path])
    batch = make_batch(16)
    clipped_first = []
    for half in range(2):
        share = {name: column[8 * half : 8 * half + 8] for name, column in batch.items()}
        gradients, _ = tf.clip_by_global_norm(reference_gradients(built, share), 0.05)
        clipped_first.append(gradients)
    wrong = [(a + b) / 2 for a, b in zip(*clipped_first, strict=True)]
    taken = [before[w.path] - after[w.path] for w in state.weights]
    assert any(not np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(taken, wrong, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gradient_below_the_limit_is_not_clipped(deterministic):
    afters = []
    for clip_norm in (0.0, 1e6):
        train_step, state, _ = make_step(
            "plain", global_batch_size=16, clip_norm=clip_norm, deterministic=deterministic
        )
        train_step(distribute(state.strategy, make_batch(16)), 0.1)
        afters.append(state.weights_sha256())
    assert afters[0] == afters[1]


@pytest.mark.slow
def test_xla_changes_only_rounding(on_two_devices):
    reports, values = on_two_devices
    with_xla, without = part(values, "xla/after/"), part(values, "no_xla/after/")
    for name, value in without.items():
        np.testing.assert_allclose(with_xla[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert reports["xla"]["devices_agree"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["planted", "planted_float32"])
def test_an_overflow_on_one_device_skips_the_update_on_all(on_two_devices, run):
    reports, _ = on_two_devices
    report = reports[run]
    assert report["finite"] == [True, False, True]
    assert not np.isfinite(report["norms"][1])
    good, bad, after = report["changed"]
    for kind in ("model/", "optimizer/", "average/"):
        assert any(name.startswith(kind) for name in good) and any(name.startswith(kind) for name in after)
    assert all(name.startswith("loss_scale/") for name in bad), bad
    assert report["devices_agree"]


@pytest.mark.slow
def test_an_overflow_halves_the_loss_scale_only_in_float16(on_two_devices):
    reports, values = on_two_devices
    assert reports["planted"]["scales"] == [2.0**8, 2.0**8, 2.0**7]
    assert values["planted/after/loss_scale/good_steps"] == 1  # counted from the overflow
    assert reports["planted_float32"]["scales"] == [1.0, 1.0, 1.0]
    assert "loss_scale/scale" in reports["planted"]["changed"][1]


@pytest.mark.slow
def test_an_overflow_in_one_process_skips_the_step_in_all(cluster, tmp_path):
    planted = {
        **{"model": "planted", "replicas": 2, "virtual_replicas": 2, "optimizer": "adamw", "average_decay": 0.9},
        **{"planted_step": 1, "planted_image": 13, "precision": "mixed_float16", "loss_scale": 2.0**8},
    }
    only = {rank: (specification(tmp_path / f"{rank}.npz", 1, {"planted": planted}),) for rank in (0, 1)}
    workers = cluster(module=PROGRAM, only=only, output=tmp_path, check=True)
    first, second = (workers.report(rank)["planted"] for rank in (0, 1))
    # Image 13 of 16 belongs to the second worker: the first worker has no overflow of its own.
    assert first == second
    assert first["finite"] == [True, False, True]
    assert first["scales"] == [2.0**8, 2.0**8, 2.0**7]
    good, bad, after = first["changed"]
    assert any(name.startswith("model/") for name in good) and any(name.startswith("model/") for name in after)
    assert bad and all(name.startswith("loss_scale/") for name in bad)
    with np.load(tmp_path / "0.npz") as values, np.load(tmp_path / "1.npz") as others:
        of_first, of_second = part(values, "planted/after/"), part(others, "planted/after/")
    assert of_first.keys() == of_second.keys()
    assert [name for name in of_first if not np.array_equal(of_first[name], of_second[name])] == []


def test_the_loss_scale_doubles_after_2000_steps_without_overflow():
    train_step, state, _ = make_step("plain", precision="mixed_float16", global_batch_size=4)
    batch = distribute(state.strategy, make_batch(4))
    state.loss_scale.assign(2.0**10)
    state.good_steps.assign(1998)
    seen = []
    for _ in range(3):
        train_step(batch, 0.01)
        seen.append((float(state.loss_scale), int(state.good_steps)))
    assert seen == [(2.0**10, 1999), (2.0**11, 0), (2.0**11, 1)]


def test_the_loss_scale_grows_up_to_a_limit():
    train_step, state, _ = make_step("plain", precision="mixed_float16", global_batch_size=4)
    batch = make_batch(4)
    # With a very confident and correct model the gradient is 0, which no scale makes infinite.
    batch["label"][:] = 3
    {w.path: w for w in state.weights}["logits/bias"].assign(np.eye(CLASSES)[3] * 1000)
    scales = []
    for scale in (2.0**23, 2.0**24):
        state.loss_scale.assign(scale)
        state.good_steps.assign(1999)
        assert train_step(distribute(state.strategy, batch), 0.0).finite
        scales.append(float(state.loss_scale))
    assert scales == [2.0**24, 2.0**24]


def test_the_loss_scale_never_falls_below_one():
    train_step, state, _ = make_step("planted", precision="mixed_float16", global_batch_size=4)
    state.loss_scale.assign(1.0)
    batch = make_batch(4)
    batch["image"][2, 0, 0] = PLANTED
    result = train_step(distribute(state.strategy, batch), 0.01)
    assert not result.finite and float(state.loss_scale) == 1.0


def test_the_loss_scale_does_not_change_the_update():
    afters = []
    for scale in (1.0, 2.0**8):
        train_step, state, _ = make_step("plain", precision="mixed_float16", global_batch_size=8, virtual_replicas=2)
        state.loss_scale.assign(scale)
        result = train_step(distribute(state.strategy, make_batch(8)), 0.1)
        afters.append(([w.numpy() for w in state.weights], float(result.gradient_norm)))
    assert afters[0][1] == pytest.approx(afters[1][1], rel=1e-2)
    for one, other in zip(afters[0][0], afters[1][0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=2e-4)


def masks_batch() -> dict[str, np.ndarray]:
    """Returns four gray images of 128, 32, 8 and 2, so that a sum identifies which of them were kept."""
    batch = make_batch(4)
    batch["image"][:] = np.array([128, 32, 8, 2], np.uint8)[:, None, None, None]
    return batch


def kept(statistic: np.ndarray) -> np.ndarray:
    """Returns which values each of four virtual replicas kept, [4, values] bool, from the mean of `Recorder`."""
    sums = np.round(statistic * 4 * 255 / 2).astype(int)
    masks = np.stack([sums >> 7 & 1, sums >> 5 & 1, sums >> 3 & 1, sums >> 1 & 1])
    assert np.array_equal(masks.T @ [128, 32, 8, 2], sums)
    return masks.astype(bool)


def masks_of_step(step: int = 0, seed: int = 1, virtual_replicas: int = 4) -> np.ndarray:
    """Returns the dropout masks of one step, [layer, virtual replica, value] bool."""
    train_step, state, _ = make_step("masks", global_batch_size=4, virtual_replicas=virtual_replicas, seed=seed)
    state.step = step
    train_step(distribute(state.strategy, masks_batch()), 0.1)
    return np.stack([kept(variable.numpy()) for variable in state.statistics])


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return (one == other).mean()


@pytest.mark.slow
def test_dropout_masks_differ_between_layers_virtual_replicas_steps_and_seeds():
    masks = [
        *masks_of_step().reshape(8, -1),
        *masks_of_step(step=1).reshape(8, -1),
        *masks_of_step(seed=2).reshape(8, -1),
    ]
    for i, one in enumerate(masks):
        assert 0.3 < one.mean() < 0.7
        for other in masks[:i]:
            assert 0.3 < agreement(one, other) < 0.7  # 0.5 expected, over 192 values


@pytest.mark.slow
def test_dropout_masks_are_reproducible():
    assert np.array_equal(masks_of_step(step=5), masks_of_step(step=5))


@pytest.mark.slow
def test_dropout_masks_do_not_depend_on_earlier_steps():
    train_step, state, _ = make_step("masks", global_batch_size=4, virtual_replicas=4)
    batch = distribute(state.strategy, masks_batch())
    for _ in range(3):
        train_step(batch, 0.1)
    later = np.stack([kept(variable.numpy()) for variable in state.statistics])
    assert np.array_equal(later, masks_of_step(step=2))


@pytest.mark.slow
def test_dropout_masks_do_not_depend_on_the_number_of_devices(on_two_devices):
    _, values = on_two_devices
    train_step, state, _ = make_step("masks", global_batch_size=4, virtual_replicas=4)
    train_step(distribute(state.strategy, make_batch(4)), 0.01)
    for variable in state.statistics:
        seen = values[f"masks/after/model/{variable.path}"]
        np.testing.assert_allclose(variable.numpy(), seen, rtol=1e-6, err_msg=variable.path)
        assert seen.any()


def test_the_moving_average_of_the_weights_follows_its_formula():
    train_step, state, _ = make_step("plain", global_batch_size=8, average_decay=0.3)
    expected = [w.numpy().astype(np.float64) for w in state.weights]
    assert all(np.array_equal(a.numpy(), w.numpy()) for a, w in zip(state.averages, state.weights, strict=True))
    decays = []
    for number in range(1, 6):
        train_step(distribute(state.strategy, make_batch(8, seed=number)), 0.5)
        decays.append(min(0.3, (1 + number) / (10 + number)))
        expected = [
            decays[-1] * average + (1 - decays[-1]) * w.numpy()
            for average, w in zip(expected, state.weights, strict=True)
        ]
        for average, value, weight in zip(state.averages, expected, state.weights, strict=True):
            np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-6, err_msg=weight.path)
    assert len(set(decays)) > 2 and decays[-1] == 0.3  # both branches of the minimum occurred


def test_a_step_returns_metric_sums_and_gradient_norm():
    train_step, state, built = make_step("plain", global_batch_size=16, virtual_replicas=4, loss=SMOOTHED)
    batch = make_batch(16)
    logits = built.model(tf.cast(batch["image"], tf.float32) / 255.0, training=True)
    expected = metrics.batch_sums(logits, batch["label"], SMOOTHED(logits, tf.constant(batch["label"])))
    gradients = train_step.gradients(distribute(state.strategy, batch))
    result = train_step(distribute(state.strategy, batch), 0.1)
    np.testing.assert_allclose(result.sums, expected, rtol=1e-5, atol=1e-5)
    assert float(result.gradient_norm) == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-5)
    assert bool(result.finite) and float(result.loss_scale) == 1.0 and state.step == 1


def test_label_smoothing_is_cross_entropy_with_smoothed_targets():
    logits = tf.constant(np.random.default_rng(0).normal(size=(6, CLASSES)), tf.float32)
    labels = tf.constant([0, 3, 9, 3, 1, 2])
    targets = tf.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
    expected = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1), expected, rtol=1e-5)
    plain = tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(labels, CLASSES), logits)
    np.testing.assert_allclose(cross_entropy(logits, labels), plain, rtol=1e-5)


@pytest.mark.slow
def test_device_operations_of_the_augmentation_run_in_the_step():
    hashes = set()
    batch = make_batch(8)
    for randomness in (batch["randomness"], 1 - batch["randomness"]):
        train_step, state, _ = make_step("plain", global_batch_size=8, operations=OPERATIONS)
        train_step(distribute(state.strategy, {**batch, "randomness": randomness.astype(np.float32)}), 0.1)
        hashes.add(state.weights_sha256())
    assert len(hashes) == 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lamb", "lars"])
def test_every_optimizer_lowers_the_loss(optimizer):
    train_step, state, _ = make_step("plain", optimizer=optimizer, global_batch_size=16, virtual_replicas=2)
    batch = distribute(state.strategy, make_batch(16))
    rate = {"lars": 5.0, "lamb": 0.04, "sgd": 0.05}.get(optimizer, 0.01)
    losses = [float(train_step(batch, rate).sums[0]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_training_from_a_restored_state_gives_the_same_result():
    options = {"optimizer": "adamw", "average_decay": 0.9, "global_batch_size": 8, "virtual_replicas": 2}
    train_step, state, _ = make_step("mini", **options)
    batches = [distribute(state.strategy, make_batch(8, seed=number)) for number in range(4)]
    for batch in batches[:2]:
        train_step(batch, 0.01)
    saved, step = state.values(), state.step
    for batch in batches[2:]:
        train_step(batch, 0.01)
    other_step, other, _ = make_step("mini", initial_seed=9, **options)
    other.assign(saved, step)
    for batch in batches[2:]:
        other_step(batch, 0.01)
    expected = values_on_every_device(state)
    for name, (value,) in values_on_every_device(other).items():
        np.testing.assert_allclose(value, expected[name][0], rtol=1e-6, atol=1e-7, err_msg=name)
