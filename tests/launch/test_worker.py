"""`convoy launch worker`, as a scheduler starts it: what it keeps, passes on, and ends with."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convoy.launch.worker import own_gpus

REPOSITORY = Path(__file__).parents[2]
FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

# `convoy launch worker` with a small program in place of the trainer.
_WORKER = """
import sys
from convoy.cli import entry_point
from launch import worker
worker.launch.__kwdefaults__["trainer"] = (sys.executable, sys.argv[1])
sys.argv = ["convoy", "launch", "worker", *sys.argv[2:]]
entry_point()
"""


class Worker:
    """A started `launch worker`, its trainer, and what they left behind."""

    def __init__(self, folder, flags, environment, prefix):
        self.folder, self.run = folder, folder / "run"
        arguments = [*flags, "--", "train", f"--plan={folder / 'plan.json'}", f"--workdir={self.run}"]
        with open(folder / "output", "wb") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-c", _WORKER, FAKE_TRAINER, *arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
                start_new_session=True,
            )

    @property
    def output(self):
        return (self.folder / "output").read_text()

    def log(self, attempt=1, rank=0):
        return (self.run / "logs" / f"attempt-{attempt}" / f"worker-{rank}.log").read_text()

    def end(self, attempt=1, rank=0):
        return json.loads((self.run / "logs" / f"attempt-{attempt}" / f"end-{rank}.json").read_text())

    def wait(self):
        return self.process.wait(30)

    def trainer(self):
        """Returns the trainer's pid, or None where it is not there (yet, or any more)."""
        for path in (self.folder / "pids").glob("*.json"):
            pid = json.loads(path.read_text())["pid"]
            with contextlib.suppress(OSError):
                if FAKE_TRAINER.name in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        return None


@pytest.fixture
def worker(tmp_path):
    """Starts `launch worker` on the fake trainer with a plan; returns a `Worker`. Ends all of it after the test."""
    started = []

    def start(plan=None, *flags, prefix=(), **environment):
        (tmp_path / "plan.json").write_text(json.dumps({"steps": 6, "checkpoint_every": 2, **(plan or {})}))
        started.append(Worker(tmp_path, flags, environment, prefix))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        if pid := one.trainer():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def held(worker, wait_until):
    """Starts a worker whose trainer holds at step 3."""

    def start(*flags, plan=None, **options):
        one = worker({"hold_at": {"1": 3}, **(plan or {})}, *flags, **options)
        wait_until(lambda: "step 3\n" in one.output, "step 3", 20)
        return one

    return start


def doing(what, attempt=1, rank=0):
    return {"attempts": {str(attempt): {str(rank): what}}}


def exit_with(code, error="bad"):
    return {"at": 3, "do": "exit", "code": code, "error": error}


def tf_config(index):
    return json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}})


class TestOutput:
    def test_is_kept_and_shown_without_anything_in_front(self, worker):
        one = worker()
        assert one.wait() == 0, one.output
        assert (
            one.output == "begins at step 0\n" + "".join(f"step {step}\n" for step in range(1, 7)) + "the last line\n"
        )
        assert one.log() == one.output.removesuffix("\n")
        assert one.end().items() >= {"rank": 0, "returncode": 0}.items()

    def test_is_only_kept_where_that_is_wanted(self, worker):
        one = worker({}, "--noshow")
        assert one.wait() == 0
        assert one.output == ""
        assert one.log().endswith("the last line")

    @pytest.mark.parametrize(
        ("variable", "attempt"),
        [({"CONVOY_RESTARTS": "2"}, 3), ({"SLURM_RESTART_COUNT": "1"}, 2), ({"CONVOY_ATTEMPT": "4"}, 4)],
    )
    def test_lies_where_the_schedulers_count_of_starts_says(self, worker, variable, attempt):
        one = worker({}, **variable)
        assert one.wait() == 0, one.output
        assert one.log(attempt).endswith("the last line")
        assert (one.folder / "pids" / f"{attempt}-0.json").exists()  # the trainer was told the same number

    def test_of_another_rank_is_named_after_it_and_so_is_its_error(self, worker):
        one = worker(doing({**exit_with(1, "of rank 1"), "at": 0}, rank=1), TF_CONFIG=tf_config(1))
        assert one.wait() == 1
        assert one.log(rank=1) == "ValueError: of rank 1\n"
        assert one.end(rank=1).items() >= {"rank": 1, "returncode": 1}.items()
        error = json.loads((one.run / "logs" / "attempt-1" / "error-1.json").read_text())
        assert error["error"] == "ValueError: of rank 1"

    def test_of_a_start_before_is_not_shown_again(self, worker):
        first = worker()
        assert first.wait() == 0
        kept = first.log()
        second = worker()
        assert second.wait() == 0
        assert second.output == "begins at step 6\nthe last line\n"
        assert second.log() == kept + "begins at step 6\nthe last line"


