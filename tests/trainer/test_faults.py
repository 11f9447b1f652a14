"""What befalls workers that train together, really: killed, stopped, stuck, missing, at odds, with a bad disk."""

import contextlib
import json
import os
import re
import shutil
import signal
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
# From the fault to the end of the process: about 2 s on a quiet machine.
SOON = 60


def last_logged(run):
    return max([line["step"] for line in json_lines(run / "metrics.jsonl")], default=0)


def checkpoints(run):
    return CheckpointStore(run / "checkpoints").steps()


@pytest.fixture
def training(workers_started, wait_until, dataset, tmp_path):
    """Two workers in the middle of a run that is far from its end: (run, workers). `flags` are added."""

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


def ended(workers, rank):
    """Waits for a worker; returns its exit code and how long it took."""
    began = time.monotonic()
    try:
        return workers.processes[rank].wait(120), time.monotonic() - began
    finally:
        print(workers.output(rank))


@pytest.mark.slow
class TestAWorkerIsLost:
    @pytest.mark.parametrize("lost", [0, 1])
    def test_by_sigkill_and_the_other_names_it_within_seconds(self, training, lost):
        with training() as (run, workers):
            os.killpg(workers.processes[lost].pid, signal.SIGKILL)
            code, seconds = ended(workers, 1 - lost)
            error = workers.error(1 - lost)
        assert code == 138
        assert seconds < SOON
        step = checkpoints(run)[-1]
        assert re.fullmatch(
            rf"convoy: worker {lost} \({re.escape(workers.addresses[lost])}\) is gone: its connection closed.*"
            rf"The same commands go on from step {step}, the newest checkpoint\.",
            error,
        )
        # Worker 1 leaves the writing to the chief, also where that one is gone.
        assert len(events_of(run, "peer_lost")) == (1 if lost == 1 else 0)
        CheckpointStore(run / "checkpoints").load(step)

    @pytest.mark.parametrize("lost", [0, 1])
    def test_by_sigstop_and_the_other_names_it_once_the_heartbeat_is_missed(self, training, lost):
        with training("--heartbeat_timeout=5") as (run, workers):
            os.killpg(workers.processes[lost].pid, signal.SIGSTOP)
            code, seconds = ended(workers, 1 - lost)
            error = workers.error(1 - lost)
        assert code == 138
        assert 3 < seconds < 5 + SOON
        assert f"worker {lost} ({workers.addresses[lost]})" in error
        assert re.search(r"silent for \d+ s|is gone: ", error)

    def test_because_its_input_hangs_and_the_chief_prints_all_stacks_and_names_it(self, training):
        big = ("--config.batch_size=512", "--config.checkpoint_every_steps=1", "--heartbeat_timeout=5")
        hanging = f"--config.model.name={MODELS}:hanging"
        # Each worker sees that nothing goes on; the chief is to be the first.
        deadlines = {0: ("--step_timeout=12",), 1: ("--step_timeout=40",)}
        with training(*big, hanging, only=deadlines) as (run, workers):
            code, seconds = ended(workers, 0)
            assert code == 138
            assert seconds < 12 + SOON
            code, seconds = ended(workers, 1)
            assert code == 138
            assert seconds < 5 + SOON
            chief, stuck = workers.output(0), workers.output(1)
        stuck_worker = re.escape(f"worker 1 ({workers.addresses[1]})")
        (told,) = re.findall(r"^convoy: (no progress for .*)$", chief, re.MULTILINE)
        assert re.fullmatch(
            rf"no progress for \d+ s \(--step_timeout\) in step (\d+): stuck: {stuck_worker}\. "
            rf"worker 0 \(.*\): training step, step \1, for \d+ s; "
            rf"{stuck_worker}: waiting for input, step \1, for \d+ s\. All stacks:",
            told,
        )
        assert re.search(r'File ".*loop\.py", line \d+ in _train_on', chief)
        (event,) = events_of(run, "peer_lost")
        assert "stuck: worker 1" in event["message"]
        # The stuck one cannot read its signals nor end by itself; its own watchdog sees that the chief is gone.
        assert re.search(rf"^convoy: worker 0 \({re.escape(workers.addresses[0])}\) is gone: ", stuck, re.MULTILINE)
        assert re.search(r'File ".*user_models\.py", line \d+ in read_and_hang', stuck)

    def test_because_its_data_are_bad_and_the_others_are_told_which_record(self, workers_started, dataset, tmp_path):
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
        assert other.startswith(f"convoy: worker 1 ({workers.addresses[1]}) is gone: it stopped: {shard}: record ")
        # What a launcher names as the cause.
        assert not error_files[0].exists()
        noted = json.loads(error_files[1].read_text())
        assert (noted["rank"], noted["exit_code"]) == (1, 3)
        assert f"convoy: {noted['error']}" == error
        assert "Traceback" in noted["traceback"]


