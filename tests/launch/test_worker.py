"""`convoy launch worker`, as a scheduler starts it: logs, signals, exit codes."""

import json
import os
import signal
import sys
import time

import pytest

from convoy.launch.worker import own_gpus
from tests.launch.conftest import exit_with, failing


def tf_config(index):
    return json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}})


class TestOutput:
    def test_is_kept_and_shown_without_a_prefix(self, worker):
        one = worker()
        assert one.wait() == 0, one.output
        assert (
            one.output == "begins at step 0\n" + "".join(f"step {step}\n" for step in range(1, 7)) + "the last line\n"
        )
        assert one.log() == one.output.removesuffix("\n")
        assert one.end().items() >= {"rank": 0, "returncode": 0}.items()

    def test_is_only_kept_with_noshow(self, worker):
        one = worker({}, "--noshow")
        assert one.wait() == 0
        assert one.output == ""
        assert one.log().endswith("the last line")

    @pytest.mark.parametrize(
        ("variable", "attempt"),
        [({"CONVOY_RESTARTS": "2"}, 3), ({"SLURM_RESTART_COUNT": "1"}, 2), ({"CONVOY_ATTEMPT": "4"}, 4)],
    )
    def test_is_kept_by_attempt_according_to_the_schedulers_restart_count(self, worker, variable, attempt):
        one = worker({}, **variable)
        assert one.wait() == 0, one.output
        assert one.log(attempt=attempt).endswith("the last line")
        assert one.worker(0, attempt)  # the trainer got the same number

    def test_and_error_are_kept_by_rank(self, worker):
        one = worker(failing((1, exit_with(1, 0, "of rank 1"))), TF_CONFIG=tf_config(1))
        assert one.wait() == 1
        assert one.log(rank=1) == "ValueError: of rank 1\n"
        assert one.end(rank=1).items() >= {"rank": 1, "returncode": 1}.items()
        assert json.loads(one.attempt_file("error-1.json").read_text())["error"] == "ValueError: of rank 1"

    def test_of_a_previous_start_is_not_shown_again(self, worker):
        first = worker()
        assert first.wait() == 0
        kept = first.log()
        second = worker()
        assert second.wait() == 0
        assert second.output == "begins at step 6\nthe last line\n"
        assert second.log() == kept + "begins at step 6\nthe last line"


class TestExitCode:
    @pytest.mark.parametrize("code", [1, 2, 3, 138])
    def test_is_the_trainers(self, worker, code):
        one = worker(failing((0, exit_with(code))))
        assert one.wait() == code
        assert one.output.endswith("ValueError: bad\n")

    def test_is_138_for_the_start_up_deadline_which_leaves_no_error_file(self, worker):
        assert worker(failing((0, exit_with(1, 0, "")))).wait() == 138

    def test_does_not_depend_on_the_error_file_of_a_previous_start(self, worker):
        assert worker(failing((0, exit_with(1)))).wait() == 1
        assert worker(failing((0, exit_with(1, 0, "")))).wait() == 138

    def test_has_the_signal_that_killed_the_trainer(self, worker):
        one = worker(failing((0, {"at": 3, "do": "kill"})))
        assert one.wait() == 137
        assert one.end()["returncode"] == -signal.SIGKILL

    def test_is_2_with_one_line_if_the_environment_describes_an_invalid_cluster(self, worker):
        one = worker({}, JOB_COMPLETION_INDEX="1", CONVOY_WORKERS="2", HOSTNAME="pod")
        assert one.wait() == 2
        (line,) = one.output.splitlines()
        assert "HOSTNAME=pod" in line
        assert "-1 (JOB_COMPLETION_INDEX)" in line

    def test_is_2_and_recorded_if_slurm_does_not_define_the_rank(self, worker):
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
        layout = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_DISTRIBUTION": "arbitrary"}
        one = worker(CONVOY_SLURM_HOSTS="n1,n2", **step, **layout)
        assert one.wait() == 2
        assert one.end(rank=1)["returncode"] == 2
        assert "SLURM_DISTRIBUTION=arbitrary" in one.log(rank=1)

    def test_is_2_if_the_run_directory_is_a_file(self, worker, tmp_path):
        (tmp_path / "run").write_text("")
        one = worker()
        assert one.wait() == 2
        assert f"--workdir={tmp_path / 'run'} is a file" in one.output


