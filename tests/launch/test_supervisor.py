"""The supervisor where an engine cannot start its workers, loses them, or runs a command that only looks."""

import json
import os
import signal
import time

import pytest

from convoy.core.errors import DataError
from convoy.launch import supervisor as supervisor_module
from convoy.launch.processes import WorkerExit
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import StartError, Supervisor


class Workers:
    """A gang that has ended when it is first looked at."""

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
    """Runs the supervisor over what each start gives, an error or workers; returns its exit code and what it said."""
    monkeypatch.setattr(supervisor_module, "_START_AGAIN_SECONDS", 0.01)

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


def test_a_start_that_fails_is_tried_again_and_its_reason_is_told_once(supervise):
    refusal = StartError("host b does not answer.")
    code, said = supervise(refusal, refusal, Workers(ended(0)))
    assert code == 0
    assert said.count("convoy: host b does not answer. Trying again for 300 s.\n") == 1


def test_a_start_that_goes_on_failing_is_given_up_as_retryable(supervise, tmp_path):
    code, said = supervise(StartError("host b does not answer."), start_seconds=0)
    assert code == 138
    assert "convoy: host b does not answer. Given up. The same command goes on from the start.\n" in said
    assert not (tmp_path / "run").exists()


def test_a_signal_ends_the_waiting_for_a_start(supervise):
    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        raise StartError("host b does not answer.")

    code, said = supervise(interrupted)
    assert code == 143
    assert "convoy: ended by SIGTERM. The same command goes on from the start.\n" in said


def test_a_lost_host_is_named_and_the_gang_is_started_again(supervise):
    code, said = supervise(Workers(ended(0, 138), ended(1, lost="host b does not answer")), Workers(ended(0)))
    assert code == 0
    assert "worker 1 is lost: host b does not answer. Restarting from the start" in said


def test_a_restart_that_is_refused_leaves_its_exit_code(supervise, tmp_path):
    with pytest.raises(DataError):
        supervise(Workers(ended(0, 138)), DataError("RUN cannot be written."))
    assert json.loads((tmp_path / "run" / "launch.json").read_text())["exit_code"] == 3


def test_what_was_written_while_a_start_waited_is_not_taken_for_the_new_attempts(supervise, tmp_path):
    def start():
        (tmp_path / "run" / "events.jsonl").write_text('{"event": "peer_lost", "time": 1, "message": "of before"}\n')
        return Workers(ended(0, 138))

    code, said = supervise(start, max_restarts=0)
    assert code == 138
    assert "of before" not in said


def test_a_command_that_only_looks_and_cannot_be_started_ends_with_2(supervise):
    code, said = supervise(StartError("host b does not answer."), trains=False)
    assert (code, said) == (2, "convoy: host b does not answer.\n")


@pytest.mark.parametrize("returncode", [0, 2, 138])
def test_a_command_that_only_looks_is_started_once_and_leaves_nothing(supervise, tmp_path, returncode):
    code, said = supervise(Workers(ended(0, returncode)), trains=False)
    assert code == returncode
    assert "Attempts" not in said
    assert not (tmp_path / "run").exists()
