"""The supervisor with an engine that cannot start its workers or loses them, and with commands that only inspect."""

import json
import os
import signal
import time

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.launch import supervisor as supervisor_module
from convoy.launch.processes import WorkerExit
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import StartError, Supervisor

REASON = "host b does not answer."


class Workers:
    """Workers that have ended at the first poll."""

    def __init__(self, *ends):
        self._ends = list(ends)

    def running(self):
        return [end.rank for end in self._ends]

    def poll(self):
        ends, self._ends = self._ends, []
        return ends

    def stopped(self):
        return []

    def kill(self):
        return []


def ended(rank, returncode=0, lost=""):
    return WorkerExit(rank, returncode, time.time(), lost)


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Runs the supervisor with a result per start, an error or workers; returns its exit code and its output."""
    monkeypatch.setattr(supervisor_module, "_START_RETRY_SECONDS", 0.01)

    def run(*starts, **options):
        starts, (read, write) = iter(starts), os.pipe()

        def start(_):
            result = next(starts)
            if isinstance(result, Exception):
                raise result
            return result() if callable(result) else result

        options = {"max_restarts": 3, "grace_seconds": 1.0, **options}
        code = Supervisor(RunFiles(tmp_path / "run"), start, screen=Screen(write), **options).run()
        os.close(write)
        with open(read) as file:
            return code, file.read()

    return run


def test_failing_start_is_retried_and_its_reason_logged_once(supervise):
    code, output = supervise(StartError(REASON), StartError(REASON), Workers(ended(0)))
    assert code == 0
    assert output.count(REASON) == 1


def test_start_that_keeps_failing_is_given_up_with_a_retryable_code(supervise, tmp_path):
    code, output = supervise(StartError(REASON), start_seconds=0)
    assert code == 138
    assert REASON in output
    assert not (tmp_path / "run").exists()


def test_signal_stops_the_retries_of_a_start(supervise):
    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        raise StartError(REASON)

    code, output = supervise(interrupted)
    assert code == 143
    assert "SIGTERM" in output


def test_lost_host_is_named_and_all_workers_are_restarted(supervise, tmp_path):
    code, output = supervise(Workers(ended(0, 138), ended(1, lost="host b does not answer")), Workers(ended(0)))
    assert code == 0
    first, second = json.loads((tmp_path / "run" / "launch.json").read_text())["attempts"]
    assert "worker 1" in first["cause"]
    assert "host b" in first["cause"]
    assert second["cause"] == "done"
    assert "Restarting from step 0" in output


def test_refused_restart_leaves_its_exit_code_in_the_summary(supervise, tmp_path):
    with pytest.raises(DataError):
        supervise(Workers(ended(0, 138)), DataError("RUN is not writable."))
    assert json.loads((tmp_path / "run" / "launch.json").read_text())["exit_code"] == 3


@pytest.mark.parametrize("trains", [True, False])
def test_refused_first_start_leaves_the_run_directory_unchanged(supervise, tmp_path, trains):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError):
        supervise(UsageError("host b refuses the login."), trains=trains)
    assert os.listdir(tmp_path / "run") == ["checkpoints"]


def test_events_written_while_a_start_waited_belong_to_the_previous_attempt(supervise, tmp_path):
    def start():
        (tmp_path / "run" / "events.jsonl").write_text('{"event": "peer_lost", "time": 1, "message": "previous"}\n')
        return Workers(ended(0, 138))

    code, output = supervise(start, max_restarts=0)
    assert code == 138
    assert "previous" not in output


def test_inspecting_command_that_cannot_be_started_exits_with_2(supervise):
    code, output = supervise(StartError(REASON), trains=False)
    assert (code, output) == (2, f"convoy: {REASON}\n")


@pytest.mark.parametrize("returncode", [0, 2, 138])
def test_inspecting_command_is_started_once_and_leaves_no_files(supervise, tmp_path, returncode):
    code, output = supervise(Workers(ended(0, returncode)), trains=False)
    assert code == returncode
    assert "Goodput" not in output
    assert not (tmp_path / "run").exists()
