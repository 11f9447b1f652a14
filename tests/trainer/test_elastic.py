"""A run that is killed, preempted and moved to other hardware ends like an uninterrupted one."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading import order
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from tests.trainer.run_files import event_names, events_of, fingerprints, json_lines, measured, order_of, result_of

BATCH, LAST_STEP = 16, 40  # of `finished_run`
STOP_AFTER = 20

pytestmark = pytest.mark.slow


def last_logged(run):
    return max([line["step"] for line in json_lines(run / "metrics.jsonl")], default=0)


def checkpoints(run):
    return CheckpointStore(run / "checkpoints").steps()


@pytest.fixture(scope="module")
def command(finished_run, dataset):
    return ("train", *finished_run.flags, "--record_order", f"--data={dataset.data}")


@pytest.fixture(scope="module")
def killed_on_four_devices(tmp_path_factory, command, convoy_started, wait_until):
    """A run on four devices, killed after its first checkpoint. Tests work on copies of it."""
    run = tmp_path_factory.mktemp("elastic") / "run"
    output = run.with_suffix(".log")
    with convoy_started(*command, "--devices=cpu:4", f"--workdir={run}", output=output) as process:
        wait_until(
            lambda: (checkpoints(run) and last_logged(run) > checkpoints(run)[0]) or process.poll() is not None,
            "a step after the first checkpoint",
        )
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, output.read_text()
    return run


@pytest.fixture(scope="module")
def preempted(killed_on_four_devices, tmp_path_factory, command, workers_started, wait_until):
    """The same run, resumed by two processes until worker 1 receives SIGTERM: (run, workers, resumed step)."""
    folder = tmp_path_factory.mktemp("preempted")
    run = shutil.copytree(killed_on_four_devices, folder / "run")
    resumed_step = checkpoints(run)[-1]
    with workers_started(*command, "--devices=cpu:1", f"--workdir={run}", output=folder / "output") as workers:
        wait_until(
            lambda: (
                (events_of(run, "restored") and last_logged(run) >= STOP_AFTER)
                or any(process.poll() is not None for process in workers.processes)
            ),
            f"step {STOP_AFTER}",
        )
        workers.processes[1].send_signal(signal.SIGTERM)
        assert workers.wait(120) == [138, 138], workers.output(0) + workers.output(1)
    return run, workers, resumed_step


class TestTwoProcesses:
    def test_resume_where_four_devices_were_killed_and_report_the_changes(self, preempted):
        run, workers, resumed_step = preempted
        assert f"Resumed at step {resumed_step} of {LAST_STEP}." in workers.output(0)
        assert "devices: 4 CPU -> 2 CPU; workers: 1 -> 2" in workers.output(0)
        (restored,) = events_of(run, "restored")
        assert (restored["step"], restored["replicas"]) == (resumed_step, 2)
        assert restored["changed"] == ["devices: 4 CPU -> 2 CPU", "workers: 1 -> 2"]

    def test_only_the_chief_shows_progress(self, preempted):
        _, workers, _ = preempted
        assert re.search(r"^step \d+/40 ", workers.output(0), re.MULTILINE)
        first, last = workers.output(1).splitlines()
        assert "orker 1 of 2" in first
        assert last.startswith("convoy: SIGTERM to worker 1 ")

    def test_save_and_stop_at_the_same_step_when_any_worker_receives_sigterm(self, preempted):
        run, workers, _ = preempted
        (event,) = events_of(run, "preempted")
        step = event["step"]
        assert STOP_AFTER <= step < LAST_STEP
        assert checkpoints(run)[-1] == step
        assert (event["signal"], event["worker"]) == ("SIGTERM", 1)
        assert 0 < event["seconds"] < 30
        for rank in (0, 1):
            assert re.fullmatch(
                rf"convoy: SIGTERM to worker 1 \({re.escape(workers.addresses[1])}\): stopped at step {step} of 40, "
                rf".*step {step}\.",
                workers.error(rank),
            )
        assert event_names(run)[-1] == "preempted"

    def test_run_is_refused_on_three_devices_and_finishes_exactly_on_one(
        self, preempted, command, convoy, finished_run, dataset, tmp_path
    ):
        run = shutil.copytree(preempted[0], tmp_path / "run")
        before = fingerprints(run)
        refused = convoy(*command, "--devices=cpu:3", f"--workdir={run}")
        assert refused.returncode == 2
        (error,) = refused.stderr.splitlines()
        assert "virtual_replicas=4" in error and "3 devices" in error and "1, 2 or 4" in error
        after = fingerprints(run)
        assert {name: after.get(name) for name in before} == before

        convoy(*command, "--devices=cpu:1", f"--workdir={run}", check=True)
        result, expected = result_of(run), result_of(finished_run.workdir)
        for name in ("weights_sha256", "step", "images_seen", "virtual_replicas"):
            assert result[name] == expected[name], name
        assert (result["replicas"], result["workers"]) == (1, 1)
        assert measured(run, "train") == measured(finished_run.workdir, "train")
        assert event_names(run) == [
            *("start", "first_step"),  # on four devices
            *("restored", "first_step", "preempted"),  # on two processes
            *("restored", "first_step", "done"),
        ]
        of_workers = [order_of(run, rank) for rank in (0, 1)]
        num_images = open_dataset(dataset.data).split("train").num_images
        for step in range(1, LAST_STEP + 1):
            positions = np.arange((step - 1) * BATCH, step * BATCH)
            images, _ = order.positions_to_images(positions, num_images=num_images, seed=0)
            assert [image for part in of_workers for image in part.get(step, [])] == images.tolist(), f"step {step}"


CHANGED_AT = 36  # a step with a checkpoint of `finished_run`
# Kills the process in step 38, before a checkpoint.
KILL = """
import os
import signal

