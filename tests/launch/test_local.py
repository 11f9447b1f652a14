"""Launchers of real processes: what they do when workers end, are killed or stopped, or when they are themselves."""

import json
import os
import re
import signal

import pytest


def failing(*workers, attempts=(1,)):
    """Returns a plan in which workers do something: (rank, what)."""
    return {"attempts": {str(attempt): {str(rank): what for rank, what in workers} for attempt in attempts}}


def exit_with(code, at, error="bad"):
    return {"at": at, "do": "exit", "code": code, "error": error}


class TestAllGoesWell:
    def test_every_worker_trains_once_and_the_summary_says_so(self, launch):
        launched = launch({}, processes=3)
        assert launched.wait() == 0, launched.output
        assert re.search(
            r"Attempts: 1 in 0:0\d\n  1  step 0 -> 6  done\nGoodput: \d+ % of the time trained steps that count "
            r"\(0:0\d of 0:0\d\)\.\n$",
            launched.output,
        )
        summary = launched.summary()
        assert (summary["exit_code"], summary["processes"], summary["engine"]) == (0, 3, "local")
        assert [attempt["exit_codes"] for attempt in summary["attempts"]] == [[0, 0, 0]]
        assert 0 < summary["goodput"] < 1

    def test_the_chiefs_output_is_shown_to_its_last_line_and_each_worker_has_a_log(self, launch):
        launched = launch({})
        assert launched.wait() == 0
        shown = [line for line in launched.output.splitlines() if line.startswith("[0] ")]
        assert shown == [
            "[0] begins at step 0",
            *(f"[0] step {step}" for step in range(1, 7)),
            "[0] the last line",
        ]
        logs = launched.run / "logs" / "attempt-1"
        assert sorted(os.listdir(logs)) == ["worker-0.log", "worker-1.log"]
        assert (logs / "worker-0.log").read_text().endswith("step 6\nthe last line")

    def test_workers_get_the_contracts_environment_and_signals_as_they_are_by_default(self, launch):
        launched = launch({}, prefix=("nohup", "env", "--ignore-signal=INT", "--block-signal=USR1,TERM"))
        assert launched.wait() == 0, launched.output
        for rank in (0, 1):
            worker = launched.worker(rank)
            environment, status = worker["environment"], worker["status"]
            config = json.loads(environment["TF_CONFIG"])
            assert config["task"] == {"type": "worker", "index": rank}
            assert config["cluster"] == {"worker": launched.worker(0)["addresses"]}
            assert environment["CONVOY_ATTEMPT"] == "1"
            assert environment["CONVOY_ERROR_FILE"] == str(launched.run / "logs" / "attempt-1" / f"error-{rank}.json")
            assert environment["PYTHONUNBUFFERED"] == "1"
            # Python itself ignores SIGPIPE (13) and SIGXFSZ (25).
            assert int(status["SigIgn"].strip(), 16) == 1 << 12 | 1 << 24
            assert int(status["SigBlk"].strip(), 16) == 0

    def test_a_single_worker_has_no_cluster(self, launch):
        launched = launch({}, processes=1, environment={"TF_CONFIG": "{}"})
        assert launched.wait() == 0, launched.output
        assert "TF_CONFIG" not in launched.worker(0)["environment"]

    def test_each_worker_has_its_share_of_the_cores_or_one_thread(self, launch):
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

    def test_a_second_launch_counts_its_attempts_on(self, launch):
        assert launch({}).wait() == 0
        launched = launch({})
        assert launched.wait() == 0
        assert sorted(os.listdir(launched.run / "logs")) == ["attempt-1", "attempt-2"]
        assert "  2  step 6 -> 6  done\n" in launched.output


