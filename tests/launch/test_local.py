"""`convoy launch local` with real processes: workers and launchers that end, are killed, or are stopped."""

import json
import os
import signal

import pytest

from tests.launch.conftest import exit_with, failing
from tests.processes import is_running


class TestSuccess:
    def test_all_workers_finish_in_one_attempt_and_the_summary_says_so(self, launch):
        launched = launch({}, processes=3)
        assert launched.wait() == 0, launched.output
        assert launched.output.splitlines()[-1].startswith("Goodput: ")
        summary = launched.summary()
        assert (summary["exit_code"], summary["processes"], summary["engine"]) == (0, 3, "local")
        assert launched.attempts("cause", "start_step", "end_step", "exit_codes") == [("done", 0, 6, [0, 0, 0])]
        assert 0 < summary["goodput"] < 1

    def test_output_of_the_chief_is_shown_to_its_last_line_and_each_worker_has_a_log(self, launch):
        launched = launch({})
        assert launched.wait() == 0
        shown = [line for line in launched.output.splitlines() if line.startswith("[0] ")]
        assert shown == [
            "[0] begins at step 0",
            *(f"[0] step {step}" for step in range(1, 7)),
            "[0] the last line",
        ]
        assert sorted(os.listdir(launched.run / "logs" / "attempt-1")) == ["worker-0.log", "worker-1.log"]
        assert launched.log(0).endswith("step 6\nthe last line")

    def test_workers_get_the_documented_environment_and_default_signal_handling(self, launch):
        launched = launch({}, prefix=("nohup", "env", "--ignore-signal=INT", "--block-signal=USR1,TERM"))
        assert launched.wait() == 0, launched.output
        for rank in (0, 1):
            worker = launched.worker(rank)
            environment, status = worker["environment"], worker["status"]
            config = json.loads(environment["TF_CONFIG"])
            assert config["task"] == {"type": "worker", "index": rank}
            assert config["cluster"] == {"worker": launched.worker(0)["addresses"]}
            assert environment["CONVOY_ATTEMPT"] == "1"
            assert environment["CONVOY_ERROR_FILE"] == str(launched.attempt_file(f"error-{rank}.json"))
            assert environment["PYTHONUNBUFFERED"] == "1"
            # Python itself ignores SIGPIPE (13) and SIGXFSZ (25).
            assert int(status["SigIgn"].strip(), 16) == 1 << 12 | 1 << 24
            assert int(status["SigBlk"].strip(), 16) == 0

    def test_workers_share_a_new_key_that_is_in_no_file_and_no_output(self, launch):
        keys = set()
        for attempt in (1, 2):
            launched = launch({}, "--max_restarts=0")
            assert launched.wait() == 0, launched.output
            (key,) = {launched.worker(rank, attempt)["environment"]["CONVOY_CLUSTER_KEY"] for rank in (0, 1)}
            keys.add(key)
            files = [path.read_bytes() for path in launched.run.rglob("*") if path.is_file()]
            assert key not in launched.output and not any(key.encode() in content for content in files)
        assert {len(key) for key in keys} == {64} and len(keys) == 2

    def test_key_of_the_user_is_kept(self, launch):
        launched = launch({}, environment={"CONVOY_CLUSTER_KEY": "own"})
        assert launched.wait() == 0, launched.output
        assert launched.worker(1)["environment"]["CONVOY_CLUSTER_KEY"] == "own"

    def test_single_worker_has_no_cluster(self, launch):
        launched = launch({}, processes=1, environment={"TF_CONFIG": "{}"})
        assert launched.wait() == 0, launched.output
        assert "TF_CONFIG" not in launched.worker(0)["environment"]

    def test_each_worker_is_pinned_to_its_share_of_the_cores(self, launch):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            pytest.skip("needs two cores")
        launched = launch({})
        assert launched.wait() == 0
        first, second = (launched.worker(rank)["cores"] for rank in (0, 1))
        assert not set(first) & set(second)
        assert len(first) == len(second) == len(cores) // 2

    def test_more_workers_than_cores_get_one_thread_each(self, launch):
        cores = sorted(os.sched_getaffinity(0))
        launched = launch({}, processes=2, prefix=("taskset", "--cpu-list", str(cores[0])))
        assert launched.wait() == 0, launched.output
        worker = launched.worker(1)
        assert worker["cores"] == cores[:1]
        assert worker["environment"]["TF_NUM_INTRAOP_THREADS"] == worker["environment"]["OMP_NUM_THREADS"] == "1"

    def test_second_launch_continues_the_numbering_of_attempts(self, launch):
        assert launch({}).wait() == 0
        launched = launch({})
        assert launched.wait() == 0
        assert sorted(os.listdir(launched.run / "logs")) == ["attempt-1", "attempt-2"]
        assert launched.attempts("attempt", "start_step", "end_step", "cause") == [(2, 6, 6, "done")]


