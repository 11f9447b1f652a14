"""Hosts with real ssh servers in their own network, and launchers on the host `head`."""

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.machines import Machines
from tests.processes import children

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

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


class SshMachines(Machines):
    """Hosts `a` and `b` with ssh servers, the host `head` for launchers, and a shared folder."""

    def __init__(self, network, folder, wait_until):
        super().__init__(network, folder, wait_until, engine="ssh", launcher_host="head")
        self.ssh_config = folder / "ssh_config"
        self._servers: dict[str, subprocess.Popen] = {}
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
        self.wait_until(
            lambda: (
                subprocess.run(
                    self.network.command("head", sys.executable, "-c", probe), stderr=subprocess.DEVNULL
                ).returncode
                == 0
            ),
            f"the ssh server on {host}",
            20,
        )

    def connections(self, host):
        """Returns the ssh server processes that serve a connection on a host."""
        return children(self._servers[host].pid)

    def is_daemon(self, pid):
        """Returns whether a process is an ssh server itself."""
        return pid in {server.pid for server in self._servers.values()}

    def power_off(self, host):
        """Unplugs a host from the network and kills all its processes."""
        self.network.unplug(host)
        self.network.kill_all(host)
        self._servers.pop(host).wait()

    def launch(self, *flags, hosts="a\nb\n", **options):
        """Starts `convoy launch ssh` on `head`."""
        (self.folder / "hosts.txt").write_text(hosts)
        return super().launch(
            f"--hosts={self.folder / 'hosts.txt'}", f"--ssh_config={self.ssh_config}", *flags, **options
        )

    def close(self):
        """Kills launchers, servers and everything on the hosts."""
        self.kill_launchers()
        for host, server in self._servers.items():
            self.network.kill_all(host)
            server.wait()


@pytest.fixture
def machines(network, tmp_path, wait_until):
    """Hosts `a` and `b`; fails if the launcher left processes on them after the test."""
    missing = [tool for tool in ("ssh", "ssh-keygen") if not shutil.which(tool)] + ([] if SSHD else ["sshd"])
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it but creates it only as a service
    made = SshMachines(network("a", "b"), tmp_path, wait_until)
    with contextlib.closing(made):
        yield made
        made.kill_launchers()
        wait_until(lambda: not made.everything(), "the exit of all processes on the hosts", 20)
