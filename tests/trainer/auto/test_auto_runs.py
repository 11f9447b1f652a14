"""Runs with `--config=auto`: the same as with the recipe that they write, also after a kill and on other devices."""

import json
import os
import signal

import pytest

from convoy.trainer import config as configs
from tests.trainer import user_models
from tests.trainer.run_files import event_names, result_of

FLAGS = (
    *("train", "--config=auto", f"--config.model.name={user_models.__file__}:small", "--deterministic"),
    *("--config.virtual_replicas=2", "--config.precision=float32", "--config.steps=120"),
    *("--config.checkpoint_every_steps=5", "--config.eval_every_steps=60"),
)


def recipe_of(run):
    return (run / "recipe.py").read_text().splitlines()[1:]  # the first line has the number of devices


@pytest.fixture(scope="module")
def run(tmp_path_factory, convoy, dataset):
    """A finished run on one device."""
    workdir = tmp_path_factory.mktemp("auto") / "run"
    convoy(*FLAGS, "--devices=cpu:1", f"--data={dataset.data}", f"--workdir={workdir}", check=True)
    return workdir


def test_print_config_prints_and_writes_nothing(convoy, dataset, tmp_path):
    done = convoy(
        *("train", "--config=auto", "--print_config", f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}"),
        check=True,
    )
    assert "config.augment.ops" in done.stdout and "total_steps" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--config=auto", "--find_lr", "--data=data", "--workdir=run"),
        ("train", "--config=auto", "--workdir=run"),
        ("train", "--config=auto", "--data=data"),
        ("train", "--config=auto", "--data=data", "--workdir=run", "--config.sise=3"),
        ("doctor", "--config=auto"),
        ("augment", "--config=auto", "--data=data", "--output=page.html"),
    ],
)
def test_what_goes_not_with_auto_is_named(convoy, arguments, tmp_path):
    done = convoy(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_recipe_gives_the_same_weights(run, convoy, dataset, tmp_path):
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    convoy("train", f"--config={run / 'recipe.py'}", *where, check=True)
    assert result_of(tmp_path / "run")["weights_sha256"] == result_of(run)["weights_sha256"]
    assert (run / "code/recipe/recipe.py").read_bytes() == (run / "recipe.py").read_bytes()


@pytest.mark.slow
def test_two_devices_choose_and_train_the_same(run, convoy, dataset, tmp_path):
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:2")
    convoy(*FLAGS, *where, check=True)
    assert recipe_of(tmp_path / "run") == recipe_of(run)
    assert result_of(tmp_path / "run")["weights_sha256"] == result_of(run)["weights_sha256"]


@pytest.mark.slow
def test_two_workers_train_what_the_chief_chooses(run, cluster, dataset, tmp_path):
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    cluster(*FLAGS, *where, output=tmp_path / "output", check=True)
    assert recipe_of(tmp_path / "run") == recipe_of(run)
    assert result_of(tmp_path / "run")["weights_sha256"] == result_of(run)["weights_sha256"]


@pytest.mark.slow
def test_a_killed_run_resumes_with_its_recipe(run, convoy, convoy_started, dataset, tmp_path, wait_until):
    workdir = tmp_path / "run"
    where = (f"--data={dataset.data}", f"--workdir={workdir}", "--devices=cpu:1")
    with convoy_started(*FLAGS, *where, output=tmp_path / "output.txt") as process:
        wait_until(lambda: any((workdir / "checkpoints").glob("step-*.npz")), "a checkpoint")
        os.killpg(process.pid, signal.SIGKILL)
    written = (workdir / "recipe.py").read_bytes()
    convoy(*FLAGS, *where, check=True)
    assert (workdir / "recipe.py").read_bytes() == written
    assert "restored" in event_names(workdir)
    assert result_of(workdir)["weights_sha256"] == result_of(run)["weights_sha256"]


@pytest.mark.slow
def test_python_chooses_with_a_measured_speed(python, dataset, tmp_path):
    workdir = tmp_path / "run"
    where = f"data={str(dataset.data)!r}, workdir={str(workdir)!r}, devices='cpu:1'"
    done = python("-c", f"import convoy; convoy.train('auto', {where}, max_hours=0.005)")
    assert done.returncode == 0, done.stderr
    chosen = configs.load_recipe(str(workdir / "recipe.py"))
    trained = json.loads((workdir / "config.json").read_text())
    trained |= {name: chosen[name] for name in configs.AUTOMATIC}
    assert not configs.differences(configs.to_json(chosen), trained)
    assert chosen.epochs < 100  # 332 without a time budget
