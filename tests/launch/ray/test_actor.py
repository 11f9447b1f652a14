"""The actor on a node, without Ray: what it starts never outlives it for long."""

import json
import os
import signal
import subprocess
import sys

import pytest

from convoy import __version__
from convoy.launch.ray.actor import AgentActor
from tests.processes import REPOSITORY, is_gone, process_environment

WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(138)))
print("pid", os.getpid(), flush=True)
time.sleep(1000)
"""

# A process like that of Ray in which the actor lives.
ACTOR = """
import json, sys
from convoy.launch.ray.actor import AgentActor
actor = AgentActor(*json.loads(sys.argv[1]))
orders = json.loads(sys.argv[2])
while True:
    for report in actor.exchange(orders):
        print(json.dumps(report), flush=True)
    orders = []
"""


def hello(folder):
    (folder / "token").write_text("secret")
    return {
        **{"version": __version__, "name": str(folder), "run": str(folder), "token": "secret"},
        **{"token_file": str(folder / "token"), "slots": 1, "command": ["train", "--devices=cpu:1"]},
        **{"avoid_ports": [], "silent_seconds": 60, "grace_seconds": 60},
    }


def test_missing_folder_is_a_problem_of_the_host(tmp_path):
    (report,) = AgentActor(str(tmp_path / "missing"), {}).exchange([{"hello": {}}])
    assert str(tmp_path / "missing") in report["hello"]["problem"]


def test_agent_that_cannot_run_ends_the_connection(tmp_path):
    actor = AgentActor(str(tmp_path), {"PYTHONHOME": str(tmp_path)})
    with pytest.raises(RuntimeError, match="agent"):
        for _ in range(600):
            actor.exchange([])


def test_workers_save_when_the_actor_is_killed(tmp_path, wait_until):
    log = tmp_path / "log"
    start = {
        "command": [sys.executable, "-c", WORKER],
        "variables": {},
        "workers": [{"rank": 0, "log": str(log), "variables": {"A": "b"}}],
    }
    arguments = json.dumps([str(tmp_path), {}]), json.dumps([{"hello": hello(tmp_path)}, {"start": start}])
    with subprocess.Popen(
        [sys.executable, "-c", ACTOR, *arguments],
        cwd=REPOSITORY,
        env=process_environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as actor:
        wait_until(lambda: log.exists() and "pid" in log.read_text(), "the worker")
        worker = int(log.read_text().split()[1])
        os.killpg(actor.pid, signal.SIGKILL)  # as Ray may end the processes of an actor's group
    wait_until(lambda: is_gone(worker), "the worker's exit")
    assert log.read_text().splitlines()[-1] == "saved"