@pytest.mark.slow
class TestWorkersThatDiffer:
    """Each stops with the same words on both, before anything is written."""

    def refused(self, cluster, folder, code, *arguments, **options):
        workers = cluster(*FLAGS, *arguments, output=folder / "output", seconds=120, **options)
        codes = [process.returncode for process in workers.processes]
        assert codes == [code, code], workers.output(0) + workers.output(1)
        assert workers.error(0) == workers.error(1)
        return workers, workers.error(0)

    def test_in_a_field_of_the_config(self, cluster, dataset, tmp_path):
        where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}")
        workers, error = self.refused(cluster, tmp_path, 2, *where, only={1: ("--config.optimizer.beta_1=0.8",)})
        first, second = workers.addresses
        assert error == (
            f"convoy: the workers differ in config.optimizer.beta_1: 0.9 on worker 0 ({first}), 0.8 on worker 1 "
            f"({second}). Start all workers with the same flags."
        )
        assert not (tmp_path / "run").exists()

    def test_in_their_dataset(self, cluster, dataset, dataset_without_validation, tmp_path):
        only = {0: (f"--data={dataset.data}",), 1: (f"--data={dataset_without_validation}",)}
        workers, error = self.refused(cluster, tmp_path, 3, f"--workdir={tmp_path / 'run'}", only=only)
        first, second = workers.addresses
        assert error == (
            f"convoy: the workers differ in dataset.train_images: 82 on worker 0 ({first}), 91 on worker 1 ({second}). "
            "Give all workers the same --data."
        )
        assert not (tmp_path / "run").exists()

    def test_in_what_their_run_directory_holds(self, cluster, dataset, finished_run, tmp_path):
        store = shutil.copytree(finished_run.workdir, tmp_path / "has")
        before = fingerprints(store)
        only = {0: (f"--workdir={tmp_path / 'lacks'}",), 1: (f"--workdir={store}",)}
        workers, error = self.refused(cluster, tmp_path, 3, f"--data={dataset.data}", only=only)
        first, second = workers.addresses
        assert error == (
            f"convoy: worker 1 ({second}) sees a checkpoint of step 40 in {store}/checkpoints and worker 0 ({first}) "
            "sees none: all workers must share one --workdir."
        )
        assert fingerprints(store) == before
        assert not (tmp_path / "lacks").exists()


@pytest.mark.slow
def test_a_worker_whose_chief_does_not_come_names_it_within_the_deadline(workers_started, dataset, tmp_path):
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--startup_timeout=2")
    with workers_started(*FLAGS, *where, output=tmp_path / "output") as workers:
        os.killpg(workers.processes[0].pid, signal.SIGKILL)
        code, seconds = ended(workers, 1)
    assert code == 138
    assert seconds < 2 + SOON
    assert re.fullmatch(
        rf"convoy: worker 0 \({re.escape(workers.addresses[0])}\), the chief, could not be reached within 2 s "
        r"\(Connection refused\)\. Does it run, and is its port open\?",
        workers.error(1),
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_directory_is_one_runs_at_a_time_and_free_after_a_kill(convoy_started, wait_until, dataset, tmp_path):
    run, output = tmp_path / "run", tmp_path / "output"
    command = (*FLAGS, f"--data={dataset.data}", f"--workdir={run}")
    with convoy_started(*command, output=output) as first:
        wait_until(lambda: len(checkpoints(run)) > 1 or first.poll() is not None, "two checkpoints")
        with convoy_started(*command, output=tmp_path / "second") as second:
            assert second.wait(60) == 3
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGKILL)
    (error,) = (tmp_path / "second").read_text().splitlines()
    assert error == (
        f"convoy: --workdir={run}: another process is training in it. Wait for it, or give another folder."
    )
    with convoy_started(*command, output=output) as third:
        wait_until(lambda: events_of(run, "restored") or third.poll() is not None, "the third start")
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 138, output.read_text()


TASK = {"cluster": {"worker": ["127.0.0.1:2222", "127.0.0.1:2223"]}, "task": {"type": "worker", "index": 0}}


@pytest.mark.parametrize(
    ("flags", "tf_config", "words"),
    [
        ((), "{worker}", "TF_CONFIG='{worker}' cannot be read"),
        ((), {**TASK, "task": {"type": "evaluator", "index": 0}}, "'evaluator'"),
        ((), {**TASK, "task": {"type": "worker", "index": 2}}, "TF_CONFIG: this task is worker 2"),
        (("--strategy=multi_worker",), "", "--strategy=multi_worker without a cluster: set TF_CONFIG, "),
        (("--strategy=mirrored",), TASK, "--strategy=mirrored with the 2 workers of TF_CONFIG: leave --strategy out"),
        (("--worker_index=1",), "", "--worker_index=1 needs --worker_hosts"),
        (("--worker_hosts=a:1,b",), "", "--worker_index=None"),
    ],
    ids=["garbage", "evaluator", "another task", "no cluster", "mirrored", "no hosts", "no index"],
)
def test_a_cluster_that_cannot_be_is_refused_in_a_line(convoy_started, tmp_path, monkeypatch, flags, tf_config, words):
    monkeypatch.setenv("TF_CONFIG", tf_config if isinstance(tf_config, str) else json.dumps(tf_config))
    output = tmp_path / "output"
    with convoy_started(
        *FLAGS, *flags, f"--data={tmp_path}", f"--workdir={tmp_path / 'run'}", output=output
    ) as process:
        assert process.wait(60) == 2
    (error,) = output.read_text().splitlines()
    assert error.startswith(f"convoy: {words}")
    assert not (tmp_path / "run").exists()
