"""The examples of losses, metrics, schedules and models: trained with together, on one device and on two."""

import csv
import json

import pytest

from tests.processes import REPOSITORY
from tests.trainer.run_files import measured, result_of

pytestmark = pytest.mark.slow

EXAMPLES = REPOSITORY / "examples"
FLAGS = (
    "--config=smoke",
    f"--config.loss.name={EXAMPLES}/loss.py:generalized_cross_entropy",
    "--config.loss.class_weights=balanced",
    f"--config.metrics=mcc,{EXAMPLES}/metric.py:mean_margin",
    f"--config.schedule.name={EXAMPLES}/schedule.py:cooldown",
    f"--config.model.name={EXAMPLES}/model.py:small",
    "--config.label_smoothing=0",
    "--config.steps=12",
    "--config.eval_every_steps=6",
    "--config.log_every_steps=1",
    "--config.precision=float32",
    "--config.virtual_replicas=2",
    "--deterministic",
)


def test_the_same_run_on_one_and_on_two_devices(convoy, dataset, tmp_path):
    runs = {devices: tmp_path / str(devices) for devices in (1, 2)}
    for devices, run in runs.items():
        where = (f"--devices=cpu:{devices}", f"--data={dataset.data}", f"--workdir={run}")
        convoy("train", *FLAGS, *where, check=True)
    one, two = (result_of(run) for run in runs.values())
    assert one["weights_sha256"] == two["weights_sha256"]
    assert measured(runs[1], "train") == measured(runs[2], "train")

    rates = [line["optim/lr"] for line in measured(runs[1], "train")]
    assert rates[5] == max(rates) and rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] < rates[5] / 2
    for line in (*measured(runs[1], "train"), *measured(runs[1], "validation")):
        assert -1 <= line["quality/mean_margin"] <= 1 and -1 <= line["quality/mcc"] <= 1
    quality = one["metrics"]["validation"]
    with open(runs[1] / "results.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["mean_margin"]) == pytest.approx(quality["mean_margin"], abs=1e-6)

    kept = {path.relative_to(runs[1] / "code").as_posix() for path in (runs[1] / "code").rglob("*.py")}
    assert kept == {"loss/loss.py", "metric-1/metric.py", "schedule/schedule.py", "model/model.py"}
    evaluate = ("evaluate", f"--workdir={runs[1]}", "--split=validation", "--checkpoint=last", "--devices=cpu:1")
    convoy(*evaluate, f"--json={tmp_path / 'quality.json'}", check=True)
    evaluated = json.loads((tmp_path / "quality.json").read_text())
    unchanged = ("top1", "top5", "macro_f1", "mcc")  # by the temperature
    assert {name: evaluated[name] for name in unchanged} == pytest.approx({name: quality[name] for name in unchanged})
    assert -1 <= evaluated["mean_margin"] <= 1
