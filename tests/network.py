"""Simulated hosts on one machine: network namespaces with names and addresses, connected to a virtual switch.

    with Network(folder, ["a", "b"]) as network:
        subprocess.Popen(network.command("a", "python", "-m", "convoy", ...))     # runs on host a
        network.unplug("b"), network.plug_in("b")
        network.kill_all("b")                                                     # power failure

The extra host `head` has the switch; launchers and schedulers run there. All hosts resolve each other's names.
The machine's own network is not touched. Needs root and iproute2.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.processes import is_gone

HEAD = "head"
_SUBNET, _SECOND_SUBNET = "10.213.7", "10.213.8"
_GONE_SECONDS = 30.0


def missing_for_networks() -> str:
    """Returns why this machine cannot simulate networks; empty if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    lacking = [tool for tool in ("ip", "nsenter", "unshare", "mount") if not shutil.which(tool)]
    return f"{', '.join(lacking)} not installed" if lacking else ""


class Network:
    """An isolated network of hosts. A context manager that removes it on exit."""

    def __init__(self, folder: Path, hosts: Sequence[str], aliases: Mapping[str, Sequence[str]] | None = None):
        """Entering the context creates the network.

        Args:
          folder: folder for a few small files.
          hosts: names besides `head`, at most 10 characters each.
          aliases: additional names by host, of any length.
        """
        self.folder = folder
        self.hosts = tuple(hosts)
        self.addresses = {name: f"{_SUBNET}.{number}" for number, name in enumerate((HEAD, *hosts), 1)}
        self._aliases = aliases or {}
        self._tag = f"convoy-{uuid.uuid4().hex[:8]}"
        self._hosts_file = folder / "hosts"

    def __enter__(self) -> "Network":
        """Creates the network."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost"]
        lines += [" ".join([address, name, *self._aliases.get(name, ())]) for name, address in self.addresses.items()]
        self._hosts_file.write_text("\n".join(lines) + "\n")
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kills all processes on the hosts and removes the network."""
        for name in self.addresses:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.kill_all(name)
                _run("ip", "netns", "delete", self.namespace(name))

    def namespace(self, host: str) -> str:
        """Returns the name of a host's network namespace."""
        return f"{self._tag}-{host}"

    def command(self, host: str, *command: object) -> list[str]:
        """Returns the command line that runs `command` on a host, by `exec` in the started process."""
        enter = f'hostname {host} && mount --bind "$0" /etc/hosts && exec "$@"'
        return [
            *("nsenter", f"--net=/run/netns/{self.namespace(host)}"),
            *("unshare", "--uts", "--mount", "sh", "-c", enter, str(self._hosts_file)),
            *map(str, command),
        ]

    def unplug(self, host: str) -> None:
        """Disconnects a host: packets to and from it are lost silently."""
        _run("ip", "-n", self.namespace(HEAD), "link", "set", "dev", _port(host), "nomaster", "down")

    def plug_in(self, host: str) -> None:
        """Reconnects a host."""
        _run("ip", "-n", self.namespace(HEAD), "link", "set", "dev", _port(host), "master", "switch", "up")

    def add_second(self) -> dict[str, str]:
        """Adds an interface eth1 to every host, on a second network; returns its addresses by host."""
        head = self.namespace(HEAD)
        _run("ip", "-n", head, "link", "add", "switch2", "type", "bridge")
        _run("ip", "-n", head, "link", "set", "switch2", "up")
        addresses = {name: f"{_SECOND_SUBNET}.{number}" for number, name in enumerate(self.hosts, 2)}
        for name, address in addresses.items():
            self._connect(name, "eth1", f"{address}/24", f"{_port(name)}2", "switch2")
        return addresses

    def drop(self, host: str, port: int) -> None:
        """Makes a host's firewall drop incoming packets for a port."""
        rule = f"INPUT -p tcp --dport {port} -j DROP".split()
        _run("nsenter", f"--net=/run/netns/{self.namespace(host)}", "iptables", "-I", *rule)

    def received(self, host: str, interface: str) -> int:
        """Returns the bytes received on a host's interface."""
        for line in _run(*self.command(host, "cat", "/proc/net/dev")).splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == interface:
                return int(counts.split()[0])
        raise AssertionError(f"{host} has no {interface}")

    def processes(self, host: str) -> list[int]:
        """Returns the processes that run on a host."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.namespace(host)).split()]

    def kill_all(self, host: str) -> None:
        """Kills all processes on a host; returns when they have ended."""
        deadline = time.monotonic() + _GONE_SECONDS
        while pids := [pid for pid in self.processes(host) if not is_gone(pid)]:
            assert time.monotonic() < deadline, f"processes {pids} on {host} survive SIGKILL"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _make(self) -> None:
        for name in self.addresses:
            _run("ip", "netns", "add", self.namespace(name))
            _run("ip", "-n", self.namespace(name), "link", "set", "lo", "up")
        head = self.namespace(HEAD)
        _run("ip", "-n", head, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", head, "address", "add", f"{self.addresses[HEAD]}/24", "dev", "switch")
        _run("ip", "-n", head, "link", "set", "switch", "up")
        for name in self.hosts:
            self._connect(name, "eth0", f"{self.addresses[name]}/24", _port(name), "switch")

    def _connect(self, host: str, interface: str, address: str, port: str, switch: str) -> None:
        head, own = self.namespace(HEAD), self.namespace(host)
        _run(*f"ip -n {head} link add name {port} type veth peer name {interface} netns {own}".split())
        _run("ip", "-n", head, "link", "set", "dev", port, "master", switch, "up")
        _run("ip", "-n", own, "address", "add", address, "dev", interface)
        _run("ip", "-n", own, "link", "set", interface, "up")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def _port(host: str) -> str:
    return f"to-{host}"  # the interface on the switch
