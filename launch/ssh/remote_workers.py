"""The workers of one attempt on all their hosts: what a `convoy.launch.processes.WorkerProcesses` is on one machine.

    gang = RemoteGang([Member(connection, ranks=[0]), Member(other_connection, ranks=[1, 2])])

A host whose connection ends is lost, and its workers with it: its agent ends them there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.core.exit_codes import RETRYABLE
from convoy.launch.processes import WorkerExit
from convoy.launch.ssh.connection import GOODBYE_SECONDS, Connection
from convoy.launch.ssh.hosts import Host

_TO_DIE_SECONDS = 10.0
_TICK_SECONDS = 0.02


@dataclass
class Member:
    """A host of the gang: its connection, over which the start was ordered, and the ranks of its workers that run."""

    connection: Connection
    ranks: list[int]


class RemoteWorkers:
    """Running workers behind ssh connections; see `convoy.launch.supervisor.Workers`.

    Attributes:
      lost: the hosts whose workers nothing is known of, with the time.monotonic() at which that was seen.
    """

    def __init__(self, members: Sequence[Member]):
        """Args: members: by rank; the gang closes their connections in `kill`."""
        self.lost: dict[Host, float] = {}
        self._members = list(members)
        self._stopped: set[int] = set()

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""
        return [rank for member in self._members for rank in member.ranks]

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call, or whose host is lost."""
        return [ended for member in self._members for ended in self._poll(member)]

    def send(self, number: int) -> None:
        """Sends a signal to every worker that runs."""
        for member in self._members:
            if member.ranks:
                member.connection.send({"signal": number})

    def stopped(self) -> list[int]:
        """Returns the ranks of workers that are stopped (SIGSTOP) and so cannot end by themselves."""
        return [rank for rank in self.running() if rank in self._stopped]

    def kill(self) -> list[WorkerExit]:
        """Kills every worker that runs, returns them when they are gone, and ends the connections."""
        ends = []
        for member in self._members:
            if member.ranks:
                member.connection.send({"kill": True})
        deadline = time.monotonic() + _TO_DIE_SECONDS
        while self.running() and time.monotonic() < deadline:
            ends += self.poll()
            time.sleep(_TICK_SECONDS)
        for member in self._members:
            ends += self._lose(member, f"host {member.connection.host} does not answer any more")
        close_all([member.connection for member in self._members])
        return ends

    def _poll(self, member: Member) -> list[WorkerExit]:
        ends, problem = [], ""
        for report in member.connection.poll():
            if "ended" in report:
                rank, returncode = map(int, report["ended"])
                if rank in member.ranks:
                    member.ranks.remove(rank)
                    ends.append(WorkerExit(rank, returncode, time.time()))
            elif "stopped" in report:
                self._stopped -= set(member.ranks)
                self._stopped |= set(report["stopped"])
            elif "problem" in report:
                problem = f"host {member.connection.host} {report['problem']}"
        if member.connection.problem:
            problem = member.connection.problem.text
        return ends + (self._lose(member, problem) if problem else [])

    def _lose(self, member: Member, why: str) -> list[WorkerExit]:
        ranks, member.ranks = member.ranks, []
        if ranks:
            self.lost[member.connection.host] = time.monotonic()
        return [WorkerExit(rank, RETRYABLE, time.time(), lost=why) for rank in ranks]


def close_all(connections: Sequence[Connection]) -> None:
    """Closes connections, all at once."""
    for connection in connections:
        connection.leave()
    deadline = time.monotonic() + GOODBYE_SECONDS
    for connection in connections:
        connection.close(max(0.0, deadline - time.monotonic()))
