"""A run directory on a disk that really is full: a small one in memory, mounted where only these tests see it."""

import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from tests.small_disk import small_disk
from tests.trainer import user_models
from tests.trainer.run_files import json_lines

MEBIBYTE = 2**20
SIZE = 16 * MEBIBYTE
FLAGS = (
    *("train", "--config=smoke", f"--config.model.name={user_models.__file__}:wide", "--devices=cpu:1"),
    *("--config.precision=float32", "--config.log_every_steps=5", "--config.checkpoint_every_steps=25"),
    *("--config.eval_every_steps=100", "--config.keep_checkpoints=2"),
)
_NO_ROOM = "No space left on device"

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", SIZE) as disk:
        yield disk


def last_step(output):
    """Returns the last step that was shown: what is on the disk may be behind."""
    return max(map(int, re.findall(r"^step (\d+)/", output.read_text(), re.MULTILINE)), default=0)


def failures(told):
    """Returns the steps of the checkpoints that could not be written."""
    return [int(step) for step in re.findall(r"^Warning: checkpoint \S+step-0*(\d+)\.npz ", told, re.MULTILINE)]


def whole(store):
    """Returns the steps of the checkpoints; one that is not whole is a failure."""
    return [store.load(step)[1]["step"] for step in store.steps()]


def test_training_goes_on_while_the_disk_is_full_and_saves_once_there_is_room(
    disk, dataset, convoy_started, wait_until, tmp_path
):
    run, output = disk.seen / "run", tmp_path / "output"
    store = CheckpointStore(run / "checkpoints")
    command = (*FLAGS, "--record_order", "--config.steps=1500", f"--data={dataset.data}")
    where = f"--workdir={disk.folder / 'run'}"
    with convoy_started(*command, where, output=output, prefix=disk.prefix) as process:

        def wait_for(condition, what):
            wait_until(lambda: condition() or process.poll() is not None, what)
            assert process.poll() is None, output.read_text()

        def is_full_and_noticed():
            disk.fill()  # again and again: a checkpoint that fails leaves the room it had taken
            told = output.read_text()
            return all(f"Warning: {what}" in told for what in ("checkpoint", "metrics", "events", "the order record"))

        wait_for(lambda: len(store.steps()) > 1, "two checkpoints")
        wait_for(is_full_and_noticed, "the warnings")
        before, step = whole(store), last_step(output)
        assert len(before) > 1
        wait_for(lambda: last_step(output) > step + 100, "many more steps")
        assert set(whole(store)) >= set(before)
        failed = failures(output.read_text())
        disk.make_room()
        wait_for(lambda: store.latest() > failed[-1], "a checkpoint")
        assert process.wait(120) == 0, output.read_text()
    told = output.read_text()
    assert "Traceback" not in told
    # A warning for each checkpoint that was tried in its turn; one for each file that is left out for a while.
    assert failed == list(range(failed[0], failed[0] + 25 * len(failed), 25))
    assert len(failed) > 4
    assert (
        f"cannot be written ({_NO_ROOM}). Older ones are untouched. Training goes on; the next checkpoint is tried in "
        "its turn."
    ) in told
    for what in ("metrics", "events.jsonl", "the order record"):
        warnings = re.findall(
            rf"^Warning: {what} cannot be written \(.*\)\. Training goes on without\.$", told, re.MULTILINE
        )
        assert 1 <= len(warnings) < len(failed), told  # what a failed checkpoint leaves free lets a line through
        assert all(_NO_ROOM in warning for warning in warnings)
    # What is there is whole: readers need not know that the disk was full.
    assert whole(store)[-1] == 1500
    assert json.loads((run / "result.json").read_text())["step"] == 1500
    assert (run / "curves.png").stat().st_size > 0
    for name in ("metrics.jsonl", "events.jsonl", "order/worker-0.jsonl"):
        assert json_lines(run / name)[-1].get("step") == 1500, name
    assert [event for event in json_lines(run / "events.jsonl") if event["event"] == "checkpoint_failed"]
    assert not list(run.rglob("*.tmp"))
    # TensorBoard's readers stop at what is torn, so that there must be another file behind it.
    shown = EventAccumulator(str(run / "tensorboard" / "train"), size_guidance={"tensors": 0})
    shown.Reload()
    steps = [event.step for event in shown.Tensors("quality/loss")]
    assert steps[0] == 5 and steps[-1] == 1500 and 1495 in steps


def test_a_last_checkpoint_that_cannot_be_written_ends_the_run_with_its_name_and_it_can_go_on(
    disk, dataset, convoy_started, wait_until, tmp_path
):
    run = disk.seen / "run"
    store = CheckpointStore(run / "checkpoints")
    command = (*FLAGS, "--config.steps=600", f"--data={dataset.data}", f"--workdir={disk.folder / 'run'}")
    with convoy_started(*command, output=tmp_path / "first", prefix=disk.prefix) as process:
        wait_until(lambda: len(store.steps()) > 1 or process.poll() is not None, "two checkpoints")
        disk.fill()
        code = process.wait(120)
    told = (tmp_path / "first").read_text()
    assert code == 3, told
    last = disk.folder / "run" / "checkpoints" / "step-000000600.npz"
    assert told.splitlines()[-1].startswith(f"convoy: checkpoint {last} cannot be written ({_NO_ROOM}).")
    assert "Traceback" not in told
    assert not (run / "result.json").exists()
    assert len(whole(store)) > 1

    # Still full: it says so before it trains.
    with convoy_started(*command, output=tmp_path / "second", prefix=disk.prefix) as process:
        code = process.wait(120)
    told = (tmp_path / "second").read_text()
    assert code == 3, told
    assert re.match(
        rf"convoy: --workdir={disk.folder / 'run'}: .* cannot be written \({_NO_ROOM}\)", told.splitlines()[-1]
    )
    assert "Traceback" not in told

    disk.make_room()
    with convoy_started(*command, output=tmp_path / "third", prefix=disk.prefix) as process:
        assert process.wait(120) == 0, (tmp_path / "third").read_text()
    assert json.loads((run / "result.json").read_text())["step"] == 600
    assert whole(store)[-1] == 600
    assert json_lines(run / "metrics.jsonl")[-1]["step"] == 600