class TestWorkerFailure:
    @pytest.fixture
    def held_after_a_checkpoint(self, launch, wait_until):
        """Starts a launcher whose workers have saved step 2 and hold at step 3."""
        launched = launch({"hold_at": {"1": 3}})
        wait_until(lambda: any(event["step"] == 2 for event in launched.events("checkpoint")), "a checkpoint", 20)
        return launched

    def test_all_workers_are_restarted_with_new_ports_after_a_kill(self, held_after_a_checkpoint):
        launched = held_after_a_checkpoint
        os.kill(launched.worker(1)["pid"], signal.SIGKILL)
        assert launched.wait() == 0, launched.output
        assert "Restarting from step 2" in launched.output
        assert launched.attempts("start_step", "end_step", "exit_codes") == [(0, 2, [138, 137]), (2, 6, [0, 0])]
        cause = launched.attempts("cause")[0]
        assert "worker 1" in cause
        assert "SIGKILL" in cause
        assert [(event["attempt"], event["cause"]) for event in launched.events("restart")] == [(2, cause)]
        assert not set(launched.worker(0, 1)["addresses"]) & set(launched.worker(0, 2)["addresses"])

    def test_stopped_worker_is_named_and_killed_once_its_peers_have_exited(self, launch):
        launched = launch(failing((1, {"at": 3, "do": "stop"})), processes=3)
        assert launched.wait(10) == 0, launched.output  # far sooner than --grace_seconds
        (cause, end_step, exit_codes), _ = launched.attempts("cause", "end_step", "exit_codes")
        assert "worker 1" in cause
        assert "SIGSTOP" in cause
        assert (end_step, exit_codes) == (2, [138, 137, 138])

    def test_unresponsive_worker_is_named_and_ended_once_its_peers_have_exited(self, launch):
        launched = launch(failing((1, {"at": 3, "do": "leave"})), "--grace_seconds=0.3")
        assert launched.wait() == 0, launched.output
        cause = launched.attempts("cause")[0]
        assert "worker 1" in cause
        assert "killed" in cause

    def test_cause_is_the_earliest_error_and_its_workers_last_lines_are_shown(self, launch):
        launched = launch(failing((2, exit_with(1, 3, "no such thing")), (1, exit_with(138, 3))), processes=3)
        assert launched.wait() == 0, launched.output
        assert launched.attempts("cause", "end_step", "log")[0] == (
            "worker 2: ValueError: no such thing",
            3,
            "logs/attempt-1/worker-2.log",
        )
        assert "\n[2] ValueError: no such thing\n" in launched.output
        assert "Restarting from step 2" in launched.output

    def test_second_error_at_the_same_step_ends_the_run(self, launch):
        launched = launch(failing((1, exit_with(1, 3)), attempts=(1, 2, 3)))
        assert launched.wait() == 1
        assert launched.summary()["exit_code"] == 1
        assert launched.attempts("end_step") == [3, 3]

    def test_new_checkpoint_resets_the_count_of_restarts(self, launch):
        kills = {str(attempt): {"1": {"at": step, "do": "kill"}} for attempt, step in ((1, 3), (2, 5), (3, 5), (4, 5))}
        launched = launch({"attempts": kills}, "--max_restarts=1")
        assert launched.wait() == 138
        assert len(launched.events("restart")) == 2
        assert len(launched.attempts("cause")) == 3
        assert "--max_restarts=1" in launched.output

    def test_first_failure_is_the_last_without_restarts(self, launch):
        launched = launch(failing((1, {"at": 3, "do": "kill"})), "--max_restarts=0")
        assert launched.wait() == 138
        assert len(launched.attempts("cause")) == 1
        assert "--max_restarts=0" in launched.output

    def test_start_up_deadline_is_retried(self, launch):
        launched = launch(failing((0, exit_with(1, 0, "")), (1, exit_with(1, 0, ""))))
        assert launched.wait() == 0, launched.output
        assert launched.attempts("start_step", "exit_codes") == [(None, [1, 1]), (0, [0, 0])]
        assert "Restarting from step 0" in launched.output

    def test_all_workers_save_and_are_restarted_when_one_is_preempted(self, held_after_a_checkpoint):
        launched = held_after_a_checkpoint
        os.kill(launched.worker(1)["pid"], signal.SIGTERM)
        assert launched.wait() == 0, launched.output
        cause = launched.attempts("cause")[0]
        assert "preempted" in cause
        assert "worker 1" in cause
        assert launched.attempts("start_step", "end_step") == [(0, 3), (3, 6)]

    def test_processes_that_a_worker_left_running_end_with_it(self, launch, wait_until, tmp_path):
        child = tmp_path / "child"
        launched = launch({"child": ["sh", "-c", f"echo $$ >> {child}; exec sleep 1000"], "hold_at": {"1": 1}})
        wait_until(lambda: child.exists() and len(child.read_text().split()) == 2, "the children", 20)
        wait_until(lambda: launched.worker(0) and launched.worker(1), "the workers", 20)
        launched.process.send_signal(signal.SIGTERM)
        assert launched.wait() == 138, launched.output
        wait_until(lambda: not any(is_running(int(pid)) for pid in child.read_text().split()), "the children's end", 5)