class TestAWorkerFails:
    def test_after_a_kill_the_whole_gang_starts_again_with_other_ports(self, launch, wait_until):
        launched = launch({"hold_at": {"1": 3}})
        wait_until(lambda: any(event.get("step") == 2 for event in launched.events()), "a checkpoint", 20)
        os.kill(launched.worker(1)["pid"], signal.SIGKILL)
        assert launched.wait() == 0, launched.output
        assert (
            "convoy: attempt 1 ended at step 2: worker 1 was killed (SIGKILL). "
            "Restarting from step 2 (restart 1 of 3 without a new checkpoint).\n"
        ) in launched.output
        assert re.search(r"  1  step 0 -> 2  worker 1 was killed \(SIGKILL\)  went on from step 2\n", launched.output)
        assert "\n  2  step 2 -> 6  done\n" in launched.output
        assert not set(launched.worker(0, 1)["addresses"]) & set(launched.worker(0, 2)["addresses"])
        restart = next(event for event in launched.events() if event["event"] == "restart")
        assert (restart["attempt"], restart["cause"]) == (2, "worker 1 was killed (SIGKILL)")
        assert [attempt["exit_codes"] for attempt in launched.summary()["attempts"]] == [[138, 137], [0, 0]]

    def test_a_stopped_worker_is_killed_when_its_peers_have_ended_and_named(self, launch):
        launched = launch(failing((1, {"at": 3, "do": "stop"})), processes=3)
        assert launched.wait(10) == 0, launched.output  # far sooner than --grace_seconds
        assert "convoy: attempt 1 ended at step 2: worker 1 was stopped (SIGSTOP). Restarting" in launched.output
        assert launched.summary()["attempts"][0]["exit_codes"] == [138, 137, 138]

    def test_a_worker_that_stays_when_its_peers_have_gone_is_ended(self, launch):
        launched = launch(failing((1, {"at": 3, "do": "leave"})), "--grace_seconds=0.3")
        assert launched.wait() == 0, launched.output
        assert "worker 1 did not end with its peers and was killed" in launched.output

    def test_the_cause_is_the_earliest_error_of_a_workers_own_and_its_last_lines_are_shown(self, launch):
        launched = launch(failing((2, exit_with(1, 3, "no such thing")), (1, exit_with(138, 3))), processes=3)
        assert launched.wait() == 0, launched.output
        assert (
            "attempt 1 ended at step 3: worker 2: ValueError: no such thing. Restarting from step 2" in launched.output
        )
        assert (
            "convoy: the last lines of worker 2 (logs/attempt-1/worker-2.log):\n[2] ValueError: no such thing\n"
        ) in launched.output

    def test_the_same_error_at_the_same_step_again_stops_the_run(self, launch):
        launched = launch(failing((1, exit_with(1, 3)), attempts=(1, 2, 3)))
        assert launched.wait() == 1
        assert "Not restarted: it failed at step 3 twice without a new checkpoint between." in launched.output
        assert launched.summary()["exit_code"] == 1
        assert len(launched.summary()["attempts"]) == 2

    def test_a_new_checkpoint_refills_the_restarts(self, launch):
        kills = {str(attempt): {"1": {"at": step, "do": "kill"}} for attempt, step in ((1, 3), (2, 5), (3, 5), (4, 5))}
        launched = launch({"attempts": kills}, "--max_restarts=1")
        assert launched.wait() == 138
        assert launched.output.count("(restart 1 of 1 without a new checkpoint)") == 2
        assert (
            "worker 1 was killed (SIGKILL). Given up after 1 restart without a new checkpoint (--max_restarts=1)."
            in launched.output
        )
        assert len(launched.summary()["attempts"]) == 3

    def test_without_restarts_the_first_failure_is_the_last(self, launch):
        launched = launch(failing((1, {"at": 3, "do": "kill"})), "--max_restarts=0")
        assert launched.wait() == 138
        assert "Not restarted (--max_restarts=0)." in launched.output

    def test_the_start_up_deadline_is_retried(self, launch):
        launched = launch(failing((0, exit_with(1, 0, "")), (1, exit_with(1, 0, ""))))
        assert launched.wait() == 0, launched.output
        assert "attempt 1 ended before its first step: worker" in launched.output
        assert "as its start-up deadline does. Restarting from the start" in launched.output

    def test_a_preempted_worker_makes_the_gang_save_and_start_again(self, launch, wait_until):
        launched = launch({"hold_at": {"1": 3}})
        wait_until(lambda: any(event.get("step") == 2 for event in launched.events()), "a checkpoint", 20)
        os.kill(launched.worker(1)["pid"], signal.SIGTERM)
        assert launched.wait() == 0, launched.output
        assert "attempt 1 ended at step 3: preempted at step 3 (SIGTERM to worker 1). Restarting from step 3" in (
            launched.output
        )

    def test_what_a_worker_left_running_ends_with_it(self, launch, wait_until, tmp_path):
        child = tmp_path / "child"
        launched = launch({"child": ["sh", "-c", f"echo $$ >> {child}; exec sleep 1000"], "hold_at": {"1": 1}})
        wait_until(lambda: child.exists() and len(child.read_text().split()) == 2, "the children", 20)
        wait_until(lambda: launched.worker(0) and launched.worker(1), "the workers", 20)
        launched.process.send_signal(signal.SIGTERM)
        assert launched.wait() == 138, launched.output
        wait_until(lambda: not any(runs(pid) for pid in child.read_text().split()), "the children's end", 5)