import convoy

class Kill(convoy.Callback):
    def on_batch(self, training, batch):
        if training.step == 37:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def stopped(finished_run, tmp_path_factory):
    """Returns a function that copies the finished run as it was after step `CHANGED_AT`."""

    def copy():
        run = shutil.copytree(finished_run.workdir, tmp_path_factory.mktemp("changed") / "run")
        CheckpointStore(run / "checkpoints").path(LAST_STEP).unlink()
        (run / "result.json").unlink()
        assert checkpoints(run)[-1] == CHANGED_AT
        return run

    return copy


@pytest.fixture(scope="module")
def changed(stopped, command, cluster):
    """This run, finished by two processes with 8 virtual replicas in place of 4: (run, output of the chief)."""
    run = stopped()
    flags = ("--virtual_replicas=8", "--devices=cpu:1", f"--workdir={run}")
    workers = cluster(*command, *flags, output=run.with_name("output"), check=True)
    return run, workers.output(0)


class TestMoreVirtualReplicas:
    def test_are_recorded_and_logged(self, changed, finished_run):
        run, output = changed
        change = {"step": CHANGED_AT, "before": 4, "after": 8}
        result = result_of(run)
        assert (result["virtual_replicas"], result["virtual_replicas_changes"]) == (8, [change])
        assert result["weights_sha256"] != result_of(finished_run.workdir)["weights_sha256"]
        (event,) = events_of(run, "virtual_replicas_changed")
        assert {name: event[name] for name in change} == change
        config = CheckpointStore(run / "checkpoints").load(LAST_STEP)[1]["config"]
        assert config == json.loads((run / "config.json").read_text())
        assert config["virtual_replicas"] == 8
        assert config["earlier_virtual_replicas"] == {"steps": [CHANGED_AT], "numbers": [4]}
        (line,) = [line for line in output.splitlines() if line.startswith("Virtual replicas: 4 -> 8")]
        assert f"step {CHANGED_AT}" in line and "no longer" in line

    def test_are_the_same_run_with_the_same_sample_order_when_killed_and_moved(
        self, changed, stopped, command, convoy, dataset, tmp_path
    ):
        run = stopped()
        where = f"--workdir={run}"
        refused = convoy(*command, where, "--devices=cpu:8")
        assert refused.returncode == 2 and " --virtual_replicas=8" in refused.stderr
        (tmp_path / "kill.py").write_text(KILL)
        kill = f"--callbacks={tmp_path / 'kill.py'}:Kill"
        killed = convoy(*command, where, "--devices=cpu:1", "--virtual_replicas=8", kill)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert checkpoints(run)[-1] == CHANGED_AT
        convoy(*command, where, "--devices=cpu:2", check=True)  # keeps the number without the flag
        result, expected = result_of(run), result_of(changed[0])
        for name in ("weights_sha256", "virtual_replicas", "virtual_replicas_changes", "step"):
            assert result[name] == expected[name], name
        assert measured(run, "train") == measured(changed[0], "train")
        assert len(events_of(run, "virtual_replicas_changed")) == 1
        num_images = open_dataset(dataset.data).split("train").num_images
        of_step = order_of(run, 0)
        for step in range(CHANGED_AT + 1, LAST_STEP + 1):
            positions = np.arange((step - 1) * BATCH, step * BATCH)
            images, _ = order.positions_to_images(positions, num_images=num_images, seed=0)
            assert of_step[step] == images.tolist(), f"step {step}"


def test_single_process_saves_and_stops_on_sigusr1(command, convoy_started, wait_until, tmp_path):
    run, output = tmp_path / "run", tmp_path / "output"
    with convoy_started(*command, "--devices=cpu:1", f"--workdir={run}", output=output) as process:
        wait_until(lambda: last_logged(run) >= 2 or process.poll() is not None, "step 2")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 138, output.read_text()
    (event,) = events_of(run, "preempted")
    assert (event["signal"], event["worker"]) == ("SIGUSR1", 0)
    assert 0 < event["seconds"] < 30
    assert checkpoints(run)[-1] == event["step"] < LAST_STEP
    assert output.read_text().splitlines()[-1].startswith(f"convoy: SIGUSR1: stopped at step {event['step']} of 40, ")
    assert not (run / "result.json").exists()
