"""Bottleneck analysis from given step times."""

import time
from types import SimpleNamespace

import keras
import pytest

from convoy.core.processes import usable_cores
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import default_config, resolve
from convoy.trainer.measurement.bottleneck import BottleneckAnalyzer
from convoy.trainer.measurement.step_timer import Window


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])


@pytest.fixture
def analyzer_of(model):
    """Makes the analyzer of a run on CPU devices; `reduction` is the seconds a reduction takes."""

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
        session = SimpleNamespace(config=config, plan=plan, runtime=runtime, dataset=dataset)
        analyzer = BottleneckAnalyzer(session, step, WorkerGroup(None))
        analyzer.probe()
        return analyzer

    return make


def steps(step_ms=100.0, *, waiting=0.0, cores_busy=0.0):
    return Window(20, 1e3 * 64 / step_ms, step_ms, step_ms, step_ms, waiting, cores_busy)


def test_step_time_is_split_into_input_wait_reduction_and_compute(analyzer_of):
    summary = analyzer_of(reduction=0.02).summary(steps(200.0, waiting=5.0))
    assert summary["input_wait_ms"] == 10.0
    assert 20.0 <= summary["reduction_ms"] < 150.0
    assert summary["compute_ms"] == pytest.approx(200.0 - 10.0 - summary["reduction_ms"])
    assert summary["images_per_second"] == 320.0
    assert summary["images_per_second_per_replica"] == 160.0


def test_reduction_slower_than_the_step_leaves_no_negative_time(analyzer_of):
    summary = analyzer_of(reduction=0.02).summary(steps(10.0, waiting=50.0))
    assert (summary["reduction_ms"], summary["compute_ms"]) == (5.0, 0.0)


def test_single_device_has_no_reduction(analyzer_of):
    summary = analyzer_of(reduction=9.0, replicas=1).summary(steps(10.0))
    assert (summary["reduction_ms"], summary["bound"]) == (0.0, "compute")
    assert "1 CPU device;" in summary["sentence"]


def test_step_that_mostly_computes_is_compute_bound(analyzer_of):
    summary = analyzer_of().summary(steps(waiting=10.0))
    assert summary["bound"] == "compute"
    assert "2 CPU devices" in summary["sentence"]


@pytest.mark.parametrize(
    ("config", "settings", "fixes"),
    [
        ({}, {}, "--config.cache=memory or `convoy convert` with --encoding=raw"),
        ({"cache": "memory"}, {}, "`convoy convert` with --encoding=raw"),
        ({"cache": "memory"}, {"encoding": "raw"}, "more cores"),
    ],
)
def test_input_wait_with_busy_cores_is_decoding(analyzer_of, config, settings, fixes):
    cores = usable_cores()
    summary = analyzer_of(settings=settings, **config).summary(steps(waiting=40.0, cores_busy=cores))
    assert (summary["bound"], summary["input_wait_pct"], summary["cores_busy"]) == ("input", 40.0, cores)
    assert "decoding" in summary["sentence"] and "40 %" in summary["sentence"]
    assert summary["sentence"].endswith(f"try {fixes}")


def test_input_wait_with_idle_cores_is_reading(analyzer_of):
    summary = analyzer_of().summary(steps(waiting=40.0, cores_busy=0.1))
    assert summary["bound"] == "input" and "reading" in summary["sentence"]
    assert summary["sentence"].endswith("try --config.cache=memory or --config.shuffle=striped")


def test_long_reduction_is_reported_with_its_size_and_fixes(analyzer_of):
    parameters = 8 * 8 * 3 * 4 + 4
    summary = analyzer_of(reduction=0.05).summary(steps(100.0, waiting=1.0))
    assert summary["bound"] == "reduction"
    assert f"{4 * parameters / 1e6:.1f} MB" in summary["sentence"]
    assert summary["sentence"].endswith("try a larger --config.batch_size or --config.reduce_in_bfloat16")
    deterministic = analyzer_of(reduction=0.05, deterministic=True).summary(steps(100.0))
    assert deterministic["sentence"].endswith("try a larger --config.batch_size")


def test_flops_per_image_are_averaged_over_the_timed_steps(analyzer_of, monkeypatch):
    monkeypatch.setattr("convoy.trainer.measurement.bottleneck.training_flops", lambda model, shape: 1e9 * shape[1])
    analyzer = analyzer_of(steps=40, progressive={"sizes": (16,), "ends": (0.25,)})
    for step, gflops in ((10, 16), (20, (16 + 8) / 2), (40, 8)):
        analyzer._runtime.state.step = step
        assert analyzer.summary(steps())["training_gflops_per_image"] == pytest.approx(gflops)


def test_utilization_is_relative_to_the_measured_peak_and_absent_without_one(analyzer_of):
    unknown, measured = analyzer_of(), analyzer_of(measure_peak=True)
    assert unknown.summary(steps())["model_flops_utilization"] is None
    assert "perf/model_flops_utilization" not in unknown.values(steps())
    summary = measured.summary(steps())
    flops = 2 * (2 * 8 * 8 * 3 * 4)  # a dense layer that is the first and the last
    assert summary["training_gflops_per_image"] == flops / 1e9
    share = 640.0 * flops / (1e9 * summary["peak_gflops_per_second"])
    assert summary["model_flops_utilization"] == pytest.approx(share)
    assert measured.values(steps())["perf/model_flops_utilization"] == pytest.approx(share)
    assert f"{100 * share:.0f} % of peak" in summary["sentence"]


def test_process_memory_is_reported(analyzer_of):
    values = analyzer_of().values(steps())
    assert 10 < values["perf/memory_mb"] < 100_000
