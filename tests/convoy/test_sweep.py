"""`convoy sweep`: what it refuses, and whole sweeps with real trials."""

import json
import signal
import sys

import pytest

from convoy.cli import main
from tests.processes import REPOSITORY
from tests.trainer.run_files import event_names, events_of, json_lines, result_of
from tests.trainer.tensorboard_server import tensorboard

SPACE = """
def space(trial):
    return {
        "optimizer.learning_rate": trial.suggest_float("rate", 1e-4, 1e-1, log=True),
        "optimizer.name": trial.suggest_categorical("optimizer", ["adam", "sgd"]),
    }
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    return path


@pytest.fixture
def refused(space, tmp_path, capsys):
    """Runs a sweep that is refused; returns its message."""

    def run(*words):
        folder = tmp_path / "sweep"
        assert main(["convoy", "sweep", f"--space={space}", f"--workdir={folder}", *words]) == 2
        output, errors = capsys.readouterr()
        assert not output and len(errors.splitlines()) == 1 and not folder.exists()
        return errors

    return run


@pytest.mark.parametrize(
    ("text", "words", "noun"),
    [
        (SPACE, ("--trials=2", "train", "--data=data"), "`--`"),
        (SPACE, ("--trials=2", "--", "evaluate"), "evaluate"),
        (SPACE, ("--trials=2", "--"), "train"),
        (SPACE, ("--", "train", "--data=data"), "--trials"),
        (SPACE, ("--trials=2", "--", "train"), "--data"),
        (SPACE, ("--trials=2", "--", "train", "--data=data", "--workdir=run"), "--workdir"),
        (SPACE, ("--trials=2", "--", "train", "--data=data", "--find_lr"), "--find_lr"),
        (SPACE, ("--trials=2", "--", "train", "--data=data", "--virtual_replicas=8"), "--virtual_replicas"),
        (SPACE, ("--trials=2", "--", "train", "--data=data", "--devixes=cpu"), "devices"),
        (
            SPACE.replace("optimizer.name", "optimizer.nane"),
            ("--trials=2", "--", "train", "--data=d"),
            "optimizer.name",
        ),
        ("def space(trial): return {'epochs': 'x'}", ("--trials=2", "--", "train", "--data=d"), "epochs=x"),
        ("def other(trial): return {}", ("--trials=2", "--", "train", "--data=d"), "no space"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_made(refused, space, text, words, noun):
    space.write_text(text)
    assert noun in refused(*words)


def test_missing_optuna_is_named_with_its_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'convoy-train[sweep]'" in refused("--trials=1", "--", "train", "--data=data")


@pytest.fixture
def command(space, tmp_path, dataset):
    """A sweep of two short trials in `tmp_path / "sweep"`, a checkpoint every 20 steps."""
    model = f"{REPOSITORY / 'tests/trainer/user_models.py'}:small"
    flags = ("--config.steps=400", "--config.eval_every_steps=100", "--config.checkpoint_every_steps=20")
    sweep = ("sweep", f"--space={space}", "--trials=2", f"--workdir={tmp_path / 'sweep'}", "--metric=loss")
    return (
        *sweep,
        *("--", "train", f"--data={dataset.data}", "--config=smoke", f"--config.model.name={model}", "--devices=cpu"),
        *flags,
    )


@pytest.mark.slow
def test_a_killed_sweep_resumes_its_trial_and_shows_all(command, convoy, convoy_started, tmp_path, wait_until):
    """Both the sweep and its trial die in the middle; the trial goes on with the same config from its checkpoint."""
    folder = tmp_path / "sweep"
    first, second = folder / "trial-0000", folder / "trial-0001"
    with convoy_started(*command, output=tmp_path / "killed") as sweep:
        wait_until(
            lambda: len(json_lines(first / "events.jsonl")) and (first / "results.csv").exists(), "an evaluation"
        )
        sweep.send_signal(signal.SIGKILL)
        sweep.wait(60)
    config = json.loads((first / "config.json").read_text())
    assert not (first / "result.json").exists()

    resumed = convoy(*command, check=True, timeout=400)
    assert json.loads((first / "config.json").read_text()) == config
    assert event_names(first)[0] == "start" and event_names(first)[-1] == "done"
    assert events_of(first, "restored")[0]["step"] >= 20
    assert [result_of(run)["step"] for run in (first, second)] == [400, 400]

    content = json.loads((folder / "sweep.json").read_text())
    assert [trial["state"] for trial in content["trials"]] == ["complete"] * 2
    assert content["direction"] == "minimize"
    assert content["best"] == min(content["trials"], key=lambda trial: trial["value"])["number"]
    rates = {trial["workdir"]: trial["fields"]["optimizer.learning_rate"] for trial in content["trials"]}
    assert rates["trial-0000"] == config["optimizer"]["learning_rate"]
    assert f"--workdir={folder / 'trial-'}{content['best']:04}" in resumed.output

    again = convoy(*command, check=True)
    assert len(events_of(first, "start") + events_of(first, "restored")) == 2, again.output
    listed = convoy("runs", folder, f"--json={tmp_path / 'runs.json'}", check=True)
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert {run["name"]: run["differences"]["optimizer.learning_rate"] for run in runs} == rates, listed.output
    with tensorboard(folder, tmp_path / "tensorboard.log", fast=True) as server:
        groups = server.hparams(
            "session_groups",
            experimentName="",
            allowedStatuses=["STATUS_SUCCESS"],
            colParams=[{"hparam": "optimizer.learning_rate"}],
            startIndex=0,
            sliceSize=10,
        )["sessionGroups"]
    shown = {group["name"].partition("/")[0]: group["hparams"]["optimizer.learning_rate"] for group in groups}
    assert shown == pytest.approx(rates)
