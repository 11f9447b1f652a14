"""Starts the workers of an attempt through agents; the engines choose the hosts and connect to them."""

import contextlib
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy import __version__
from convoy.core.errors import DataError, UsageError
from convoy.core.reading import read_json
from convoy.core.text import counted
from convoy.launch.agents.connection import Connection, Host, Problem, close_all
from convoy.launch.agents.remote_workers import Member, RemoteWorkers
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import StartError
from convoy.launch.trainer_command import (
    cluster_variables,
    flag_value,
    integer_or_none,
    key_variable,
    trainer_environment,
    trains,
)

# Variables for workers, by the start of their name. The agent drops TF_CONFIG.
_FORWARDED = ("NCCL_", "TF_", "XLA_", "CONVOY_", "OMP_", "PYTHONPATH")
_AGENT_VARIABLES = ("PYTHONPATH", "PYTHONSAFEPATH")  # they decide which Convoy `python -m` imports
_TICK_SECONDS = 0.02


@dataclass(kw_only=True)
class Starter(ABC):
    """Starts attempts, and keeps the state that the next attempt needs.

    Attributes:
      command: `train` and its flags.
      trainer: program that runs `command`; empty for the Convoy of the agents.
      variables: environment variables for the workers, in addition to those of this process that are passed on.
      run_files: the run directory.
      grace_seconds: seconds between SIGTERM and SIGKILL.
      silent_seconds: seconds without a message after which launcher and agents consider each other gone.
      screen: terminal output.
      is_asked_to_end: whether to stop connecting.
    """

    command: Sequence[str]
    trainer: Sequence[str] = ()
    variables: Mapping[str, str]
    run_files: RunFiles
    grace_seconds: float
    silent_seconds: float
    screen: Screen
    is_asked_to_end: Callable[[], bool]
    _key: dict[str, str] = field(default_factory=key_variable, repr=False)
    _used_ports: dict[str, set[int]] = field(default_factory=dict)  # by address
    _workers: RemoteWorkers | None = None  # of the previous attempt
    _members: Sequence[Host] = ()  # hosts of the previous attempt; the first has the chief

    @property
    def lease_seconds(self) -> float:
        """The longest time that workers survive on an unreachable host: until their agent notices, plus saving."""
        return self.silent_seconds + self.grace_seconds

    def start(self, files: AttemptFiles) -> RemoteWorkers:
        """Starts the workers of an attempt; see `convoy.launch.supervisor.Supervisor`."""
        connections: list[Connection] = []
        try:
            chosen = self._connect(files, connections)
            workers = RemoteWorkers(self._start_workers(chosen, files))
        except BaseException:
            close_all(connections)
            raise
        self._workers, self._members = workers, [connection.host for connection in chosen]
        return workers

    @abstractmethod
    def _connect(self, files: AttemptFiles, connections: list[Connection]) -> list[Connection]:
        """Returns the connections to the hosts that train, in the order of their ranks.

        Args:
          files: files of the attempt.
          connections: gets all connections that are made; the caller closes them if this fails.

        Raises:
          StartError: not now, but perhaps later.
          UsageError: never.
        """

    def _agent_variables(self) -> dict[str, str]:
        environment = trainer_environment()
        return {name: environment[name] for name in _AGENT_VARIABLES if name in environment}

    def _greet(
        self,
        hosts: Sequence[Host],
        connect: Callable[[int, dict[str, Any]], Connection],
        files: AttemptFiles,
        connections: list[Connection],
    ) -> dict[Host, Problem]:
        """Connects to hosts and waits for their answers.

        Args:
          hosts: hosts to connect to.
          connect: connects to the host of an index, with the content of the first order.
          files: files of the attempt.
          connections: gets the connections.

        Returns:
          The problems of the hosts that cannot take part.
        """
        token, token_file = secrets.token_hex(16), files.folder / "shared-folder.token"
        try:
            token_file.write_text(token, encoding="ascii")
        except OSError as error:
            text = f"{token_file}: cannot be written ({error.strerror})."
            if self._members:  # may be temporary, such as a file server's failover
                raise StartError(text) from None
            raise DataError(f"{text} Pass a writable --workdir, or free some space.") from None
        try:
            for index, host in enumerate(hosts):
                connections.append(connect(index, self._hello(host, token, token_file)))
            self._wait_for_answers(connections)
        finally:
            token_file.unlink(missing_ok=True)
        found = {connection.host: self._problem(connection) for connection in connections}
        return {host: problem for host, problem in found.items() if problem}

    def _hello(self, host: Host, token: str, token_file: Path) -> dict[str, Any]:
        return {
            "version": __version__,
            "name": host.name_of_lock,
            "run": str(self.run_files.path),
            "token_file": str(token_file),
            "token": token,
            "slots": host.slots,
            "command": list(self.command),
            "avoid_ports": sorted(self._used_ports.get(host.address, ())),
            "silent_seconds": self.silent_seconds,
            "grace_seconds": self.grace_seconds,
        }

    def _wait_for_answers(self, connections: Sequence[Connection]) -> None:
        reported: set[Host] = set()
        while True:
            for connection in connections:
                connection.poll()
            if all(connection.is_decided for connection in connections):
                return
            if self.is_asked_to_end():
                raise StartError("asked to end.")
            for connection in connections:
                if connection.waits and connection.host not in reported:
                    reported.add(connection.host)
                    self.screen.say(f"convoy: host {connection.host}: waiting for workers of an earlier attempt.")
            self.screen.pump()
            time.sleep(_TICK_SECONDS)

    def _problem(self, connection: Connection) -> Problem | None:
        host, hello = connection.host, connection.hello
        if connection.problem or hello is None:
            return connection.problem
        if hello["version"] != __version__:
            return Problem(
                f"host {host} has Convoy {hello['version']} in {hello['python']}, this host has {__version__}. "
                "Install the same version on both",
                is_permanent=True,
            )
        if not hello["sees_run"]:
            return Problem(
                f"host {host} does not share --workdir={flag_value(self.command, 'workdir')} ({self.run_files.path}) "
                "with this host. Pass a folder that all hosts share under the same path",
                is_permanent=True,
            )
        return Problem(f"host {host}: {hello['problem']}", is_permanent=True) if hello["problem"] else None

    def _check_permanent(self, problems: Mapping[Host, Problem]) -> None:
        """Raises if hosts can never start."""
        permanent = [problem.text for problem in problems.values() if problem.is_permanent]
        if permanent and not self._members:  # at the first start the user is still there to fix it
            raise UsageError(".\nconvoy: ".join(permanent) + ".")

    def _check_chief(self, responding: Sequence[Host], why: str) -> None:
        """Raises while worker 0 may still run on a host that is out of reach. RUN must never have two chiefs.

        Args:
          responding: hosts whose agents have answered; these have waited for earlier workers.
          why: why others do not respond, for the message; may be empty.
        """
        lost = self._workers.lost if self._workers else {}
        if not lost or self._members[0] in responding or self._members[0] not in lost:
            return
        if time.monotonic() < lost[self._members[0]] + self.lease_seconds:
            raise StartError(
                f"{why}Worker 0 ran on host {self._members[0]} and may still save: it exits within "
                f"{self.lease_seconds:.0f} s ({self.silent_seconds:.0f} s + --grace_seconds={self.grace_seconds:g})."
            )

    def _virtual_replicas(self) -> int | None:
        """Returns the virtual replicas that the run in RUN resumes with.

        None if it has not started or the command does not train.
        """
        if not trains(self.command) or self.run_files.checkpoint_step() is None:
            return None
        if number := integer_or_none(flag_value(self.command, "virtual_replicas")):
            return number
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(read_json(self.run_files.path / "config.json")["virtual_replicas"]) or None
        return None

    def _print_attempt(self, files: AttemptFiles, chosen: Sequence[Connection], devices: int) -> None:
        """Prints which hosts train. `devices`: number of devices of all of them."""
        virtual_replicas = self._virtual_replicas()
        replicas = f": R={devices} for V={virtual_replicas} virtual replicas" if virtual_replicas else ""
        workers = counted(sum(connection.host.slots for connection in chosen), "worker")
        names = ", ".join(map(_describe, chosen))
        self.screen.say(f"convoy: attempt {files.number}: {workers} on {names}{replicas}.")

    def _start_workers(self, chosen: Sequence[Connection], files: AttemptFiles) -> list[Member]:
        """Sends the start orders; returns the hosts with the ranks of their workers."""
        addresses = [
            f"{connection.host.address}:{port}" for connection in chosen for port in connection.answer["ports"]
        ]
        variables = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
        variables |= {**self.variables, **self._key}
        members: list[Member] = []
        for connection in chosen:
            # Never reused, so that no worker connects to one of an earlier attempt.
            self._used_ports.setdefault(connection.host.address, set()).update(connection.answer["ports"])
            first = sum(len(member.ranks) for member in members)
            ranks = list(range(first, first + connection.host.slots))
            workers = [
                {
                    "rank": rank,
                    "log": str(files.log(rank)),
                    "variables": files.variables(rank) | cluster_variables(addresses, rank),
                }
                for rank in ranks
            ]
            program = [*(self.trainer or (connection.answer["python"], "-m", "convoy")), *self.command]
            connection.send({"start": {"command": program, "variables": variables, "workers": workers}})
            members.append(Member(connection, ranks))
        return members


def _describe(connection: Connection) -> str:
    """Returns the host with its hostname if that differs from its name and its number of workers if not 1."""
    host, hostname = connection.host, connection.answer["hostname"]
    details = [hostname] if hostname.split(".")[0] != host.name.split(".")[0] else []
    details += [counted(host.slots, "worker")] if host.slots > 1 else []
    return f"{host} ({', '.join(details)})" if details else str(host)
