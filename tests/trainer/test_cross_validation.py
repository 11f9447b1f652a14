"""`convoy train --folds`: one run per fold, what they say about the labels, and what they predict together."""

import csv
import json
import signal
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer import user_models
from tests.trainer.run_files import events_of, result_of

pytestmark = pytest.mark.slow

COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40), "white": (210, 210, 210)}
PER_CLASS, WRONG_PER_CLASS, FOLDS, STEPS = 24, 2, 3, 60
FLAGS = (
    "--config=smoke",
    f"--config.model.name={user_models.__file__}:small",
    f"--config.steps={STEPS}",
    "--config.eval_every_steps=30",
    "--config.checkpoint_every_steps=30",
    "--config.log_every_steps=30",
    "--config.augment.ops=flip",
    "--config.ema.decay=0",
    "--config.optimizer.learning_rate=0.01",
    "--config.virtual_replicas=2",
    "--config.precision=float32",
    "--deterministic",
    f"--folds={FOLDS}",
)
# Kills the process in the second fold, once, when that has a checkpoint.
KILL = """
import os
import signal

import convoy

class Kill(convoy.Callback):
    def on_step_end(self, training, result):
        mark = training.workdir.parent / "killed"
        has_checkpoint = any((training.workdir / "checkpoints").glob("step-*.npz"))
        if training.workdir.name == "fold-2" and has_checkpoint and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def draw(path: Path, color: tuple[int, int, int], seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 30, (32, 32, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of four colors, of which two in each class have a wrong label and a name that says so."""
    folder, seed = tmp_path_factory.mktemp("folds"), 0
    names = list(COLORS)
    for number, name in enumerate(names):
        for i in range(PER_CLASS):
            wrong = i < WRONG_PER_CLASS
            shown = names[(number + 1 + i) % len(names)] if wrong else name
            draw(folder / "train" / name / f"{'wrong' if wrong else 'right'}_{i}.png", COLORS[shown], seed := seed + 1)
        for i in range(4):
            draw(folder / "test" / name / f"{i}.png", COLORS[name], seed := seed + 1)
    return folder


@pytest.fixture(scope="module")
def data(photos, convoy):
    output = f"--output={photos / 'data'}"
    convoy("convert", f"--images={photos / 'train'}", output, "--validation_fraction=0.25", "--workers=1", check=True)
    convoy("convert", f"--images={photos / 'test'}", output, "--split=test", "--workers=1", check=True)
    return photos / "data"


@pytest.fixture(scope="module")
def run(photos, data, convoy):
    """A cross-validation on one device, without faults."""
    convoy("train", *FLAGS, f"--data={data}", f"--workdir={photos / 'run'}", "--devices=cpu:1", check=True)
    return photos / "run"


@pytest.fixture(scope="module")
def facts(run, photos, forks):
    """What `cross_validation_program` found."""
    return forks.run("tests.trainer.cross_validation_program", run, photos / "test", photos).report()


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(run):
    return [result_of(run / f"fold-{number}")["weights_sha256"] for number in range(1, FOLDS + 1)]


def test_each_labelled_image_is_predicted_once_by_the_run_without_it(run):
    found = {row["filename"]: row for row in rows(run / "predictions_out_of_fold.csv")}
    assert len(found) == PER_CLASS * len(COLORS)
    for number in range(1, FOLDS + 1):
        for row in rows(run / f"fold-{number}" / "predictions_validation.csv"):
            expected = found.pop(row["filename"])
            assert [row[name] for name in row if name != "index"] == [expected[name] for name in row if name != "index"]
    assert not found


def test_planted_label_errors_are_found(run):
    found = [row["filename"] for row in rows(run / "label_errors.csv")]
    planted = [name for name in found if "wrong" in name]
    assert len(planted) >= 0.75 * WRONG_PER_CLASS * len(COLORS)
    assert len(planted) >= 0.75 * len(found)  # a twelfth of all images have a wrong label
    assert result_of(run)["label_errors"] == len(found)
    page = (run / "report.html").read_text()
    labels = page[page.index('<section id="labels">') : page.index('<section id="calibration">')]
    assert labels.count("<img") == len(found)


