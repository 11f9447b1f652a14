"""The workers of one attempt on several hosts, with the interface of `convoy.launch.processes.WorkerProcesses`.

    workers = RemoteWorkers([Member(connection, ranks=[0]), Member(other_connection, ranks=[1, 2])])

When the connection to a host ends, its workers count as lost; the agent on that host stops them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.core.exit_codes import RETRYABLE
from convoy.launch.agents.connection import Connection, Host, close_all
from convoy.launch.processes import WorkerExit

_KILL_SECONDS = 10.0
_TICK_SECONDS = 0.02


@dataclass
class Member:
    """A host with its connection and the ranks of its running workers."""

    connection: Connection
    ranks: list[int]


class RemoteWorkers:
    """Running workers over connections to agents; see `convoy.launch.supervisor.Workers`.

    Attributes:
      lost: hosts whose workers' state is unknown, with the time.monotonic() at which contact was lost.
    """

    def __init__(self, members: Sequence[Member]):
        """Args: members: in the order of ranks; `kill` closes their connections."""
        self.lost: dict[Host, float] = {}
        self._members = list(members)
        self._stopped: set[int] = set()

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""
        return [rank for member in self._members for rank in member.ranks]

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call or whose host was lost."""
        return [worker_exit for member in self._members for worker_exit in self._poll(member)]

    def send(self, number: int) -> None:
        """Sends a signal to every worker that runs."""
        for member in self._members:
            if member.ranks:
                member.connection.send({"signal": number})

    def stopped(self) -> list[int]:
        """Returns the ranks of workers that are stopped (SIGSTOP)."""
        return [rank for rank in self.running() if rank in self._stopped]

    def kill(self) -> list[WorkerExit]:
        """Kills all running workers, closes the connections, and returns the killed workers."""
        ends: list[WorkerExit] = []
        for member in self._members:
            if member.ranks:
                member.connection.send({"kill": True})
        deadline = time.monotonic() + _KILL_SECONDS
        while self.running() and time.monotonic() < deadline:
            ends += self.poll()
            time.sleep(_TICK_SECONDS)
        for member in self._members:
            ends += self._lose(member, f"host {member.connection.host} stopped responding")
        close_all([member.connection for member in self._members])
        return ends

    def _poll(self, member: Member) -> list[WorkerExit]:
        ends: list[WorkerExit] = []
        problem = ""
        for report in member.connection.poll():
            if "ended" in report:
                rank, returncode = map(int, report["ended"])
                if rank in member.ranks:
                    member.ranks.remove(rank)
                    ends.append(WorkerExit(rank, returncode, float(report["time"])))
            elif "stopped" in report:
                self._stopped -= set(member.ranks)
                self._stopped |= set(report["stopped"])
            elif "problem" in report:
                problem = f"host {member.connection.host} {report['problem']}"
        if member.connection.problem:
            problem = member.connection.problem.text
        return ends + (self._lose(member, problem) if problem else [])

    def _lose(self, member: Member, reason: str) -> list[WorkerExit]:
        ranks, member.ranks = member.ranks, []
        if ranks:
            self.lost[member.connection.host] = time.monotonic()
        return [WorkerExit(rank, RETRYABLE, time.time(), lost=reason) for rank in ranks]
