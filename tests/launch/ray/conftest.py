"""A Ray cluster of two nodes, each on its own host; launchers run on the first, which is also Ray's head."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.launch.machines import Machines
from tests.network import Network, missing_for_networks
from tests.processes import command_line, process_environment, wait_until

_HEAD_PORT = 6379
_START_SECONDS = 900
_START_TRIES = 3


class RayMachines(Machines):
    """Hosts `a` and `b` with Ray, and a shared folder."""

    def __init__(self, network):
        super().__init__(network, Path(), wait_until, engine="ray", launcher_host="a")
        # Paths of sockets are at most 107 characters: too few for pytest's folders.
        self._session = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self.start_node("a")
        self.start_node("b")

    def begin(self, folder):
        """Uses a new folder, and restarts the node on `b` if a test has ended it."""
        self.folder, self.run = folder, folder / "run"
        self._launches.clear()
        if not self.network.processes("b"):
            self.start_node("b")

    def start_node(self, host):
        """Starts Ray's daemons on a host."""
        head = ("--head", f"--port={_HEAD_PORT}", f"--temp-dir={self._session}", "--include-dashboard=false")
        flags = (
            f"--node-ip-address={self.network.addresses[host]}",
            *(head if host == "a" else (f"--address=a:{_HEAD_PORT}",)),
            *("--num-cpus=2", "--object-store-memory=80000000", "--include-log-monitor=false"),
            "--disable-usage-stats",
        )
        for _ in range(_START_TRIES):
            started = subprocess.run(
                self.network.command(host, Path(sys.executable).with_name("ray"), "start", *flags),
                env=process_environment(RAY_agent_register_timeout_ms="600000"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_START_SECONDS,
            )
            # The command waits 30 s, which may be too short on a busy machine: the node then joins later.
            if started.returncode == 0 or self._running("raylet/raylet", self.network.processes(host)):
                return
            self.network.kill_all(host)
        raise AssertionError(f"Ray does not start on {host}: {started.stdout}{started.stderr}")

    def is_daemon(self, pid):
        """Returns whether a process is not of a launch."""
        words = command_line(pid)
        parts = ("fake_trainer.py", "convoy.launch.agents.agent", "AgentActor")
        return not ("convoy" in words or any(part in word for part in parts for word in words))

    def actor(self, host):
        """Returns the process of the actor on a host."""
        (pid,) = self._running("AgentActor", self.processes(host))
        return pid

    def agent(self, host):
        """Returns the process of the agent on a host."""
        (pid,) = self._running("convoy.launch.agents.agent", self.processes(host))
        return pid

    def _running(self, part, pids):
        """Returns the processes with a word that contains `part` in their command line."""
        return [pid for pid in pids if any(part in word for word in command_line(pid))]

    def launch(self, *flags, **options):
        """Starts `convoy launch ray` on `a`."""
        return super().launch(f"--address=a:{_HEAD_PORT}", *flags, **options)

    def close(self):
        """Kills everything on the hosts."""
        self.kill_launchers()
        for host in self.network.hosts:
            self.network.kill_all(host)
        shutil.rmtree(self._session, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Nodes `a` and `b`, for all tests of a module: starting them takes a minute."""
    if reason := missing_for_networks():
        pytest.skip(reason)
    with Network(tmp_path_factory.mktemp("network"), ["a", "b"]) as network:
        made = RayMachines(network)
        with contextlib.closing(made):
            yield made


@pytest.fixture
def machines(cluster, tmp_path):
    """The cluster with a folder of this test; fails if the launcher left processes after the test."""
    cluster.begin(tmp_path)
    yield cluster
    cluster.kill_launchers()
    wait_until(lambda: not cluster.everything(), "the exit of all processes on the hosts", 120)