class TestSecondaryExit:
    def test_is_delayed_until_the_scheduler_sends_a_signal(self, worker, wait_until):
        one = worker(failing((0, exit_with(138, 3, ""))), "--secondary_exit_delay=1000")
        wait_until(one.attempt_file("end-0.json").exists, "the trainer's end", 20)
        assert one.process.poll() is None
        one.process.terminate()
        assert one.wait() == 138

    def test_is_delayed_no_longer_than_requested(self, worker):
        assert worker(failing((0, exit_with(138, 3, ""))), "--secondary_exit_delay=0.2").wait() == 138

    @pytest.mark.parametrize("code", [1, 2, 3])
    def test_is_not_an_error_of_the_worker_itself(self, worker, code):
        assert worker(failing((0, exit_with(code))), "--secondary_exit_delay=1000").wait() == code

    def test_is_not_an_exit_after_a_signal(self, held_worker):
        one = held_worker("--secondary_exit_delay=1000")
        one.process.terminate()
        assert one.wait() == 138


def test_inspecting_command_leaves_no_files(tmp_path, convoy):
    result = convoy("launch", "worker", "--", "doctor", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
    def test_are_forwarded_and_the_trainer_saves(self, held_worker, number):
        one = held_worker()
        one.process.send_signal(number)
        assert one.wait() == 138, one.output
        assert (one.run / "checkpoints" / "step-000000003.npz").exists()

    def test_are_forwarded_even_if_they_were_ignored_and_blocked(self, held_worker):
        one = held_worker(prefix=("env", "--ignore-signal=TERM", "--block-signal=TERM"))
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 138, one.output

    def test_are_followed_by_a_kill_after_the_grace_time(self, held_worker):
        one = held_worker("--grace_seconds=0.4", plan=failing((0, {"do": "ignore_signals"})))
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 137
        assert "SIGTERM" in one.output.splitlines()[-1]
        assert one.left() == []

    def test_from_scheduler_and_launcher_count_once_and_leave_time_to_save(self, held_worker, wait_until):
        one = held_worker("--grace_seconds=2", plan=failing((0, {"do": "ignore_signals"})))
        first = time.monotonic()
        one.process.terminate()  # from the scheduler
        wait_until(lambda: time.monotonic() > first + 0.5, "half a second")
        one.process.terminate()  # from the launcher of all workers
        assert one.wait() == 137
        assert time.monotonic() > first + 1.9

    def test_wake_a_stopped_trainer(self, held_worker):
        one = held_worker()
        os.kill(one.worker(0)["pid"], signal.SIGSTOP)
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 138, one.output

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel does this on Linux only")
    def test_that_kill_the_launcher_itself_leave_no_trainer(self, held_worker, wait_until):
        one = held_worker()
        assert len(one.left()) == 1
        one.process.kill()
        one.wait()
        wait_until(lambda: not one.left(), "the trainer's end", 10)


@pytest.mark.parametrize(
    ("visible", "own"),
    [
        (None, "2,3"),
        ("4,5,6,7", "6,7"),
        ("GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-d"),
        ("0,1", None),  # assigned by SLURM already
    ],
)
def test_worker_that_shares_a_node_takes_its_own_gpus_of_the_visible_ones(visible, own):
    step = {"CONVOY_GPUS_PER_TASK": "2", "SLURM_LOCALID": "1"}
    step |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert own_gpus(step) == own
    assert own_gpus({**step, "CONVOY_GPUS_PER_TASK": ""}) is None
