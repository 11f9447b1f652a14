"""The ssh connection to one host's agent.

connection = SshConnection(host, remote, hello={...}, variables={...})
"""

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any

from convoy.launch.agents.connection import GOODBYE_SECONDS, Connection, Problem
from convoy.launch.agents.messages import Messages
from convoy.launch.ssh.hosts import Host
from convoy.launch.ssh.refusals import NO_FOLDER, Remote, last_line, problem_of

# Host keys are checked according to ssh's config; BatchMode rejects an unknown key instead of asking.
_OPTIONS = (
    *("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
    # An unshared connection: its end means that the host is gone. LogLevel makes ssh print the reason.
    *("ControlMaster=no", "ControlPath=none", "ClearAllForwardings=yes", "RequestTTY=no", "RemoteCommand=none"),
    "LogLevel=INFO",
)
_BEAT_SECONDS = 1.0  # interval of checks whether a heartbeat is due
_LAST_BYTES = 2**13


class SshConnection(Connection):
    """A running ssh client, connected to an agent."""

    carrier = "ssh"

    def __init__(self, host: Host, remote: Remote, hello: Mapping[str, Any], variables: Mapping[str, str]):
        """Starts the client.

        Args:
          host: host to connect to.
          remote: what to run there.
          hello: content of the first order.
          variables: environment variables for the agent.

        Raises:
          OSError: ssh cannot be run.
        """
        super().__init__(host, hello)
        self._ssh_host = host
        self._remote = remote
        self._greeting_bytes = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (ssh writes to it as long as it runs)
        self._client: subprocess.Popen[bytes] = subprocess.Popen(
            _command(host, remote, variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in a terminal must reach only the launcher
        )
        assert self._client.stdin and self._client.stdout
        self._stdin, self._stdout = self._client.stdin, self._client.stdout
        self._messages = Messages(self._stdout.fileno(), self._stdin.fileno())
        self._is_left = threading.Event()
        # A separate thread: a hanging file server may block the launcher, and agents must not take it for dead then.
        self._heartbeats = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._heartbeats.start()
        self.send({"hello": hello})

    def send(self, order: Mapping[str, Any]) -> None:
        """Sends an order."""
        self._messages.send(order)

    def close(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Disconnects; the agent then stops its workers. Returns when the ssh client has exited.

        Args:
          seconds: how long the client may take before it is killed.
        """
        self.leave()
        try:
            self._client.wait(seconds)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()
        self._stdout.close()
        self._errors.close()

    def leave(self) -> None:
        """Starts `close` without waiting."""
        self._is_left.set()
        self._heartbeats.join()  # before another file can get the same descriptor
        with contextlib.suppress(OSError):
            self._stdin.close()

    def _send_heartbeats(self) -> None:
        while not self._is_left.wait(_BEAT_SECONDS):
            self._messages.beat()

    def _has_ended(self) -> bool:
        return self._client.poll() is not None

    def _receive(self) -> list[dict[str, Any]]:
        reports = self._messages.receive()
        if any("hello" in report for report in reports):
            self._greeting_bytes = os.fstat(self._errors.fileno()).st_size  # such as a server's banner
        return reports

    def _silence(self) -> float:
        return self._messages.silence

    def _problem_of_end(self) -> Problem:
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._greeting_bytes, end - _LAST_BYTES))
        stderr = self._errors.read().decode(errors="replace")
        if not self.hello:
            return problem_of(self._ssh_host, self._client.returncode, stderr, self._remote)
        message = last_line(stderr)
        reason = f"ssh: {message}" if message else "its agent was killed"
        return Problem(f"host {self.host} stopped responding ({reason})")


def _command(host: Host, remote: Remote, variables: Mapping[str, str]) -> list[str]:
    settings = [f"{name}={value}" for name, value in variables.items()]
    agent = shlex.join(["env", *settings, remote.python, "-m", "convoy.launch.agents.agent"])
    return [
        "ssh",
        *(("-F", remote.ssh_config) if remote.ssh_config else ()),
        *(word for option in _OPTIONS for word in ("-o", option)),
        *(("-p", str(host.port)) if host.port else ()),
        *(("-l", host.user) if host.user else ()),
        "--",
        host.name,
        f"cd {shlex.quote(remote.folder)} || exit {NO_FOLDER}; exec {agent}",
    ]
