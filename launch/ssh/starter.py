"""Connects to the hosts, chooses the ones that take part in an attempt, and starts their workers.

All hosts of the file are contacted at once. The responding ones train if there are enough of them (`--min_hosts`) and
their devices divide the run's virtual replicas. A host that comes back joins at the next restart.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from convoy import __version__
from convoy.core.devices import parse_devices
from convoy.core.errors import DataError, UsageError
from convoy.core.reading import read_json
from convoy.core.text import counted
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.ssh.choice import chosen_hosts
from convoy.launch.ssh.connection import Connection
from convoy.launch.ssh.hosts import Host
from convoy.launch.ssh.refusals import Problem, Remote
from convoy.launch.ssh.remote_workers import Member, RemoteWorkers, close_all
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


@dataclass
class Starter:
    """Starts attempts, and keeps the state that the next attempt needs.

    Attributes:
      hosts: hosts in the order of the file.
      hosts_file: name of the file, for messages.
      min_hosts: number of hosts with which a run may continue; None for all.
      remote: how hosts are reached.
      command: `train` and its flags.
      program: the full command line on the hosts.
      variables: environment variables for the workers, in addition to those of this process that are passed on.
      run_files: the run directory.
      grace_seconds: seconds between SIGTERM and SIGKILL.
      silent_seconds: seconds without a message after which launcher and agents consider each other gone.
      screen: terminal output.
      is_asked_to_end: whether to stop connecting.
    """

    hosts: Sequence[Host]
    hosts_file: str
    min_hosts: int | None
    remote: Remote
    command: Sequence[str]
    program: Sequence[str]
    variables: Mapping[str, str]
    run_files: RunFiles
    grace_seconds: float
    silent_seconds: float
    screen: Screen
    is_asked_to_end: Callable[[], bool]
    _key: dict[str, str] = field(default_factory=key_variable, repr=False)
    _used_ports: dict[Host, set[int]] = field(default_factory=dict)
    _has_printed_hosts: bool = False
    _workers: RemoteWorkers | None = None  # of the previous attempt
    _members: Sequence[Host] = ()  # hosts of the previous attempt; the first has the chief

    @property
    def lease_seconds(self) -> float:
        """The longest time that workers survive on an unreachable host: until their agent notices, plus saving."""
        return self.silent_seconds + self.grace_seconds

    def start(self, files: AttemptFiles) -> RemoteWorkers:
        """Starts the workers of an attempt on the responding hosts; see `convoy.launch.supervisor.Supervisor`."""
        if not self._has_printed_hosts:
            self._has_printed_hosts = True
            self.screen.say(f"convoy: connecting to {', '.join(map(str, self.hosts))}.")
        connections: list[Connection] = []
        try:
            problems = self._connect(connections, files)
            responding = [connection for connection in connections if connection.host not in problems]
            self._check(responding, problems)
            chosen = self._choose(responding, problems)
            close_all([connection for connection in connections if connection not in chosen])
            self._print_hosts(files, chosen, responding, problems)
            workers = RemoteWorkers(self._start_workers(chosen, files))
        except BaseException:
            close_all(connections)
            raise
        self._workers, self._members = workers, [connection.host for connection in chosen]
        return workers

    def _connect(self, connections: list[Connection], files: AttemptFiles) -> dict[Host, Problem]:
        """Appends one connection per host to `connections`; returns the problems of hosts that cannot take part."""
        token, token_file = secrets.token_hex(16), files.folder / "shared-folder.token"
        environment = trainer_environment()
        variables = {name: environment[name] for name in _AGENT_VARIABLES if name in environment}
        try:
            token_file.write_text(token, encoding="ascii")
        except OSError as error:
            text = f"{token_file}: cannot be written ({error.strerror})."
            if self._members:  # may be temporary, such as a file server's failover
                raise StartError(text) from None
            raise DataError(f"{text} Pass a writable --workdir, or free some space.") from None
        try:
            for host in self.hosts:
                hello = {
                    "version": __version__,
                    "name": str(host),
                    "run": str(self.run_files.path),
                    "token_file": str(token_file),
                    "token": token,
                    "slots": host.slots,
                    "command": list(self.command),
                    "avoid_ports": sorted(self._used_ports.get(host, ())),
                    "silent_seconds": self.silent_seconds,
                    "grace_seconds": self.grace_seconds,
                }
                connections.append(Connection(host, self.remote, hello, variables))
            self._wait_for_answers(connections)
        except OSError as error:
            raise UsageError(f"`ssh` cannot be run ({error.strerror}). Install OpenSSH's client.") from None
        finally:
            token_file.unlink(missing_ok=True)
        found = {connection.host: self._problem(connection) for connection in connections}
        return {host: problem for host, problem in found.items() if problem}

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
                f"host {host} has Convoy {hello['version']} in {self.remote.python}, this host has {__version__}. "
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

    def _check(self, responding: Sequence[Connection], problems: Mapping[Host, Problem]) -> None:
        """Raises if these hosts can never start, or cannot start now."""
        permanent = [problem.text for problem in problems.values() if problem.is_permanent]
        if permanent and not self._members:  # at the first start the user is still there to fix it
            raise UsageError(".\nconvoy: ".join(permanent) + ".")
        texts = "; ".join(problem.text for problem in problems.values())
        least = self._least()
        if len(responding) < least:
            hint = ""
            if self.min_hosts and least > self.min_hosts:
                hint = " The first start of a run needs all hosts."
            elif self._virtual_replicas() and len(self.hosts) > 1 and not self.min_hosts:
                hint = " Pass --min_hosts to continue without missing hosts."
            raise StartError(f"{texts}.{hint}")
        if self._chief_may_still_save(problems):
            raise StartError(
                f"{texts}. Worker 0 ran there and may still save: it exits within {self.lease_seconds:.0f} s "
                f"({self.silent_seconds:.0f} s + --grace_seconds={self.grace_seconds:g})."
            )

    def _chief_may_still_save(self, problems: Mapping[Host, Problem]) -> bool:
        """Returns whether worker 0 may still run on an unreachable host. RUN must never have two chiefs."""
        if not self._workers or self._members[0] not in problems or self._members[0] not in self._workers.lost:
            return False
        return time.monotonic() < self._workers.lost[self._members[0]] + self.lease_seconds

    def _least(self) -> int:
        return (self.min_hosts if self._virtual_replicas() else None) or len(self.hosts)

    def _choose(self, responding: Sequence[Connection], problems: Mapping[Host, Problem]) -> list[Connection]:
        virtual_replicas = self._virtual_replicas()
        if not virtual_replicas:
            return list(responding)
        devices = [self._devices(connection) for connection in responding]
        indices = chosen_hosts(devices, virtual_replicas=virtual_replicas, least=self._least())
        if indices is not None:
            return [responding[index] for index in indices]
        counts = ", ".join(f"{connection.host} {count}" for connection, count in zip(responding, devices, strict=True))
        text = (
            f"the responding hosts have R={counted(sum(devices), 'device')} ({counts}): no choice of at least "
            f"{counted(self._least(), 'host')} has a number that divides the run's V={virtual_replicas} virtual "
            f"replicas. Change slots in {self.hosts_file}, --devices or --min_hosts, or the run's --virtual_replicas."
        )
        if problems:
            raise StartError(f"{'; '.join(problem.text for problem in problems.values())}; {text}")
        raise UsageError(text)

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

    def _devices(self, connection: Connection) -> int:
        devices = parse_devices(flag_value(self.command, "devices") or "auto")
        slots = connection.host.slots
        if devices.kind == "cpu":
            return slots * devices.count
        return slots * (len(devices.gpus) or len(connection.answer["gpus"]) // slots or 1)

    def _print_hosts(
        self,
        files: AttemptFiles,
        chosen: Sequence[Connection],
        responding: Sequence[Connection],
        problems: Mapping[Host, Problem],
    ) -> None:
        virtual_replicas = self._virtual_replicas()
        for problem in problems.values():
            self.screen.say(f"convoy: left out: {problem.text}.")
        for connection in responding:
            if connection not in chosen:
                self.screen.say(
                    f"convoy: left out: host {connection.host}: with it the number of devices would not divide "
                    f"V={virtual_replicas}."
                )
        for connection in chosen:
            if self._members and connection.host not in self._members:
                self.screen.say(f"convoy: host {connection.host} is back.")
        names = ", ".join(map(_describe, chosen))
        total = sum(map(self._devices, chosen))
        replicas = f": R={total} for V={virtual_replicas} virtual replicas" if virtual_replicas else ""
        workers = counted(sum(connection.host.slots for connection in chosen), "worker")
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
            ports = connection.answer["ports"]
            # Never reused, so that no worker connects to one of an earlier attempt.
            self._used_ports.setdefault(connection.host, set()).update(ports)
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
            connection.send({"start": {"command": self.program, "variables": variables, "workers": workers}})
            members.append(Member(connection, ranks))
        return members


def _describe(connection: Connection) -> str:
    """Returns the host as named in the file, with its hostname if that differs and its number of workers if not 1."""
    host, hostname = connection.host, connection.answer["hostname"]
    details = [hostname] if hostname.split(".")[0] != host.name.split(".")[0] else []
    details += [counted(host.slots, "worker")] if host.slots > 1 else []
    return f"{host} ({', '.join(details)})" if details else str(host)
