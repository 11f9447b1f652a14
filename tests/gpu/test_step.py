"""Layers, optimizers and the training step on a device, and on two."""

import numpy as np
import pytest

from tests.trainer.test_step import EVERYTHING, specification

# Largest difference to Keras relative to the largest value: rounding, since both compute in the same precision.
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2, "float16": 5e-3}
PLAIN = {"model": "plain", "batch_size": 16, "steps": 3}
PLANTED = {
    **{"model": "planted", "precision": "mixed_float16", "loss_scale": 2.0**8, "optimizer": "adamw"},
    **{"planted_step": 1, "planted_image": 13},
}
MINI = {"model": "mini", "virtual_replicas": 4, **EVERYTHING}
ON_ONE = {
    "V=1": {**PLAIN, "virtual_replicas": 1},
    "V=2": {**PLAIN, "virtual_replicas": 2},
    "V=4": {**PLAIN, "virtual_replicas": 4},
    "xla": {**PLAIN, "virtual_replicas": 2, "use_xla": True},
    "bfloat16": {**PLAIN, "virtual_replicas": 2, "precision": "mixed_bfloat16"},
    "planted": PLANTED,
    "exact": MINI,
    "exact again": MINI,
}
ON_TWO = {
    "fast": {**MINI, "deterministic": False, "replicas": 2},
    "exact on two": {**MINI, "replicas": 2},
    "planted on two": {**PLANTED, "replicas": 2, "virtual_replicas": 2},
}


def stepped(place, folder, devices, runs):
    """Returns the reports of runs of `step_program`, and the values of their variables, by name of the run."""
    place.devices(devices)
    result = place.run("tests.trainer.step_program", specification(folder / "values.npz", devices, runs))
    reports = result.report()
    with np.load(folder / "values.npz") as values:
        return reports, dict(values)


@pytest.fixture(scope="module")
def on_one(place, tmp_path_factory):
    return stepped(place, tmp_path_factory.mktemp("one"), 1, ON_ONE)


@pytest.fixture(scope="module")
def on_two(place, tmp_path_factory):
    return stepped(place, tmp_path_factory.mktemp("two"), 2, ON_TWO)


def weights(values, name, prefix="after/model/"):
    start = f"{name}/{prefix}"
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_layers_and_optimizers_are_those_of_keras(place):
    found = place.run("tests.gpu.against_keras", f"{place.kind}:0").report()
    wrong = {
        (name, dtype): difference
        for name, by_dtype in found.items()
        for dtype, difference in by_dtype.items()
        if not difference <= (0.0 if name == "dropout" else TOLERANCE[dtype])
    }
    assert not wrong
    assert {"dropout", "adamw", "lamb"} <= found.keys()


def test_the_gradient_does_not_depend_on_the_number_of_virtual_replicas(on_one):
    _, values = on_one
    for name in ("V=2", "V=4"):
        assert_close(weights(values, name, "gradient/"), weights(values, "V=1", "gradient/"), 1e-3)
        assert_close(weights(values, name), weights(values, "V=1"), 1e-3)


def test_xla_trains_the_same(on_one):
    _, values = on_one
    assert_close(weights(values, "xla"), weights(values, "V=2"), 1e-3)


def test_bfloat16_trains_the_same_but_for_its_rounding(on_one):
    reports, values = on_one
    assert_close(weights(values, "bfloat16"), weights(values, "V=2"), 3e-2)
    assert reports["bfloat16"]["losses"] != reports["V=2"]["losses"]


def test_a_deterministic_run_repeats_bit_for_bit(place, on_one, tmp_path):
    reports, _ = on_one
    again, _ = stepped(place, tmp_path, 1, {"in another process": MINI})
    assert reports["exact"]["sha256"] == reports["exact again"]["sha256"] == again["in another process"]["sha256"]


def assert_overflow_is_skipped(report):
    assert report["finite"] == [True, False, True]
    assert report["scales"] == [2.0**8, 2.0**8, 2.0**7]
    _, at_overflow, _ = report["changed"]
    assert at_overflow and all(name.startswith("loss_scale/") for name in at_overflow)
    assert report["devices_agree"]


def test_an_overflow_of_float16_lowers_the_loss_scale_and_changes_nothing_else(on_one):
    assert_overflow_is_skipped(on_one[0]["planted"])


def test_an_overflow_on_one_of_two_devices_is_skipped_on_both(on_two):
    assert_overflow_is_skipped(on_two[0]["planted on two"])


def test_two_devices_train_as_one_does(on_one, on_two):
    (one, _), (two, _) = on_one, on_two
    assert two["fast"]["devices_agree"] and two["exact on two"]["devices_agree"]
    assert two["exact on two"]["sha256"] == one["exact"]["sha256"]
    assert two["fast"]["losses"] == pytest.approx(one["exact"]["losses"], rel=1e-3)