class TestExitCode:
    @pytest.mark.parametrize(("code", "ends_with"), [(1, 1), (2, 2), (3, 3), (138, 138)])
    def test_is_the_trainers(self, worker, code, ends_with):
        one = worker(doing(exit_with(code)))
        assert one.wait() == ends_with
        assert one.output.endswith("ValueError: bad\n")

    def test_is_138_for_the_start_up_deadline_which_leaves_no_word(self, worker):
        assert worker(doing({**exit_with(1, ""), "at": 0})).wait() == 138

    def test_is_not_taken_from_an_error_of_a_start_before(self, worker):
        assert worker(doing(exit_with(1))).wait() == 1
        assert worker(doing({**exit_with(1, ""), "at": 0})).wait() == 138

    def test_says_which_signal_killed_the_trainer(self, worker):
        one = worker(doing({"at": 3, "do": "kill"}))
        assert one.wait() == 137
        assert one.end()["returncode"] == -signal.SIGKILL

    def test_is_2_with_one_line_where_the_environment_is_no_clusters(self, worker):
        one = worker({}, JOB_COMPLETION_INDEX="1", CONVOY_WORKERS="2", HOSTNAME="pod")
        assert one.wait() == 2
        assert re.fullmatch(r"convoy: HOSTNAME=pod does not end in JOB_COMPLETION_INDEX=1: .*\n", one.output)

    def test_is_2_where_slurm_does_not_tell_its_place_and_the_launcher_finds_word_of_it(self, worker):
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
        layout = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_DISTRIBUTION": "arbitrary"}
        one = worker(CONVOY_SLURM_HOSTS="n1,n2", **step, **layout)
        assert one.wait() == 2
        assert one.end(rank=1)["returncode"] == 2
        assert one.log(rank=1).startswith("convoy: SLURM_DISTRIBUTION=arbitrary")

    def test_is_2_where_the_run_directory_is_a_file(self, worker, tmp_path):
        (tmp_path / "run").write_text("")
        one = worker()
        assert one.wait() == 2
        assert one.output == f"convoy: --workdir={tmp_path / 'run'} is a file. Give a folder.\n"


class TestEcho:
    def test_of_another_workers_end_is_held_back_until_the_scheduler_has_acted_on_that_one(self, worker, wait_until):
        one = worker(doing(exit_with(138, "")), "--secondary_exit_delay=1000")
        wait_until(lambda: (one.run / "logs" / "attempt-1" / "end-0.json").exists(), "the trainer's end", 20)
        assert one.process.poll() is None
        one.process.terminate()
        assert one.wait() == 138

    def test_is_held_back_no_longer_than_asked_for(self, worker):
        assert worker(doing(exit_with(138, "")), "--secondary_exit_delay=0.2").wait() == 138

    @pytest.mark.parametrize("code", [1, 2, 3])
    def test_is_not_what_a_workers_own_error_is(self, worker, code):
        assert worker(doing(exit_with(code)), "--secondary_exit_delay=1000").wait() == code

    def test_is_not_what_the_end_of_a_worker_is_that_got_the_signal(self, held):
        one = held("--secondary_exit_delay=1000")
        one.process.terminate()
        assert one.wait() == 138


def test_a_command_that_only_looks_leaves_nothing(tmp_path, convoy):
    result = convoy("launch", "worker", "--", "doctor", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Nothing failed." in result.stdout
    assert not (tmp_path / "run").exists()


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
    def test_are_passed_on_so_that_the_trainer_saves(self, held, number):
        one = held()
        one.process.send_signal(number)
        assert one.wait() == 138, one.output
        assert (one.run / "checkpoints" / "step-000000003.npz").exists()

    def test_of_a_shell_in_the_background_come_through(self, held):
        one = held(prefix=("env", "--ignore-signal=TERM", "--block-signal=TERM"))
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 138, one.output

    def test_are_followed_by_a_kill_after_the_grace_time(self, held):
        one = held("--grace_seconds=0.4", plan=doing({"do": "ignore_signals"}))
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 137
        assert one.output.endswith("convoy: killing the worker, which did not end after SIGTERM.\n")
        assert one.trainer() is None

    def test_that_come_by_two_ways_are_one_order_and_leave_the_time_to_save(self, held, wait_until):
        one = held("--grace_seconds=2", plan=doing({"do": "ignore_signals"}))
        first = time.monotonic()
        one.process.terminate()  # by the scheduler
        wait_until(lambda: time.monotonic() > first + 0.5, "half a second")
        one.process.terminate()  # by the launcher of the gang
        assert one.wait() == 137
        assert time.monotonic() > first + 1.9

    def test_wake_a_trainer_that_is_stopped(self, held):
        one = held()
        os.kill(one.trainer(), signal.SIGSTOP)
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 138, one.output

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel does this on Linux only")
    def test_that_kill_the_worker_itself_leave_nothing_behind(self, held, wait_until):
        one = held()
        one.process.kill()
        one.wait()
        wait_until(lambda: one.trainer() is None, "the trainer's end", 10)


@pytest.mark.parametrize(
    ("visible", "own"),
    [
        (None, "2,3"),
        ("4,5,6,7", "6,7"),
        ("GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-d"),
        ("0,1", None),  # SLURM has shared them out
    ],
)
def test_a_worker_that_shares_a_node_takes_its_own_gpus_of_those_it_can_see(visible, own):
    step = {"CONVOY_GPUS_PER_TASK": "2", "SLURM_LOCALID": "1"}
    step |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert own_gpus(step) == own
    assert own_gpus({**step, "CONVOY_GPUS_PER_TASK": ""}) is None
