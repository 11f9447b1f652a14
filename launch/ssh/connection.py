"""One host's ssh client, and what its agent says.

connection = Connection(host, remote, hello={...})
for message in connection.poll():       # never waits
    ...
connection.hello, connection.problem    # one of them, sooner or later
connection.close()
"""

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from convoy.launch.ssh.hosts import Host
from convoy.launch.ssh.messages import Messages
from convoy.launch.ssh.refusals import NO_FOLDER, Problem, Remote, last_words, problem_of

# Host keys are checked as ssh's config says; with BatchMode an unknown one is refused where a person would be asked.
_OPTIONS = (
    *("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
    # A connection of its own, whose end means what it says, nothing else on it, and no silence about what is wrong.
    *("ControlMaster=no", "ControlPath=none", "ClearAllForwardings=yes", "RequestTTY=no", "RemoteCommand=none"),
    "LogLevel=INFO",
)
_HELLO_SECONDS = 45.0  # for a server that accepts the connection and then says nothing
_BEAT_SECONDS = 1.0  # between looks at whether a sign of life is due
GOODBYE_SECONDS = 3.0
_LAST_BYTES = 2**13


class Connection:
    """A running ssh client with an agent at its other end.

    Attributes:
      host: it goes to.
      hello: the agent's answer, once it is there.
      problem: why the connection is of no use, or not any more; None while all is well.
      waits: whether the agent waits for one before it.
    """

    def __init__(self, host: Host, remote: Remote, hello: Mapping[str, Any], variables: Mapping[str, str]):
        """Starts the client.

        Args:
          host: to connect to.
          remote: where to run what.
          hello: the first order.
          variables: of the agent's environment.

        Raises:
          OSError: there is no ssh here.
        """
        self.host = host
        self.hello: dict[str, Any] | None = None
        self.problem: Problem | None = None
        self.waits = False
        self._remote = remote
        self._silent_seconds = hello["silent_seconds"]
        self._turn_seconds = hello["silent_seconds"] + hello["grace_seconds"]
        self._started = time.monotonic()
        self._greeting_bytes = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (ssh writes to it as long as it runs)
        self._client = subprocess.Popen(
            _command(host, remote, variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,  # Ctrl-C at a terminal is for the launcher alone
        )
        self._messages = Messages(self._client.stdout.fileno(), self._client.stdin.fileno())
        self._left = threading.Event()
        # Of its own: a file server that hangs may hold up the launcher, and no agent must then take it for dead.
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()
        self.send({"hello": hello})

    @property
    def is_decided(self) -> bool:
        """Whether the agent has answered, or never will."""
        return self.hello is not None or self.problem is not None

    def send(self, order: Mapping[str, Any]) -> None:
        """Sends an order."""
        self._messages.send(order)

    def poll(self) -> list[dict[str, Any]]:
        """Returns the agent's reports since the last call, and sees to it that it hears of this side."""
        if self.problem:
            return []
        has_ended = self._client.poll() is not None  # before the last words are read
        reports = self._messages.receive()
        for report in reports:
            if "hello" in report:
                self.hello = report["hello"]
                self._greeting_bytes = os.fstat(self._errors.fileno()).st_size  # a server's banner, for example
            self.waits = self.waits or "waits" in report
        if has_ended:
            self.problem = self._problem()
        elif self.hello and self._messages.silence > self._silent_seconds:
            self.problem = Problem(
                f"host {self.host} does not answer any more (ssh: nothing for {self._silent_seconds:.0f} s)"
            )
        elif not self.hello and self._age() > _HELLO_SECONDS + (self._turn_seconds if self.waits else 0):
            self.problem = Problem(f"host {self.host} does not answer (ssh: nothing for {_HELLO_SECONDS:.0f} s)")
        return reports

    def close(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Lets the agent go, which then ends what it has, and returns when the client has ended.

        Args:
          seconds: that the client has for it before it is killed.
        """
        self.leave()
        try:
            self._client.wait(seconds)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()
        self._client.stdout.close()
        self._errors.close()

    def leave(self) -> None:
        """Begins `close` without waiting."""
        self._left.set()
        self._beats.join()  # before the descriptor's number becomes another file's
        with contextlib.suppress(OSError):
            self._client.stdin.close()

    def _beat(self) -> None:
        while not self._left.wait(_BEAT_SECONDS):
            self._messages.beat()

    def _age(self) -> float:
        return time.monotonic() - self._started

    def _problem(self) -> Problem:
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._greeting_bytes, end - _LAST_BYTES))
        stderr = self._errors.read().decode(errors="replace")
        if not self.hello:
            return problem_of(self.host, self._client.returncode, stderr, self._remote)
        words = last_words(stderr)
        why = f"ssh: {words}" if words else "its agent was killed"
        return Problem(f"host {self.host} does not answer any more ({why})")


def _command(host: Host, remote: Remote, variables: Mapping[str, str]) -> list[str]:
    settings = [f"{name}={value}" for name, value in variables.items()]
    agent = shlex.join(["env", *settings, remote.python, "-m", "convoy.launch.ssh.agent"])
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
