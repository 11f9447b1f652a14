"""Weights & Biases and MLflow, with their own packages and without a server."""

import json
import struct
from types import SimpleNamespace

import pytest

from convoy.core.errors import UsageError
from convoy.trainer.callbacks.callback import Evaluation, Log, Stop
from convoy.trainer.callbacks.trackers import MLflow, WandB
from convoy.trainer.config import default_config
from tests.processes import wait_until

RESULT = {
    "step": 30,
    "epoch": 1.5,
    "images_seen": 480,
    "images_per_second": 100.0,
    "weights_sha256": "ab" * 32,
    "best": {"step": 30, "top1": 0.5},
}
BLOCK = 32768
HEADER = 7


@pytest.fixture
def training(tmp_path):
    """A run as a tracker sees it; `said` are its messages."""
    said = []
    return SimpleNamespace(workdir=tmp_path / "my-run", config=default_config(), step=0, say=said.append, said=said)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    (tmp_path / "my-run").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def log(step):
    return Log(step, 0.1 * step, {"quality/loss": 1.0 / step, "optim/lr": 0.1})


def track(tracker, training, steps, *, result=None, stop=False):
    tracker.on_start(training)
    for step in steps:
        tracker.on_log(training, log(step))
    if stop:
        tracker.on_stop(training, Stop("a signal", "SIGTERM"))
    tracker.on_end(training, result)


def wandb_records(path):
    """Yields the records of an offline run's file: a header, then blocks of fragments as in LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + HEADER + length > len(data):  # not whole yet
            return
        record += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last fragment
            yield Record.FromString(record)
            record = b""


def has_ended(path):
    return any(record.WhichOneof("record_type") == "exit" for record in wandb_records(path))


def wandb_points(training, tag):
    """Returns {step: value} of a tag over all starts of the run, and its ids."""
    points, ids = [], set()
    for path in sorted(training.workdir.glob("trackers/wandb/offline-run-*/*.wandb")):
        wait_until(lambda path=path: has_ended(path), "the end of W&B's file")  # its own process writes it
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                values = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                if tag in values:
                    points.append((values["step"], values[tag]))
    return points, ids


def mlflow_run(training):
    from mlflow import MlflowClient

    run_id = json.loads((training.workdir / "trackers/mlflow.json").read_text())["id"]
    return MlflowClient(), MlflowClient().get_run(run_id)


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_wandb_without_repeating_steps(training):
    track(WandB(), training, (10, 20), stop=True)
    track(WandB(), training, (20, 30), result=RESULT)
    points, ids = wandb_points(training, "train/quality/loss")
    assert points == [(step, 1.0 / step) for step in (10, 20, 30)]
    assert len(ids) == 1
    assert training.said == []


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_mlflow_without_repeating_steps(training):
    track(MLflow(), training, (10, 20), stop=True)
    client, run = mlflow_run(training)
    assert run.info.status == "KILLED"
    track(MLflow(), training, (20, 30), result=RESULT)
    client, run = mlflow_run(training)
    history = client.get_metric_history(run.info.run_id, "train/quality/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1.0 / step) for step in (10, 20, 30)]
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.name"] == default_config().optimizer.name
    assert run.data.tags["convoy.weights_sha256"] == RESULT["weights_sha256"]
    assert client.get_experiment(run.info.experiment_id).name == "convoy"


def test_steps_after_a_rollback_are_sent_again(training):
    tracker = MLflow()
    tracker.on_start(training)
    for step in (10, 20):
        tracker.on_log(training, log(step))
    training.step = 10
    tracker.on_rollback(training)
    tracker.on_log(training, log(20))
    metrics = {"top1": 0.5}
    tracker.on_evaluation(training, Evaluation(20, 2.0, "validation", metrics, {"quality/top1": 0.5}, True, 0.5))
    tracker.on_end(training, None)
    client, run = mlflow_run(training)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/quality/loss")] == [10, 20, 20]
    assert run.data.metrics["validation/quality/top1"] == 0.5
    assert run.info.status == "FAILED"


def test_training_goes_on_where_a_tracker_fails(training, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track(MLflow(), training, (10, 20), result=RESULT)
    (message,) = training.said
    assert message.startswith("Warning: mlflow")


def test_a_missing_package_is_named_with_its_extra(training, monkeypatch):
    class Absent(WandB):
        name = "no_such_tracker"

    absent = Absent()
    with pytest.raises(UsageError, match=r"convoy-train\[no_such_tracker\]"):
        absent.on_start(training)
    absent.on_end(training, None)
    assert training.said == []
