"""Which hosts take part in an attempt, and how their workers are started.

All hosts of the file are connected to at once. Those that answer train, if they are enough (`--min_hosts`) and their
devices divide the run's virtual replicas; a host that comes back is taken in again by the next restart.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from convoy import __version__
from convoy.core.devices import parse_devices
from convoy.core.errors import DataError, UsageError
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.ssh.choice import chosen_hosts
from convoy.launch.ssh.connection import Connection
from convoy.launch.ssh.hosts import Host
from convoy.launch.ssh.refusals import Problem, Remote
from convoy.launch.ssh.remote_workers import Member, RemoteWorkers, close_all
from convoy.launch.supervisor import StartError
from convoy.launch.trainer_command import flag_value, trainer_environment, trains

_PASSED_ON = ("NCCL_", "TF_", "XLA_", "CONVOY_", "OMP_")  # variables that begin so, and PYTHONPATH
_KEPT_HERE = ("TF_CONFIG",)
_OF_AGENTS = ("PYTHONPATH", "PYTHONSAFEPATH")  # which Convoy `python -m` finds there
_TICK_SECONDS = 0.02


@dataclass
class Starter:
    """Starts attempts, and remembers of one what the next must know.

    Attributes:
      hosts: of the file, in its order.
      hosts_file: its name.
      min_hosts: with as few as these a run goes on; all where None.
      remote: how hosts are reached.
      command: `train` and its flags.
      program: the whole of it, as it is run on the hosts.
      run_files: RUN.
      grace_seconds: between SIGTERM and SIGKILL.
      silent_seconds: after which launcher and agents give each other up.
      screen: for what a person should know.
      is_asked_to_end: whether to give up connecting.
    """

    hosts: Sequence[Host]
    hosts_file: str
    min_hosts: int | None
    remote: Remote
    command: Sequence[str]
    program: Sequence[str]
    run_files: RunFiles
    grace_seconds: float
    silent_seconds: float
    screen: Screen
    is_asked_to_end: Callable[[], bool]
    _used_ports: dict[Host, set[int]] = field(default_factory=dict)
    _has_said_hosts: bool = False
    _gang: RemoteWorkers | None = None  # of the attempt before
    _members: Sequence[Host] = ()  # of the attempt before; the chief's is the first

    @property
    def lease_seconds(self) -> float:
        """For how long workers may live on where nobody answers: till their agent notices, and then saving."""
        return self.silent_seconds + self.grace_seconds

    def start(self, files: AttemptFiles) -> RemoteWorkers:
        """Starts the workers of an attempt on the hosts that answer; see `convoy.launch.supervisor.Supervisor`."""
        if not self._has_said_hosts:
            self._has_said_hosts = True
            self.screen.say(f"convoy: connecting to {', '.join(map(str, self.hosts))}.")
        connections: list[Connection] = []
        try:
            problems = self._connect(connections, files)
            answering = [connection for connection in connections if connection.host not in problems]
            self._check(answering, problems)
            chosen = self._chosen(answering, problems)
            close_all([connection for connection in connections if connection not in chosen])
            self._say_who(files, [connection.host for connection in chosen], answering, problems)
            gang = RemoteWorkers(self._ordered(chosen, files))
        except BaseException:
            close_all(connections)
            raise
        self._gang, self._members = gang, [connection.host for connection in chosen]
        return gang

    def _connect(self, connections: list[Connection], files: AttemptFiles) -> dict[Host, Problem]:
        """Fills `connections`, one a host, and returns what is wrong with those that cannot take part."""
        token, token_file = secrets.token_hex(16), files.folder / "shared-folder.token"
        environment = trainer_environment()
        variables = {name: environment[name] for name in _OF_AGENTS if name in environment}
        try:
            token_file.write_text(token, encoding="ascii")
        except OSError as error:
            text = f"{token_file}: cannot be written ({error.strerror})."
            if self._members:  # a file server that fails over, for example
                raise StartError(text) from None
            raise DataError(f"{text} Give a --workdir that can, or free some space.") from None
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
        told: set[Host] = set()
        while True:
            for connection in connections:
                connection.poll()
            if all(connection.is_decided for connection in connections):
                return
            if self.is_asked_to_end():
                raise StartError("asked to end.")
            for connection in connections:
                if connection.waits and connection.host not in told:
                    told.add(connection.host)
                    self.screen.say(f"convoy: host {connection.host} still ends the workers it had before. Waiting.")
            self.screen.pump()
            time.sleep(_TICK_SECONDS)

    def _problem(self, connection: Connection) -> Problem | None:
        host, hello = connection.host, connection.hello
        if connection.problem or hello is None:
            return connection.problem
        if hello["version"] != __version__:
            return Problem(
                f"host {host} has Convoy {hello['version']} in {self.remote.python}, and this machine {__version__}. "
                "Install the same version on both",
                stays=True,
            )
        if not hello["sees_run"]:
            return Problem(
                f"host {host} does not see --workdir={flag_value(self.command, 'workdir')} ({self.run_files.path}) of "
                "this machine. Give a folder that all hosts share under the same path",
                stays=True,
            )
        return Problem(f"host {host}: {hello['problem']}", stays=True) if hello["problem"] else None

    def _check(self, answering: Sequence[Connection], problems: Mapping[Host, Problem]) -> None:
        """Raises where these hosts cannot start, or not now."""
        lasting = [problem.text for problem in problems.values() if problem.stays]
        if lasting and not self._members:  # somebody still sits there
            raise UsageError(".\nconvoy: ".join(lasting) + ".")
        texts = "; ".join(problem.text for problem in problems.values())
        least = self._least()
        if len(answering) < least:
            hint = ""
            if self.min_hosts and least > self.min_hosts:
                hint = " A run's first start wants all hosts."
            elif self._virtual_replicas() and len(self.hosts) > 1 and not self.min_hosts:
                hint = " With --min_hosts it could go on without."
            raise StartError(f"{texts}.{hint}")
        if self._chief_may_still_save(problems):
            raise StartError(
                f"{texts}. Worker 0 ran there and may still save: it ends by itself within "
                f"{self.lease_seconds:.0f} s ({self.silent_seconds:.0f} s and --grace_seconds)."
            )

    def _chief_may_still_save(self, problems: Mapping[Host, Problem]) -> bool:
        """Returns whether worker 0 may run on a host that only the network has cut off: RUN takes one chief."""
        if not self._gang or self._members[0] not in problems or self._members[0] not in self._gang.lost:
            return False
        return time.monotonic() < self._gang.lost[self._members[0]] + self.lease_seconds

    def _least(self) -> int:
        return (self.min_hosts if self._virtual_replicas() else None) or len(self.hosts)

    def _chosen(self, answering: Sequence[Connection], problems: Mapping[Host, Problem]) -> list[Connection]:
        virtual_replicas = self._virtual_replicas()
        if not virtual_replicas:
            return list(answering)
        devices = [self._devices(connection) for connection in answering]
        places = chosen_hosts(devices, virtual_replicas=virtual_replicas, least=self._least())
        if places is not None:
            return [answering[place] for place in places]
        each = ", ".join(f"{connection.host} {count}" for connection, count in zip(answering, devices, strict=True))
        text = (
            f"the hosts that answer have R={sum(devices)} devices ({each}), and neither R nor that of any "
            f"{_count(self._least(), 'host')} or more of them divides the run's V={virtual_replicas} virtual replicas. "
            f"Change slots in {self.hosts_file}, --devices or --min_hosts so that it does."
        )
        if problems:
            raise StartError(f"{'; '.join(problem.text for problem in problems.values())}; {text}")
        raise UsageError(text)

    def _virtual_replicas(self) -> int | None:
        """Returns V of the run in RUN, or None where it has not begun, or where nothing will be trained."""
        if not trains(self.command) or self.run_files.checkpoint_step() is None:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self.run_files.path / "config.json").read_bytes())["virtual_replicas"]) or None
        return None

    def _devices(self, connection: Connection) -> int:
        devices = parse_devices(flag_value(self.command, "devices") or "auto")
        slots = connection.host.slots
        if devices.kind == "cpu":
            return slots * devices.count
        return slots * (len(devices.gpus) or len(connection.hello["gpus"]) // slots or 1)

    def _say_who(
        self,
        files: AttemptFiles,
        chosen: Sequence[Host],
        answering: Sequence[Connection],
        problems: Mapping[Host, Problem],
    ) -> None:
        virtual_replicas = self._virtual_replicas()
        total = sum(self._devices(connection) for connection in answering if connection.host in chosen)
        for problem in problems.values():
            self.screen.say(f"convoy: left out: {problem.text}.")
        for connection in answering:
            if connection.host not in chosen:
                self.screen.say(
                    f"convoy: left out: host {connection.host}, since with it the number of devices would not divide "
                    f"V={virtual_replicas}."
                )
        for host in chosen:
            if self._members and host not in self._members:
                self.screen.say(f"convoy: host {host} is back.")
        places = ", ".join(_place(connection) for connection in answering if connection.host in chosen)
        replicas = f": R={total} for V={virtual_replicas} virtual replicas" if virtual_replicas else ""
        workers = _count(sum(host.slots for host in chosen), "worker")
        self.screen.say(f"convoy: attempt {files.number}: {workers} on {places}{replicas}.")

    def _ordered(self, chosen: Sequence[Connection], files: AttemptFiles) -> list[Member]:
        """Orders the start of the workers; returns where they are."""
        addresses = [f"{connection.host.address}:{port}" for connection in chosen for port in connection.hello["ports"]]
        variables = {
            name: value
            for name, value in os.environ.items()
            if (name.startswith(_PASSED_ON) or name == "PYTHONPATH") and name not in _KEPT_HERE
        }
        members: list[Member] = []
        for connection in chosen:
            ports = connection.hello["ports"]
            # So that a worker of an attempt before could never be taken for a new one.
            self._used_ports.setdefault(connection.host, set()).update(ports)
            first = sum(len(member.ranks) for member in members)
            ranks = list(range(first, first + connection.host.slots))
            workers = [
                {"rank": rank, "log": str(files.log(rank)), "variables": _worker_variables(files, rank, addresses)}
                for rank in ranks
            ]
            connection.send({"start": {"command": self.program, "variables": variables, "workers": workers}})
            members.append(Member(connection, ranks))
        return members


def _worker_variables(files: AttemptFiles, rank: int, addresses: Sequence[str]) -> dict[str, str]:
    variables = {"CONVOY_ATTEMPT": str(files.number), "CONVOY_ERROR_FILE": str(files.error_file(rank))}
    if len(addresses) > 1:
        task = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
        variables["TF_CONFIG"] = json.dumps(task)
    return variables


def _place(connection: Connection) -> str:
    """Returns a host's name in the file, what it calls itself where that differs, and how many workers it has."""
    host, own_name = connection.host, connection.hello["hostname"]
    insights = [own_name] if own_name.split(".")[0] != host.name.split(".")[0] else []
    insights += [_count(host.slots, "worker")] if host.slots > 1 else []
    return f"{host} ({', '.join(insights)})" if insights else str(host)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