class TestNothingARestartMends:
    @pytest.mark.parametrize("code", [2, 3])
    def test_what_the_trainer_refuses_is_shown_once_and_leaves_no_litter(self, launch, code):
        refusal = exit_with(code, 0, "the mend")
        launched = launch(failing((0, refusal), (1, refusal)))
        assert launched.wait() == code
        assert launched.output == "[0] ValueError: the mend\n"
        assert not launched.run.exists()

    def test_a_folder_of_somebody_else_stays_as_it_was(self, launch, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "photo.jpg").write_text("")
        launched = launch(failing((0, exit_with(2, 0)), (1, exit_with(2, 0))))
        assert launched.wait() == 2
        assert os.listdir(launched.run) == ["photo.jpg"]

    def test_data_that_turn_out_bad_in_the_middle_end_the_run(self, launch):
        launched = launch(failing((1, exit_with(3, 4, "bad record"))))
        assert launched.wait() == 3
        assert "worker 1: ValueError: bad record. Another start would end the same.\n" in launched.output
        assert "Attempts: 1 in" in launched.output

    def test_a_run_directory_that_is_a_file_is_named(self, launch, tmp_path):
        (tmp_path / "run").write_text("")
        launched = launch({})
        assert launched.wait() == 2
        assert launched.output == f"convoy: --workdir={tmp_path / 'run'} is a file. Give a folder.\n"


class TestSignals:
    @pytest.fixture
    def held(self, launch, wait_until):
        """Starts a launcher whose workers hold at step 3."""

        def start(*flags, plan=None, **options):
            launched = launch({"hold_at": {"1": 3}, **(plan or {})}, *flags, **options)
            wait_until(lambda: "[0] step 3\n" in launched.output, "step 3", 20)
            return launched

        return start

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
    def test_the_workers_save_and_the_launcher_ends_with_138(self, held, number):
        launched = held()
        launched.process.send_signal(number)
        assert launched.wait() == 138, launched.output
        name = "SIGUSR1" if number == signal.SIGUSR1 else "SIGTERM"
        assert f"convoy: {name}, passed on to 2 workers." in launched.output
        assert f"convoy: ended by {name} at step 3. The same command goes on from step 3.\n" in launched.output
        assert f"  1  step 0 -> 3  ended by {name}\n" in launched.output
        assert launched.left() == []

    def test_ctrl_c_ends_with_130_also_where_the_shell_had_it_ignored(self, held):
        launched = held(prefix=("env", "--ignore-signal=INT"))
        launched.process.send_signal(signal.SIGINT)
        assert launched.wait() == 130
        assert launched.left() == []

    def test_a_stopped_worker_is_woken_to_save(self, held):
        launched = held(processes=1)
        os.kill(launched.worker(0)["pid"], signal.SIGSTOP)
        launched.process.send_signal(signal.SIGTERM)
        assert launched.wait() == 138, launched.output
        assert (launched.run / "checkpoints" / "step-000000003.npz").exists()

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_worker_that_does_not_end_is_killed_after_the_grace_time(self, held, number, code):
        plan = failing((0, {"do": "ignore_signals"}), (1, {"do": "ignore_signals"}))
        launched = held("--grace_seconds=0.4", plan=plan)
        launched.process.send_signal(number)
        assert launched.wait() == code
        assert "convoy: killing 2 workers that did not end.\n" in launched.output
        assert launched.left() == []

    def test_the_second_signal_kills_at_once(self, held, wait_until):
        plan = failing((0, {"do": "ignore_signals"}), (1, {"do": "ignore_signals"}))
        launched = held(plan=plan)
        launched.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "passed on" in launched.output, "the first", 5)
        wait_until(lambda: sends(launched, signal.SIGTERM) and launched.process.poll() is not None, "the end", 5)
        # One more signal can come when the launcher listens no longer: to a shell that is the same.
        assert launched.process.returncode in (143, -signal.SIGTERM)
        assert "convoy: killing 2 workers that did not end.\n" in launched.output
        assert launched.left() == []

    def test_a_launcher_that_is_killed_leaves_nothing(self, held, wait_until):
        launched = held(processes=3)
        launched.process.kill()
        wait_until(lambda: not launched.left(), "the workers' end", 5)


class TestTheReaderOfItsOutput:
    def test_may_go_away(self, launch):
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
        wait_until(lambda: any(event["event"] == "done" for event in launched.events()), "the end of training", 20)
        with os.fdopen(reader) as output:  # nobody has read a line so far
            shown = output.read()
        assert launched.wait() == 0
        assert shown.count("[0] talk ") == 12000
        assert "[0] the last line\n" in shown
        assert "  1  step 0 -> 6  done\n" in shown


def sends(launched, number):
    if launched.process.poll() is None:
        launched.process.send_signal(number)
    return True


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
