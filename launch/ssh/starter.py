"""Connects to the hosts of the file and chooses the ones that take part in an attempt.

All hosts of the file are contacted at once. The responding ones train if there are enough of them (`--min_hosts`) and
their devices divide the run's virtual replicas. A host that comes back joins at the next restart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.core.devices import parse_devices
from convoy.core.errors import UsageError
from convoy.core.text import counted
from convoy.launch.agents.connection import Connection, Host, Problem, close_all
from convoy.launch.agents.starter import Starter
from convoy.launch.run_files import AttemptFiles
from convoy.launch.ssh.choice import chosen_hosts
from convoy.launch.ssh.connection import SshConnection
from convoy.launch.ssh.hosts import Host as SshHost
from convoy.launch.ssh.refusals import Remote
from convoy.launch.supervisor import StartError
from convoy.launch.trainer_command import flag_value


@dataclass(kw_only=True)
class SshStarter(Starter):
    """Starts attempts on the hosts of a file.

    Attributes:
      hosts: hosts in the order of the file.
      hosts_file: name of the file, for messages.
      min_hosts: number of hosts with which a run may continue; None for all.
      remote: how hosts are reached.
    """

    hosts: Sequence[SshHost]
    hosts_file: str
    min_hosts: int | None
    remote: Remote
    _has_printed_hosts: bool = False

    def _connect(self, files: AttemptFiles, connections: list[Connection]) -> list[Connection]:
        if not self._has_printed_hosts:
            self._has_printed_hosts = True
            self.screen.say(f"convoy: connecting to {', '.join(map(str, self.hosts))}.")
        variables = self._agent_variables()

        def connect(index: int, hello: dict[str, Any]) -> SshConnection:
            return SshConnection(self.hosts[index], self.remote, hello, variables)

        try:
            problems = self._greet(self.hosts, connect, files, connections)
        except OSError as error:
            raise UsageError(f"`ssh` cannot be run ({error.strerror}). Install OpenSSH's client.") from None
        responding = [connection for connection in connections if connection.host not in problems]
        self._check(responding, problems)
        chosen = self._choose(responding, problems)
        close_all([connection for connection in connections if connection not in chosen])
        self._print_hosts(chosen, responding, problems)
        self._print_attempt(files, chosen, sum(map(self._devices, chosen)))
        return chosen

    def _check(self, responding: Sequence[Connection], problems: Mapping[Host, Problem]) -> None:
        """Raises if these hosts can never start, or cannot start now."""
        self._check_permanent(problems)
        texts = "; ".join(problem.text for problem in problems.values())
        least = self._least()
        if len(responding) < least:
            hint = ""
            if self.min_hosts and least > self.min_hosts:
                hint = " The first start of a run needs all hosts."
            elif self._virtual_replicas() and len(self.hosts) > 1 and not self.min_hosts:
                hint = " Pass --min_hosts to continue without missing hosts."
            raise StartError(f"{texts}.{hint}")
        self._check_chief([connection.host for connection in responding], why=f"{texts}. ")

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

    def _devices(self, connection: Connection) -> int:
        devices = parse_devices(flag_value(self.command, "devices") or "auto")
        slots = connection.host.slots
        if devices.kind == "cpu":
            return slots * devices.count
        return slots * (len(devices.gpus) or len(connection.answer["gpus"]) // slots or 1)

    def _print_hosts(
        self, chosen: Sequence[Connection], responding: Sequence[Connection], problems: Mapping[Host, Problem]
    ) -> None:
        for problem in problems.values():
            self.screen.say(f"convoy: left out: {problem.text}.")
        for connection in responding:
            if connection not in chosen:
                self.screen.say(
                    f"convoy: left out: host {connection.host}: with it the number of devices would not divide "
                    f"V={self._virtual_replicas()}."
                )
        for connection in chosen:
            if self._members and connection.host not in self._members:
                self.screen.say(f"convoy: host {connection.host} is back.")
