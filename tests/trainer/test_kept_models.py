"""Which file a user's model comes from: kept in RUN, compared at resume and among workers."""

import os
import shutil

import pytest

from tests.trainer.run_files import events_of, result_of

pytestmark = pytest.mark.slow

MODELS = """
import os
import keras
from keras import layers
from beside import FILTERS

def mine(num_classes, image_size):
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Conv2D(int(os.environ.get("FILTERS", FILTERS)), 5, strides=4, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(num_classes)(layers.Flatten()(x)))
"""
RECIPE = """
from convoy.configs.smoke import get_config as smoke
import durations

def get_config():
    config = smoke()
    config.steps = config.eval_every_steps = durations.STEPS
    config.checkpoint_every_steps = 2
    return config
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a recipe, models, and what they import."""
    for name, text in (("models", MODELS), ("beside", "FILTERS = 8"), ("recipe", RECIPE), ("durations", "STEPS = 4")):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def command(project, dataset):
    return (
        "train",
        "--config=recipe.py",
        "--config.model.name=models.py:mine",
        f"--data={dataset.data}",
        "--workdir=run",
    )


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_files_of_a_run_are_kept_and_used_and_changes_are_said(convoy, project, command):
    run = project / "run"
    convoy(*command, "--devices=cpu:1", cwd=project, check=True)
    kept = {path.relative_to(run / "code").as_posix() for path in (run / "code").rglob("*.py")}
    assert kept == {"model/models.py", "model/beside.py", "recipe/recipe.py", "recipe/durations.py"}
    evaluate = ("evaluate", "--split=validation", "--devices=cpu:1")
    before = convoy(*evaluate, "--workdir=run", cwd=project, check=True)
    assert "differs from" not in before.output

    # A comment: training resumes, and says which file has changed.
    edit(project / "beside.py", "FILTERS = 8", "FILTERS = 8  # as before")
    (run / "result.json").unlink()
    (run / "checkpoints" / "step-000000004.npz").unlink()
    resumed = convoy(*command, "--devices=cpu:1", cwd=project, check=True)
    assert "Resumed at step 2 of 4. Changed: beside.py: " in resumed.output
    assert [change.partition(":")[0] for change in events_of(run, "restored")[-1]["changed"]] == ["beside.py"]

    # Another model: the run is evaluated with its own, also from another folder, and does not go on with this one.
    digest = result_of(run)["weights_sha256"]
    edit(project / "models.py", "strides=4", "strides=2")
    edited = convoy(*evaluate, "--workdir=run", cwd=project, check=True)
    assert "models.py differs from run/code/model/models.py" in edited.output
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "models.py").write_text("raise RuntimeError")
    convoy(*evaluate, "--workdir=../run", cwd=elsewhere, check=True)
    refused = convoy(*command, "--devices=cpu:1", "--config.steps=4", cwd=project)
    assert refused.returncode == 2
    assert "(models.py changed)" in refused.stderr and "run/code/model" in refused.stderr
    shutil.copy(run / "code" / "model" / "models.py", project / "models.py")
    assert "Nothing left to train" in convoy(*command, "--devices=cpu:1", cwd=project, check=True).output
    assert result_of(run)["weights_sha256"] == digest

    if os.getuid() == 0:  # another user's run
        os.chown(run / "code" / "model" / "models.py", 4321, -1)
        refused = convoy(*evaluate, "--workdir=run", cwd=project)
        assert refused.returncode == 2 and "--trust_code" in refused.stderr
        convoy(*evaluate, "--workdir=run", "--trust_code", cwd=project, check=True)


def test_workers_with_different_models_are_refused(cluster, project, dataset):
    flags = ("--config=smoke", f"--config.model.name={project / 'models.py'}:mine", f"--data={dataset.data}")
    workers = cluster(
        *("train", *flags, f"--workdir={project / 'run'}", "--devices=cpu:1"),
        output=project / "output",
        environments={1: {"FILTERS": "9"}},
    )
    for rank, worker in enumerate(workers.processes):
        assert worker.returncode == 2, workers.output(rank)
        assert "model.layers" in workers.error(rank)
    assert not (project / "run").exists()