class TestRefusal:
    @pytest.mark.parametrize("code", [2, 3])
    def test_by_the_trainer_is_shown_once_and_leaves_no_files(self, launch, code):
        refusal = exit_with(code, 0, "the reason")
        launched = launch(failing((0, refusal), (1, refusal)))
        assert launched.wait() == code
        assert launched.output == "[0] ValueError: the reason\n"
        assert not launched.run.exists()

    def test_leaves_a_folder_with_other_files_unchanged(self, launch, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "photo.jpg").write_text("")
        launched = launch(failing((0, exit_with(2, 0)), (1, exit_with(2, 0))))
        assert launched.wait() == 2
        assert os.listdir(launched.run) == ["photo.jpg"]

    def test_during_training_ends_the_run(self, launch):
        launched = launch(failing((1, exit_with(3, 4, "bad record"))))
        assert launched.wait() == 3
        assert launched.attempts("cause", "exit_codes") == [("worker 1: ValueError: bad record", [138, 3])]

    def test_of_a_run_directory_that_is_a_file_names_it(self, launch, tmp_path):
        (tmp_path / "run").write_text("")
        launched = launch({})
        assert launched.wait() == 2
        assert f"--workdir={tmp_path / 'run'} is a file" in launched.output
        assert len(launched.output.splitlines()) == 1


class TestSignals:
    UNRESPONSIVE = failing((0, {"do": "ignore_signals"}), (1, {"do": "ignore_signals"}))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
    def test_workers_save_and_the_launcher_exits_with_138(self, held, number):
        launched = held()
        launched.process.send_signal(number)
        assert launched.wait() == 138, launched.output
        name = "SIGUSR1" if number == signal.SIGUSR1 else "SIGTERM"
        assert launched.attempts("cause", "start_step", "end_step") == [(f"ended by {name}", 0, 3)]
        assert "resume from step 3" in launched.output
        assert launched.left() == []

    def test_ctrl_c_exits_with_130_even_if_the_shell_had_it_ignored(self, held):
        launched = held(prefix=("env", "--ignore-signal=INT"))
        launched.process.send_signal(signal.SIGINT)
        assert launched.wait() == 130
        assert launched.left() == []

    def test_stopped_worker_is_woken_to_save(self, held):
        launched = held(processes=1)
        os.kill(launched.worker(0)["pid"], signal.SIGSTOP)
        launched.process.send_signal(signal.SIGTERM)
        assert launched.wait() == 138, launched.output
        assert (launched.run / "checkpoints" / "step-000000003.npz").exists()

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_unresponsive_workers_are_killed_after_the_grace_time(self, held, number, code):
        launched = held("--grace_seconds=0.4", plan=self.UNRESPONSIVE)
        launched.process.send_signal(number)
        assert launched.wait() == code
        assert "killing 2 workers" in launched.output
        assert launched.left() == []

    def test_second_signal_kills_at_once(self, held, wait_until):
        def signal_until_it_ends():
            if launched.process.poll() is None:
                launched.process.send_signal(signal.SIGTERM)
            return launched.process.poll() is not None

        launched = held(plan=self.UNRESPONSIVE)
        launched.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "convoy: SIGTERM" in launched.output, "the first", 5)
        wait_until(signal_until_it_ends, "the end", 5)
        # Another signal may arrive after the launcher has restored the default handler.
        assert launched.process.returncode in (143, -signal.SIGTERM)
        assert "killing 2 workers" in launched.output
        assert launched.left() == []

    def test_killed_launcher_leaves_no_workers(self, held, wait_until):
        launched = held(processes=3)
        assert len(launched.left()) == 3
        launched.process.kill()
        wait_until(lambda: not launched.left(), "the workers' end", 5)


class TestReaderOfTheOutput:
    def test_may_be_gone(self, launch):
        reader, writer = os.pipe()
        os.close(reader)
        launched = launch({}, stdout=writer)
        os.close(writer)
        assert launched.wait() == 0
        assert launched.output == ""
        assert launched.summary()["exit_code"] == 0

    def test_may_be_slow_and_gets_everything(self, launch, wait_until):
        reader, writer = os.pipe()
        launched = launch({"talk": 12000}, stdout=writer)
        os.close(writer)
        wait_until(lambda: launched.events("done"), "the end of training", 20)
        with os.fdopen(reader) as output:  # nothing has been read so far
            shown = output.read()
        assert launched.wait() == 0
        assert shown.count("[0] talk ") == 12000
        assert "[0] the last line\n" in shown
        assert shown.splitlines()[-1].startswith("Goodput: ")
