"""Real faults of workers that train together: killed, stopped, stuck, missing, misconfigured, with corrupt data."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from tests.trainer import user_models
from tests.trainer.run_files import events_of, fingerprints, json_lines

MODELS = Path(user_models.__file__)
FLAGS = (
    *("train", "--config=smoke", f"--config.model.name={MODELS}:small", "--devices=cpu:1"),
    *("--config.precision=float32", "--config.steps=1000000", "--config.log_every_steps=5"),
    *("--config.checkpoint_every_steps=50", "--config.eval_every_steps=1000000", "--startup_timeout=120"),
)
# Upper bound from the fault to the end of the process, which takes about 2 s on an idle machine.
SOON = 60


def last_logged(run):
    return max([line["step"] for line in json_lines(run / "metrics.jsonl")], default=0)


def checkpoints(run):
    return CheckpointStore(run / "checkpoints").steps()


@pytest.fixture
def training(workers_started, wait_until, dataset, tmp_path):
    """Returns a context manager that yields (run, workers): two workers in the middle of a long run."""

    @contextlib.contextmanager
    def start(*flags, only=None):
        run = tmp_path / "run"
        where = (f"--data={dataset.data}", f"--workdir={run}")
        with workers_started(*FLAGS, *where, *flags, output=tmp_path / "output", only=only) as workers:
            wait_until(
                lambda: len(checkpoints(run)) > 1 or any(p.poll() is not None for p in workers.processes),
                "two checkpoints",
            )
            yield run, workers

    return start


def wait_for_exit(workers, rank):
    """Waits for a worker; returns its exit code and how long it took."""
    began = time.monotonic()
    try:
        return workers.processes[rank].wait(120), time.monotonic() - began
    finally:
        print(workers.output(rank))


@pytest.mark.slow
class TestLostWorker:
    @pytest.mark.parametrize("lost", [0, 1])
    def test_killed_worker_is_named_within_seconds(self, training, lost):
        with training() as (run, workers):
            os.killpg(workers.processes[lost].pid, signal.SIGKILL)
            code, seconds = wait_for_exit(workers, 1 - lost)
            error = workers.error(1 - lost)
        assert code == 138
        assert seconds < SOON
        step = checkpoints(run)[-1]
        assert re.fullmatch(
            rf"convoy: .*worker {lost} \({re.escape(workers.addresses[lost])}\).*step {step}\.",
            error,
        )
        # Only the chief writes, so no event is written if the chief is lost.
        assert len(events_of(run, "peer_lost")) == (1 if lost == 1 else 0)
        CheckpointStore(run / "checkpoints").load(step)

    @pytest.mark.parametrize("lost", [0, 1])
    def test_stopped_worker_is_named_after_the_heartbeat_timeout(self, training, lost):
        with training("--heartbeat_timeout=5") as (run, workers):
            os.killpg(workers.processes[lost].pid, signal.SIGSTOP)
            code, seconds = wait_for_exit(workers, 1 - lost)
            error = workers.error(1 - lost)
        assert code == 138
        assert 3 < seconds < 5 + SOON
        assert f"worker {lost} ({workers.addresses[lost]})" in error

    def test_chief_names_a_worker_with_hanging_input_and_prints_all_stacks(self, training):
        big = ("--config.batch_size=512", "--config.checkpoint_every_steps=1", "--heartbeat_timeout=5")
        hanging = f"--config.model.name={MODELS}:hanging"
        # Every worker notices the stall. The chief must be the first.
        deadlines = {0: ("--step_timeout=12",), 1: ("--step_timeout=40",)}
        with training(*big, hanging, only=deadlines) as (run, workers):
            code, seconds = wait_for_exit(workers, 0)
            assert code == 138
            assert seconds < 12 + SOON
            code, seconds = wait_for_exit(workers, 1)
            assert code == 138
            assert seconds < 5 + SOON
            chief, stuck = workers.output(0), workers.output(1)
        stuck_worker = re.escape(f"worker 1 ({workers.addresses[1]})")
        (message,) = re.findall(r"^convoy: (.*--step_timeout.*)$", chief, re.MULTILINE)
        assert re.search(rf"stuck: {stuck_worker}\.", message)
        assert re.search(rf"worker 0 \(.*\): training step.*; {stuck_worker}: waiting for input", message)
        assert re.search(r'File ".*loop\.py", line \d+ in _train_steps', chief)
        (event,) = events_of(run, "peer_lost")
        assert "stuck: worker 1" in event["message"]
        # The stuck worker cannot handle signals. Its watchdog ends it because the chief is gone.
        assert re.search(rf"^convoy: .*worker 0 \({re.escape(workers.addresses[0])}\)", stuck, re.MULTILINE)
        assert re.search(r'File ".*user_models\.py", line \d+ in read_and_hang', stuck)

    def test_worker_with_corrupt_data_exits_and_the_others_name_the_record(self, workers_started, dataset, tmp_path):
        data, run = shutil.copytree(dataset.data, tmp_path / "data"), tmp_path / "run"
        shard = sorted(data.glob("*-train.tfrecord-*[0-9]"))[0]
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 0x10
        shard.write_bytes(content)
        error_files = [tmp_path / f"error-{rank}.json" for rank in (0, 1)]
        with workers_started(
            *FLAGS,
            f"--workdir={run}",
            output=tmp_path / "output",
            only={0: (f"--data={dataset.data}",), 1: (f"--data={data}",)},
            environments={rank: {"CONVOY_ERROR_FILE": str(path)} for rank, path in enumerate(error_files)},
        ) as workers:
            codes = workers.wait(120)
        assert codes == [138, 3], workers.output(0) + workers.output(1)
        error = workers.error(1)
        assert re.match(rf"convoy: {re.escape(str(shard))}: record \d+ at offset \d+ ", error)
        other = workers.error(0)
        assert f"worker 1 ({workers.addresses[1]})" in other and f"{shard}: record " in other
        # The error file is what a launcher reports as the cause.
        assert not error_files[0].exists()
        noted = json.loads(error_files[1].read_text())
        assert (noted["rank"], noted["exit_code"]) == (1, 3)
        assert f"convoy: {noted['error']}" == error
        assert "Traceback" in noted["traceback"]


@pytest.mark.slow
class TestWorkersThatDiffer:
    """Both workers exit, before anything is written."""

    def assert_refused(self, cluster, folder, code, *arguments, **options):
        workers = cluster(*FLAGS, *arguments, output=folder / "output", seconds=120, **options)
        codes = [process.returncode for process in workers.processes]
        assert codes == [code, code], workers.output(0) + workers.output(1)
        assert workers.error(0) == workers.error(1)
        return workers, workers.error(0)

    def test_in_a_config_field(self, cluster, dataset, tmp_path):
        where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}")
        workers, error = self.assert_refused(cluster, tmp_path, 2, *where, only={1: ("--config.optimizer.beta_1=0.8",)})
        first, second = workers.addresses
        assert "config.optimizer.beta_1" in error
        assert f"0.9 on worker 0 ({first})" in error and f"0.8 on worker 1 ({second})" in error
        assert not (tmp_path / "run").exists()

    def test_in_their_dataset(self, cluster, dataset, dataset_without_validation, tmp_path):
        only = {0: (f"--data={dataset.data}",), 1: (f"--data={dataset_without_validation}",)}
        workers, error = self.assert_refused(cluster, tmp_path, 3, f"--workdir={tmp_path / 'run'}", only=only)
        first, second = workers.addresses
        assert "dataset.train_images" in error and "--data" in error
        assert f"82 on worker 0 ({first})" in error and f"91 on worker 1 ({second})" in error
        assert not (tmp_path / "run").exists()

    def test_in_their_run_directory(self, cluster, dataset, finished_run, tmp_path):
        store = shutil.copytree(finished_run.workdir, tmp_path / "has")
        before = fingerprints(store)
        only = {0: (f"--workdir={tmp_path / 'lacks'}",), 1: (f"--workdir={store}",)}
        workers = cluster(*FLAGS, f"--data={dataset.data}", output=tmp_path / "output", seconds=120, only=only)
        assert [process.returncode for process in workers.processes] == [2, 2]
        for rank in (0, 1):
            for name in (
                f"worker 0 ({workers.addresses[0]})",
                f"worker 1 ({workers.addresses[1]})",
                str(store),
                "lacks",
            ):
                assert name in workers.error(rank)
        assert fingerprints(store) == before
        assert not (tmp_path / "lacks").exists()


@pytest.mark.slow
def test_worker_names_a_missing_chief_within_the_startup_timeout(workers_started, dataset, tmp_path):
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--startup_timeout=2")
    with workers_started(*FLAGS, *where, output=tmp_path / "output") as workers:
        os.killpg(workers.processes[0].pid, signal.SIGKILL)
        code, seconds = wait_for_exit(workers, 1)
    assert code == 138
    assert seconds < 2 + SOON
    error = workers.error(1)
    assert f"worker 0 ({workers.addresses[0]})" in error and "Connection refused" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_directory_is_locked_until_its_process_is_killed(convoy_started, wait_until, dataset, tmp_path):
    run, output = tmp_path / "run", tmp_path / "output"
    command = (*FLAGS, f"--data={dataset.data}", f"--workdir={run}")
    with convoy_started(*command, output=output) as first:
        wait_until(lambda: len(checkpoints(run)) > 1 or first.poll() is not None, "two checkpoints")
        with convoy_started(*command, output=tmp_path / "second") as second:
            assert second.wait(60) == 3
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGKILL)
    (error,) = (tmp_path / "second").read_text().splitlines()
    assert error.startswith(f"convoy: --workdir={run}: another process ")
    with convoy_started(*command, output=output) as third:
        wait_until(lambda: events_of(run, "restored") or third.poll() is not None, "the third start")
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 138, output.read_text()


@pytest.mark.slow
def test_second_start_in_a_new_run_is_refused_from_the_moment_the_first_looks_for_checkpoints(
    convoy_started, wait_until, dataset, tmp_path
):
    slow, building = tmp_path / "slow.py", tmp_path / "building"
    slow.write_text(
        f"import pathlib, time\ndef model(**_):\n    pathlib.Path({str(building)!r}).touch()\n    time.sleep(3600)\n"
    )
    command = (*FLAGS, f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--config.steps=10")
    first, output = (*command, f"--config.model.name={slow}:model"), tmp_path / "first"
    with convoy_started(*first, output=output) as process:
        wait_until(lambda: building.exists() or process.poll() is not None, "the model")
        with convoy_started(*command, output=tmp_path / "second") as second:
            assert second.wait(60) == 3, output.read_text()


@pytest.mark.slow
def test_ctrl_c_saves_on_all_workers_and_a_second_one_ends_at_once(
    training, convoy_started, wait_until, dataset, tmp_path
):
    with training() as (run, workers):
        workers.processes[1].send_signal(signal.SIGINT)
        assert workers.wait(SOON) == [130, 130], workers.output(0)
    (preempted,) = events_of(run, "preempted")
    assert (preempted["signal"], preempted["worker"]) == ("SIGINT", 1)
    assert checkpoints(run)[-1] == preempted["step"]
    for rank in (0, 1):
        assert "SIGINT to worker 1" in workers.error(rank)

    output = tmp_path / "again"
    with convoy_started(*FLAGS, f"--data={dataset.data}", f"--workdir={run}", output=output) as process:
        wait_until(lambda: events_of(run, "restored") or process.poll() is not None, "the second start")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130, output.read_text()
    lines = [line for line in output.read_text().splitlines() if line.startswith("convoy: ")]
    assert 1 <= len(lines) <= 2 and all("interrupted" in line or "SIGINT" in line for line in lines)
    assert "Traceback" not in output.read_text()


@pytest.mark.slow
def test_ctrl_c_while_training_starts_prints_one_line(convoy_started, wait_until, dataset, tmp_path):
    run, output = tmp_path / "run", tmp_path / "output"
    with convoy_started(*FLAGS, f"--data={dataset.data}", f"--workdir={run}", output=output) as process:
        wait_until(lambda: run.exists() or process.poll() is not None, "the run directory")
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130
    assert "Traceback" not in output.read_text()
    errors = [line for line in output.read_text().splitlines() if line.startswith("convoy: ")]
    assert len(errors) <= 2 and "interrupted" in errors[0]


@pytest.mark.slow
def test_training_goes_on_without_a_reader_of_its_output(convoy_started, dataset, tmp_path):
    run, (reader, writer) = tmp_path / "run", os.pipe()
    command = (*FLAGS, f"--data={dataset.data}", f"--workdir={run}", "--config.steps=30")
    with convoy_started(*command, output=f"/dev/fd/{writer}") as process:  # standard error too
        os.close(writer)
        with open(reader) as output:
            assert output.readline()
        assert process.wait(120) == 0
    assert json.loads((run / "result.json").read_text())["step"] == 30
    assert checkpoints(run) == [30]


@pytest.mark.slow
def test_closed_terminal_saves_and_ends_the_run(convoy_started, wait_until, dataset, tmp_path):
    run, (primary, secondary) = tmp_path / "run", pty.openpty()
    os.set_blocking(primary, False)
    as_its_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = (*FLAGS, f"--data={dataset.data}", f"--workdir={run}")
    prefix = (sys.executable, "-c", as_its_terminal)
    with convoy_started(*command, output=os.ttyname(secondary), prefix=prefix) as process:
        os.close(secondary)

        def has_saved():
            with contextlib.suppress(OSError):  # nothing to read
                os.read(primary, 65536)
            return checkpoints(run) or process.poll() is not None

        wait_until(has_saved, "a checkpoint")
        os.close(primary)
        assert process.wait(SOON) == 138
    (event,) = events_of(run, "preempted")
    assert event["signal"] == "SIGHUP"
    assert checkpoints(run)[-1] == event["step"]


TASK = {"cluster": {"worker": ["127.0.0.1:2222", "127.0.0.1:2223"]}, "task": {"type": "worker", "index": 0}}


@pytest.mark.parametrize(
    ("flags", "tf_config", "names"),
    [
        ((), "{worker}", ("TF_CONFIG", "{worker}")),
        ((), {**TASK, "task": {"type": "evaluator", "index": 0}}, ("TF_CONFIG", "'evaluator'")),
        ((), {**TASK, "task": {"type": "worker", "index": 2}}, ("TF_CONFIG", "worker 2")),
        (("--strategy=multi_worker",), "", ("--strategy=multi_worker", "TF_CONFIG")),
        (("--strategy=mirrored",), TASK, ("--strategy=mirrored", "2 workers", "TF_CONFIG")),
        (("--worker_index=1",), "", ("--worker_index=1", "--worker_hosts")),
        (("--worker_hosts=a:1,b",), "", ("--worker_index=None", "0 to 1")),
    ],
    ids=["garbage", "evaluator", "another task", "no cluster", "mirrored", "no hosts", "no index"],
)
def test_invalid_cluster_is_refused_in_one_line(convoy_started, tmp_path, monkeypatch, flags, tf_config, names):
    monkeypatch.setenv("TF_CONFIG", tf_config if isinstance(tf_config, str) else json.dumps(tf_config))
    output = tmp_path / "output"
    with convoy_started(
        *FLAGS, *flags, f"--data={tmp_path}", f"--workdir={tmp_path / 'run'}", output=output
    ) as process:
        assert process.wait(60) == 2
    (error,) = output.read_text().splitlines()
    assert error.startswith("convoy: ")
    for name in names:
        assert name in error
    assert not (tmp_path / "run").exists()
