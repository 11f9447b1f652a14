"""`convoy train --profile_steps`: which steps are recorded, and what is refused."""

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from convoy.trainer.callbacks.profiler import StepProfiler
from tests.trainer.run_files import result_of

FLAGS = ("train", "--config=smoke", "--config.steps=6", "--config.eval_every_steps=6")


def marked_steps(path):
    """Returns the numbers of the steps in a recording."""
    steps = []
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        numbers = [key for key, stat in plane.stat_metadata.items() if stat.name == "step_num"]
        for line in plane.lines:
            for event in line.events:
                if plane.event_metadata[event.metadata_id].name == "train":
                    steps += [stat.int64_value for stat in event.stats if stat.metadata_id in numbers]
    return sorted(steps)


@pytest.fixture(scope="module")
def answers(dataset, tmp_path_factory, convoy_together):
    folder = tmp_path_factory.mktemp("profiles")
    where = (f"--data={dataset.data}", f"--workdir={folder / 'run'}")
    asked = {
        "behind the end": (*FLAGS, *where, "--profile_steps=5:7"),
        "recorded": (*FLAGS, *where, "--profile_steps=3:5"),
    }
    return folder / "run", dict(zip(asked, convoy_together(*asked.values()), strict=True))


@pytest.mark.slow
def test_the_steps_that_were_asked_for_are_recorded_each_with_its_marker(answers):
    run, answer = answers
    told = answer["recorded"]
    assert told.returncode == 0, told.output
    assert "Steps 3 to 5 are recorded for TensorBoard's page Profile." in told.output
    (path,) = (run / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
    assert marked_steps(path) == [3, 4, 5]
    assert result_of(run)["step"] == 6


def test_a_run_that_is_interrupted_keeps_and_names_the_steps_there_are(tmp_path):
    said = []
    profiler = StepProfiler(tmp_path, (2, 9), start_step=0, total_steps=9, say=said.append)
    for step in (1, 2, 3):
        profiler.begin_step(step)
        profiler.end_step(step, wait_for=tf.constant(0.0))
    profiler.close()
    (path,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert marked_steps(path) == [2, 3]
    assert [line.split(" are ")[0] for line in said] == ["Steps 2 to 3"]


@pytest.mark.slow
def test_steps_behind_the_end_are_refused(answers):
    _, answer = answers
    assert answer["behind the end"].returncode == 2
    assert "--profile_steps=5:7: the run has 6 steps. Give earlier ones." in answer["behind the end"].output


@pytest.mark.parametrize("value", ["20", "30:20", "0:5", "a:b", ":"])
def test_what_is_no_range_is_refused_before_tensorflow_is_there(convoy, value):
    result = convoy("train", "--data=nowhere", "--workdir=nowhere", f"--profile_steps={value}", timeout=30)
    assert result.returncode == 2
    assert f"--profile_steps={value}: give the first and the last step, from 1 on, such as 20:30." in result.stderr
