"""The agent alone, with pipes instead of ssh: whatever ends, no worker is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from convoy import __version__
from convoy.launch.agents.messages import Messages
from tests.processes import REPOSITORY, children, is_gone

SLEEP = "import signal, time; print('up', flush=True); time.sleep(1000)"
SAVE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(138))); " + SLEEP
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


class Agent:
    """A running agent with one worker."""

    def __init__(self, folder, wait_until, name="a", program=(sys.executable, "-m", "convoy.launch.agents.agent")):
        self.folder, self.wait_until = folder, wait_until
        self.process = subprocess.Popen(
            program,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.messages = Messages(self.process.stdout.fileno(), self.process.stdin.fileno())
        self.reports = []
        self.name = name

    def hello(self, **changes):
        (self.folder / "token").write_text("secret")
        order = {
            **{"version": __version__},
            **{"name": self.name, "run": str(self.folder), "token_file": str(self.folder / "token"), "token": "secret"},
            **{"slots": 1, "command": ["train", "--devices=cpu:1"], "avoid_ports": []},
            **{"silent_seconds": 30, "grace_seconds": 30},
        }
        self.messages.send({"hello": {**order, **changes}})

    def start(self, program):
        log = self.folder / f"{self.name}.log"
        workers = [{"rank": 7, "log": str(log), "variables": {}}]
        self.messages.send({"start": {"command": [sys.executable, "-c", program], "variables": {}, "workers": workers}})
        self.wait_until(lambda: log.exists() and "up" in log.read_text(), "the worker", 20)
        (self.worker,) = children(self.process.pid)
        return log

    def expect(self, name, seconds=20):
        """Waits for a report with this key; returns its value."""

        def has_arrived():
            self.messages.beat()
            self.reports += self.messages.receive()
            return any(name in report for report in self.reports)

        self.wait_until(has_arrived, f"a report {name!r}", seconds)
        return next(report[name] for report in self.reports if name in report)

    def end(self, seconds=20):
        assert self.process.wait(seconds) is not None
        self.wait_until(lambda: is_gone(self.worker), "the worker's exit", 5)


@pytest.fixture
def agent(tmp_path, wait_until):
    with contextlib.ExitStack() as stack:

        def start(**options):
            started = Agent(tmp_path, wait_until, **options)
            stack.callback(started.process.stdout.close)
            stack.callback(started.process.wait)
            stack.callback(started.process.kill)
            stack.callback(started.process.stdin.close)
            return started

        yield start


def test_answers_hello_and_reports_a_killed_worker(agent):
    a = agent()
    a.hello()
    hello = a.expect("hello")
    assert (hello["sees_run"], hello["problem"], len(hello["ports"])) == (True, "", 1)
    a.start(SLEEP)
    os.kill(a.worker, signal.SIGKILL)
    assert a.expect("ended") == [7, -signal.SIGKILL]
    a.process.stdin.close()
    assert a.process.wait(10) == 0


def test_answers_another_version_with_its_own_only(agent):
    a = agent()
    a.messages.send({"hello": {"version": "0.0.1", "what": "ever"}})
    assert a.expect("hello") == {"version": __version__, "python": sys.executable}


def test_answers_after_a_greeting_without_newline(agent, tmp_path):
    a = agent(
        program=["sh", "-c", 'printf "Welcome"; exec "$0" "$@"', sys.executable, "-m", "convoy.launch.agents.agent"]
    )
    a.hello()
    assert a.expect("hello")["sees_run"]


def test_doctor_does_not_wait_for_a_run(agent):
    first, second = agent(), agent(name="a")
    first.hello()
    assert first.expect("hello")["problem"] == ""
    second.hello(command=["doctor", "--devices=cpu:1"])
    assert second.expect("hello")["problem"] == ""
    assert not any("waits" in report for report in second.reports)


@pytest.mark.slow  # takes 10 s
def test_reports_a_folder_that_is_not_shared(agent):
    a = agent()
    a.hello(token="another", silent_seconds=60)
    assert a.expect("hello")["sees_run"] is False


def test_end_of_input_stops_workers_after_saving(agent):
    a = agent()
    a.hello()
    log = a.start(SAVE)
    a.process.stdin.close()
    a.end()
    assert log.read_text() == "up\nsaved\n"


def test_silence_stops_workers_after_saving(agent):
    a = agent()
    a.hello(silent_seconds=1)
    log = a.start(SAVE)
    a.end()
    assert log.read_text() == "up\nsaved\n"


def test_kills_workers_after_the_grace_period(agent):
    a = agent()
    a.hello(grace_seconds=0.5)
    a.start(STUBBORN)
    began = time.monotonic()
    a.process.stdin.close()
    a.end()
    assert time.monotonic() - began >= 0.5


def test_sigterm_stops_workers_and_still_reports(agent):
    a = agent()
    a.hello()
    a.start(SAVE)
    a.process.terminate()
    assert a.expect("ended") == [7, 138]
    a.end()


def test_workers_die_with_a_killed_agent(agent):
    a = agent()
    a.hello()
    a.start(STUBBORN)
    a.process.kill()
    a.end()


def test_reports_stopped_workers_and_kills_them(agent):
    a = agent()
    a.hello()
    a.start(STUBBORN)
    os.kill(a.worker, signal.SIGSTOP)
    assert a.expect("stopped") == [7]
    a.messages.send({"kill": True})
    assert a.expect("ended") == [7, -signal.SIGKILL]


def test_waits_for_an_earlier_agent_whose_workers_still_save(agent):
    first, second = agent(), agent()
    first.hello(grace_seconds=2)
    first.start(STUBBORN)
    first.process.stdin.close()
    second.hello()
    assert second.expect("waits") is True
    assert not any("hello" in report for report in second.reports)
    assert not is_gone(first.worker)
    assert second.expect("hello")["problem"] == ""
    assert is_gone(first.worker)


def test_reports_an_earlier_agent_that_does_not_end(agent, tmp_path):
    first, second = agent(), agent()
    first.hello()
    first.expect("hello")
    second.hello(silent_seconds=4, grace_seconds=0)
    problem = second.expect("hello")["problem"]
    assert "another launch" in problem and str(tmp_path) in problem


def test_ignores_invalid_orders(agent):
    a = agent()
    a.process.stdin.write(b"garbage\n[1]\n" + json.dumps({"unknown": 1}).encode() + b"\n")
    a.process.stdin.flush()
    a.hello()
    assert a.expect("hello")["sees_run"]
