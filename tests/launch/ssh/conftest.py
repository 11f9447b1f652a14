"""Hosts with real ssh servers in their own network, and launchers on the host `head`."""

import contextlib
import getpass
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import children, environment_of, is_gone, started

FAKE_TRAINER = Path(__file__).parents[1] / "fake_trainer.py"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

# `convoy launch ssh` with a small program in place of the trainer and a shorter silence timeout.
_LAUNCHER = """
import sys
from convoy.cli import entry_point
from convoy.launch.ssh import engine
engine.run.__kwdefaults__ |= {"trainer": (sys.executable, sys.argv[1]), "silent_seconds": 8.0}
sys.argv = ["convoy", "launch", "ssh", *sys.argv[2:]]
entry_point()
"""

_SSHD_CONFIG = """
HostKey {folder}/host-key
AuthorizedKeysFile {folder}/user-key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""

_SSH_CONFIG = """
Host second
  HostName b

Host *
  User {user}
  IdentityFile {folder}/user-key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""


@dataclass
class Launch:
    """A launcher on `head`; `run` is its run directory."""

    process: subprocess.Popen
    output_file: Path
    run: Path

    @property
    def output(self):
        return self.output_file.read_text()

    def wait(self, seconds=60):
        """Waits for the launcher to exit; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher did not exit within {seconds} s:\n{self.output}") from None

    def worker(self, rank, attempt=1):
        """Returns what a fake trainer's worker wrote about itself, or None if it has not started yet."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.run.parent / "pids" / f"{attempt}-{rank}.json").read_text())

    def events(self):
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        return []

    def summary(self):
        return json.loads((self.run / "launch.json").read_text())


class Machines:
    """Hosts `a` and `b` with ssh servers, the host `head` for launchers, and a shared folder."""

    def __init__(self, network, folder, wait_until):
        self.network = network
        self.folder = folder
        self.ssh_config = folder / "ssh_config"
        self.run = folder / "run"
        self._wait_until = wait_until
        self._servers: dict[str, subprocess.Popen] = {}
        self._launches: list[Launch] = []
        self._launchers = contextlib.ExitStack()
        for key in ("host-key", "user-key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / key)]
            subprocess.run(command, check=True, timeout=60)
        self.host_key = " ".join((folder / "host-key.pub").read_text().split()[:2])
        self.know("a", "b")
        self.ssh_config.write_text(_SSH_CONFIG.format(user=getpass.getuser(), folder=folder))
        (folder / "sshd_config").write_text(_SSHD_CONFIG.format(folder=folder))
        for host in network.hosts:
            self.start_server(host)

    def know(self, *hosts):
        """Writes a known_hosts file with exactly these hosts."""
        (self.folder / "known_hosts").write_text("".join(f"{host} {self.host_key}\n" for host in hosts))

    def start_server(self, host):
        """Starts a host's ssh server and waits until it listens."""
        self._servers[host] = subprocess.Popen(
            self.network.command(host, SSHD, "-D", "-e", "-f", self.folder / "sshd_config"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        probe = f"import socket; socket.create_connection(('{host}', 22), timeout=1)"
        self._wait_until(
            lambda: (
                subprocess.run(self._on("head", sys.executable, "-c", probe), stderr=subprocess.DEVNULL).returncode == 0
            ),
            f"the ssh server on {host}",
            20,
        )

    def connections(self, host):
        """Returns the ssh server processes that serve a connection on a host."""
        return children(self._servers[host].pid)

    def processes(self, host):
        """Returns the processes on a host, without the ssh server itself."""
        return [pid for pid in self.network.processes(host) if pid not in self._server_pids and not is_gone(pid)]

    @property
    def _server_pids(self):
        return {server.pid for server in self._servers.values()}

    def everything(self):
        """Returns the processes of the launcher on all hosts."""
        return [pid for host in self.network.hosts for pid in self.processes(host)]

    def worker_pid(self, host, rank, attempt):
        """Returns the process of a worker on a host, or None."""
        for pid in self.processes(host):
            variables = environment_of(pid)
            task = json.loads(variables.get("TF_CONFIG", "{}")).get("task", {"index": 0})
            if variables.get("CONVOY_ATTEMPT") == str(attempt) and task["index"] == rank:
                return pid
        return None

    def power_off(self, host):
        """Unplugs a host from the network and kills all its processes."""
        self.network.unplug(host)
        self.network.kill_all(host)
        self._servers.pop(host).wait()

    def launch(self, *flags, hosts="a\nb\n", verb="train", command=(), fake=True, plan=None, environment=None):
        """Starts `convoy launch ssh` on `head`; with the fake trainer and a plan unless `fake` is False."""
        (self.folder / "hosts.txt").write_text(hosts)
        flags = [f"--hosts={self.folder / 'hosts.txt'}", f"--ssh_config={self.ssh_config}", *flags]
        if fake:
            (self.folder / "plan.json").write_text(json.dumps({"steps": 6, "checkpoint_every": 2, **(plan or {})}))
            command = (f"--plan={self.folder / 'plan.json'}", *command)
            program = [sys.executable, "-c", _LAUNCHER, FAKE_TRAINER]
        else:
            program = [sys.executable, "-m", "convoy", "launch", "ssh"]
        output = self.folder / f"output-{len(self._launches)}"
        words = self._on("head", *program, *flags, "--", verb, *command, f"--workdir={self.run}")
        process = self._launchers.enter_context(started(words, output=output, environment=environment))
        self._launches.append(Launch(process, output, self.run))
        return self._launches[-1]

    def kill_launchers(self):
        """Kills every launcher that still runs."""
        self._launchers.close()

    def close(self):
        """Kills launchers, servers and everything on the hosts."""
        self.kill_launchers()
        for host, server in self._servers.items():
            self.network.kill_all(host)
            server.wait()

    def _on(self, host, *command):
        return self.network.command(host, *command)


@pytest.fixture
def machines(network, tmp_path, wait_until):
    """Hosts `a` and `b`; fails if the launcher left processes on them after the test."""
    missing = [tool for tool in ("ssh", "ssh-keygen") if not shutil.which(tool)] + ([] if SSHD else ["sshd"])
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it but creates it only as a service
    made = Machines(network("a", "b"), tmp_path, wait_until)
    with contextlib.closing(made):
        yield made
        made.kill_launchers()
        wait_until(lambda: not made.everything(), "the exit of all processes on the hosts", 20)
