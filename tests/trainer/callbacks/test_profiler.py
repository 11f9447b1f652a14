"""`convoy train --profile_steps`: recorded steps and rejected ranges."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from convoy.core.errors import UsageError
from convoy.trainer.callbacks.profiler import StepProfiler
from tests.trainer import user_models
from tests.trainer.run_files import result_of

MODEL = f"--config.model.name={user_models.__file__}:small"
FLAGS = ("train", "--config=smoke", MODEL, "--config.steps=6", "--config.eval_every_steps=6")


def marked_steps(path):
    """Returns the step numbers in a profile."""
    steps = []
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        numbers = [key for key, stat in plane.stat_metadata.items() if stat.name == "step_num"]
        for line in plane.lines:
            for event in line.events:
                if plane.event_metadata[event.metadata_id].name == "train":
                    steps += [stat.int64_value for stat in event.stats if stat.metadata_id in numbers]
    return sorted(steps)


def profile(profiler, folder, steps, *, start_step=0, total_steps=9):
    """Runs the hooks of steps; returns the lines that were printed."""
    lines = []
    run = SimpleNamespace(tensorboard=folder)
    training = SimpleNamespace(
        session=SimpleNamespace(run=run), step=start_step, total_steps=total_steps, say=lines.append
    )
    profiler.on_start(training)
    for step in steps:
        training.step = step - 1
        profiler.on_step_begin(training)
        training.step = step
        profiler.on_step_end(training, SimpleNamespace(gradient_norm=tf.constant(0.0)))
    profiler.on_end(training, None)
    return lines


@pytest.mark.slow
def test_requested_steps_are_recorded_with_markers(dataset, tmp_path, convoy):
    run = tmp_path / "run"
    result = convoy(*FLAGS, f"--data={dataset.data}", f"--workdir={run}", "--profile_steps=3:5", check=True)
    assert "steps 3 to 5" in result.stdout
    (path,) = (run / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
    assert marked_steps(path) == [3, 4, 5]
    assert result_of(run)["step"] == 6


def test_interrupted_run_keeps_the_steps_recorded_so_far(tmp_path):
    lines = profile(StepProfiler(2, 9), tmp_path, (1, 2, 3))
    (path,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert marked_steps(path) == [2, 3]
    assert len(lines) == 1 and "2 to 3" in lines[0]


@pytest.mark.slow
def test_of_several_workers_only_the_chief_is_profiled(dataset, tmp_path, cluster):
    run = tmp_path / "run"
    flags = (*FLAGS, f"--data={dataset.data}", f"--workdir={run}", "--profile_steps=2:3", "--config.virtual_replicas=2")
    cluster(*flags, output=tmp_path / "logs", check=True)
    (path,) = run.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    assert marked_steps(path) == [2, 3]


def test_steps_that_are_already_done_are_not_recorded(tmp_path):
    lines = profile(StepProfiler(2, 3), tmp_path, (3,), start_step=2)
    assert not list(tmp_path.iterdir())
    assert len(lines) == 1 and "--profile_steps=2:3" in lines[0]


def test_range_after_the_end_of_the_run_is_rejected(tmp_path):
    with pytest.raises(UsageError, match="--profile_steps=5:7.* 6 steps"):
        profile(StepProfiler(5, 7), tmp_path, (), total_steps=6)


@pytest.mark.parametrize("value", ["20", "30:20", "0:5", "a:b", ":"])
def test_invalid_range_is_rejected_before_tensorflow_starts(convoy, value):
    result = convoy("train", "--data=nowhere", "--workdir=nowhere", f"--profile_steps={value}", timeout=30)
    assert result.returncode == 2
    assert f"--profile_steps={value}" in result.stderr