def test_result_has_mean_and_standard_deviation_of_the_folds(run, facts):
    result, tops = result_of(run), [metrics["top1"] for metrics in facts["folds"]]
    assert [fold["metrics"]["top1"] for fold in result["folds"]] == pytest.approx(tops)
    assert result["mean"]["top1"] == pytest.approx(statistics.fmean(tops)) == pytest.approx(facts["mean"]["top1"])
    assert result["sd"]["top1"] == pytest.approx(statistics.stdev(tops))
    of_all = [row["correct"] == "1" for row in rows(run / "predictions_out_of_fold.csv")]
    assert result["out_of_fold"]["top1"] == pytest.approx(np.mean(of_all))
    assert facts["out of fold"][0] == pytest.approx(facts["out of fold"][1], abs=1e-5)
    recorded = [row for row in rows(run / "results.csv") if row["split"] == "out_of_fold"]
    used = ", ".join(f"step {fold['checkpoint']}" for fold in result["folds"])
    assert [row["checkpoint"] for row in recorded] == [f"{FOLDS} models ({used})"]


def test_stopped_killed_and_resumed_on_other_devices_it_is_the_same(run, data, convoy, tmp_path):
    (tmp_path / "kill.py").write_text(KILL)
    other = tmp_path / "run"
    where = (f"--data={data}", f"--workdir={other}", "--devices=cpu:2")
    command = ("train", *FLAGS, *where, f"--callbacks={tmp_path / 'kill.py'}:Kill")
    convoy(*command, "--max_hours=0.0001", check=True)
    assert result_of(other / "fold-1")["stop"]["resumable"]
    assert not (other / "fold-2").exists() and not (other / "result.json").exists()
    assert convoy(*command).returncode == -signal.SIGKILL
    convoy(*command, check=True)
    assert weights(other) == weights(run)
    assert len(set(weights(run))) == FOLDS
    assert [event["fold"] for event in events_of(other, "restored")] == [1, 2]
    assert result_of(other)["mean"] == pytest.approx(result_of(run)["mean"], rel=1e-6)
    for name in ("predictions_out_of_fold.csv", "label_errors.csv"):
        assert (other / name).read_bytes() == (run / name).read_bytes()


def test_it_is_the_same_in_two_processes(run, data, cluster, tmp_path):
    where = (f"--data={data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    cluster("train", *FLAGS, *where, processes=2, output=tmp_path / "logs", check=True)
    assert weights(tmp_path / "run") == weights(run)
    for name in ("predictions_out_of_fold.csv", "label_errors.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


def test_ensemble_is_the_mean_of_the_models(facts):
    assert max(facts["differences"]) < 1e-5
    assert min(facts["differences of the first"]) > 1e-3


def test_several_runs_are_the_same_ensemble(run, photos, convoy):
    runs = ",".join(str(run / f"fold-{number}") for number in range(1, FOLDS + 1))
    for name, workdir in (("one.csv", run), ("other.csv", runs)):
        output = ("--probabilities", "--top_k=4", f"--output={photos / name}")
        convoy("predict", f"--workdir={workdir}", f"--images={photos / 'test'}", *output, check=True)
    assert rows(photos / "one.csv") == rows(photos / "other.csv")


def test_what_an_ensemble_cannot_do_is_refused(facts):
    refused = facts["refused"]
    assert "split=out_of_fold" in refused["trained on"]
    assert "fold-1" in refused["of a fold"]
    assert "fold-1" in refused["export"]
    assert f"folds={FOLDS}" in refused["other number"] and f"folds={FOLDS}" in refused["no folds"]


def test_the_same_command_only_writes_a_missing_report(run, data, convoy):
    """The command can end between the result and the report."""
    before = (run / "result.json").read_bytes()
    (run / "report.html").unlink()
    convoy("train", *FLAGS, f"--data={data}", f"--workdir={run}", "--devices=cpu:1", check=True)
    assert (run / "result.json").read_bytes() == before
    assert (run / "report.html").is_file()
    assert json.loads(before)["stop"] is None
