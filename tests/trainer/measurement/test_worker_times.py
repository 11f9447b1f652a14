"""Which worker the others wait for."""

from types import SimpleNamespace

import pytest

from convoy.trainer.measurement.worker_times import WorkerTimes, slow_workers
from tests.trainer import user_models
from tests.trainer.callbacks import user_callbacks
from tests.trainer.run_files import json_lines, result_of


def step(ready, reduced):
    return SimpleNamespace(ready=ready, reduced=reduced)


def test_own_part_of_a_step_ends_where_the_others_are_waited_for():
    times = WorkerTimes(2)
    for result in (step(1.0, 1.5), step(1.6, 2.0), step(2.3, 3.0), step(3.2, 3.5)):
        times.add(result)
    assert times.window_ms() == pytest.approx(200.0)
    assert times.window_ms() is None


def test_a_pause_is_not_part_of_a_step():
    times = WorkerTimes(2)
    times.add(step(1.0, 1.5))
    times.pause()
    times.add(step(60.0, 60.5))
    times.add(step(60.6, 61.0))
    assert times.window_ms() == pytest.approx(100.0)


def test_alone_there_is_nothing_to_measure():
    times = WorkerTimes(1)
    times.add(None)
    assert times.window_ms() is None


@pytest.mark.parametrize(
    ("own_ms", "slow"),
    [
        ([], []),
        ([50.0], []),
        ([50.0, 55.0], []),
        ([50.0, 90.0], [1]),
        ([90.0, 50.0], [0]),
        ([50.0, 51.0, 80.0, 120.0], [3, 2]),
        ([None, 50.0, 120.0], [2]),
    ],
)
def test_workers_that_are_slower_than_most(own_ms, slow):
    assert slow_workers(own_ms) == slow


@pytest.mark.slow
def test_a_slow_worker_is_named_and_has_its_own_curves(cluster, dataset, tmp_path):
    workdir = tmp_path / "run"
    workers = cluster(
        *("train", "--config=smoke", f"--config.model.name={user_models.__file__}:normalized"),
        *("--config.virtual_replicas=2", "--config.steps=40", "--config.eval_every_steps=40"),
        *("--config.log_every_steps=10", f"--data={dataset.data}", f"--workdir={workdir}"),
        f"--callbacks={user_callbacks.__file__}:SlowsTheLastWorkerDown",
        output=tmp_path / "logs",
        check=True,
    )
    limits = result_of(workdir)["limits"]
    assert [slow["worker"] for slow in limits["slow_workers"]] == [f"worker 1 ({workers.addresses[1]})"]
    assert workers.addresses[1] in limits["sentence"]
    last = [line for line in json_lines(workdir / "metrics.jsonl") if line["split"] == "train"][-1]
    assert last["perf/workers/own_step_ms/1"] > last["perf/workers/own_step_ms/0"] + 50
    assert {"perf/workers/input_wait_pct/0", "perf/workers/input_wait_pct/1"} <= last.keys()
