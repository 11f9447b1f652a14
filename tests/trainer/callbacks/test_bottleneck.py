"""What is said to limit a run, from steps whose times are given."""

import time
from types import SimpleNamespace

import keras
import pytest

from convoy.core.processes import usable_cores
from convoy.trainer.callbacks.bottleneck import BottleneckAnalyzer
from convoy.trainer.callbacks.step_timer import Window
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import default_config, resolve


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])


@pytest.fixture
def limits_of(model):
    """Makes the limits of a run on CPU devices whose reduction takes so many seconds."""

    def make(*, reduction=0.0, replicas=2, settings=None, **changed):
        config = default_config()
        config.image_size = 8
        config.update(changed)
        plan = resolve(config, num_images=1000, replicas=replicas)
        strategy = SimpleNamespace(extended=SimpleNamespace(worker_devices=["/device:CPU:0"] * replicas))
        runtime = SimpleNamespace(
            strategy=strategy,
            precision="bfloat16",
            use_xla=False,
            model_for_size=lambda size: SimpleNamespace(model=model),
            state=SimpleNamespace(weights=model.trainable_variables, step=1),
        )
        step = SimpleNamespace(reduction_alone=lambda: lambda: time.sleep(reduction))
        dataset = SimpleNamespace(manifest={"settings": settings or {}})
        limits = BottleneckAnalyzer(config, plan, runtime, dataset, step, WorkerGroup(None))
        limits.probe()
        return limits

    return make


def steps(step_ms=100.0, *, waiting=0.0, cores_busy=0.0):
    return Window(20, 1e3 * 64 / step_ms, step_ms, step_ms, step_ms, waiting, cores_busy)


def test_a_step_is_split_into_waiting_reducing_and_computing(limits_of):
    summary = limits_of(reduction=0.02).summary(steps(200.0, waiting=5.0))
    assert summary["input_wait_ms"] == 10.0
    assert 20.0 <= summary["reduction_ms"] < 150.0
    assert summary["compute_ms"] == pytest.approx(200.0 - 10.0 - summary["reduction_ms"])
    assert summary["images_per_second"] == 320.0
    assert summary["images_per_second_per_replica"] == 160.0


def test_a_reduction_that_took_longer_alone_than_the_whole_step_leaves_nothing_negative(limits_of):
    summary = limits_of(reduction=0.02).summary(steps(10.0, waiting=50.0))
    assert (summary["reduction_ms"], summary["compute_ms"]) == (5.0, 0.0)


def test_one_device_has_no_reduction(limits_of):
    summary = limits_of(reduction=9.0, replicas=1).summary(steps(10.0))
    assert summary["reduction_ms"] == 0.0
    assert summary["sentence"].startswith("compute-bound: 100 % of a step computes, on 1 CPU device;")


def test_a_step_that_mostly_computes_is_compute_bound(limits_of):
    summary = limits_of().summary(steps(waiting=10.0))
    assert summary["bound"] == "compute"
    assert summary["sentence"].endswith("on 2 CPU devices; more or faster devices would help")


def test_waiting_with_busy_cores_is_decoding_and_names_what_is_not_done_yet(limits_of):
    window, cores = steps(waiting=40.0, cores_busy=usable_cores()), usable_cores()
    assert limits_of().summary(window)["sentence"] == (
        f"input-bound: 40 % of a step waits for images; decoding, {cores:.1f} of {cores} cores busy; "
        "try --config.cache=memory or `convoy convert` with --encoding=raw"
    )
    assert limits_of(cache="memory").summary(window)["sentence"].endswith("try `convoy convert` with --encoding=raw")
    done = limits_of(cache="memory", settings={"encoding": "raw"})
    assert done.summary(window)["sentence"].endswith("try more cores")


def test_waiting_with_idle_cores_is_reading(limits_of):
    summary = limits_of().summary(steps(waiting=40.0, cores_busy=0.1))
    assert "; reading, 0.1 of " in summary["sentence"]
    assert summary["sentence"].endswith("try --config.cache=memory or --config.shuffle=block")


def test_a_long_reduction_is_named_with_its_megabytes(limits_of):
    parameters = 8 * 8 * 3 * 4 + 4
    summary = limits_of(reduction=0.05).summary(steps(100.0, waiting=1.0))
    assert summary["bound"] == "reduction"
    assert f"of a step sums {4 * parameters / 1e6:.1f} MB of gradients over 2 devices" in summary["sentence"]
    assert summary["sentence"].endswith("try a larger --config.batch_size or --config.reduce_in_bfloat16")
    deterministic = limits_of(reduction=0.05, deterministic=True).summary(steps(100.0))
    assert deterministic["sentence"].endswith("try a larger --config.batch_size")


def test_the_work_of_an_image_is_that_of_the_steps_that_were_timed(limits_of, monkeypatch):
    monkeypatch.setattr("convoy.trainer.callbacks.bottleneck.training_flops", lambda model, shape: 1e9 * shape[1])
    limits = limits_of(steps=40, progressive={"sizes": (16,), "ends": (0.25,)})
    for step, gflops in ((10, 16), (20, (16 + 8) / 2), (40, 8)):
        limits._runtime.state.step = step
        assert limits.summary(steps())["training_gflops_per_image"] == pytest.approx(gflops)


def test_utilization_is_of_a_peak_that_was_measured_and_left_out_where_there_is_none(limits_of):
    unknown, measured = limits_of(), limits_of(measure_peak=True)
    assert unknown.summary(steps())["model_flops_utilization"] is None
    assert "perf/model_flops_utilization" not in unknown.values(steps())
    summary = measured.summary(steps())
    flops = 2 * (2 * 8 * 8 * 3 * 4)  # a dense layer that is the first and the last
    assert summary["training_gflops_per_image"] == flops / 1e9
    share = 640.0 * flops / (1e9 * summary["peak_gflops_per_second"])
    assert summary["model_flops_utilization"] == pytest.approx(share)
    assert measured.values(steps())["perf/model_flops_utilization"] == pytest.approx(share)
    assert " % of their peak; " in summary["sentence"]


def test_what_the_process_holds_in_memory_is_told(limits_of):
    values = limits_of().values(steps())
    assert 10 < values["perf/memory_mb"] < 100_000
