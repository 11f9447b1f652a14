"""The connection to one host's agent, whatever carries it: ssh, or an actor of Ray.

for report in connection.poll():        # does not block
    ...
connection.hello, connection.problem    # one of them is set in the end
connection.close()
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

GOODBYE_SECONDS = 3.0


class Host(Protocol):
    """A host, as an engine knows it: hashable, and its text names it in messages."""

    @property
    def name(self) -> str:
        """Host name or address."""

    @property
    def address(self) -> str:
        """Address at which the other workers reach it; IPv6 in brackets."""

    @property
    def slots(self) -> int:
        """Number of workers."""

    @property
    def name_of_lock(self) -> str:
        """Name that no other host of the launch has: its agents run the workers of a run one after another."""


@dataclass(frozen=True)
class Problem:
    """Why a host cannot take part: a text without a final period, and whether retrying is useless."""

    text: str
    is_permanent: bool = False


class Connection(ABC):
    """A connection to an agent.

    Attributes:
      carrier: name of what carries the messages, for errors.
      hello_seconds: how long a host may take to answer.
      host: the host.
      hello: the agent's answer; None until it arrives.
      problem: why the connection failed; None while it works.
      waits: whether the agent waits for the agent of an earlier attempt to end.
    """

    carrier: str
    hello_seconds = 45.0  # for a host that accepts the connection but does not respond

    def __init__(self, host: Host, hello: Mapping[str, Any]):
        """Args: host: host to connect to. hello: content of the first order."""
        self.host = host
        self.hello: dict[str, Any] | None = None
        self.problem: Problem | None = None
        self.waits = False
        self._silent_seconds: float = hello["silent_seconds"]
        self._turn_seconds: float = hello["silent_seconds"] + hello["grace_seconds"]
        self._hello_deadline = time.monotonic() + self.hello_seconds

    @property
    def is_decided(self) -> bool:
        """Whether the agent has answered or the connection has failed."""
        return self.hello is not None or self.problem is not None

    @property
    def answer(self) -> dict[str, Any]:
        """The agent's answer, of a connection that has one."""
        assert self.hello is not None
        return self.hello

    def poll(self) -> list[dict[str, Any]]:
        """Returns the reports that have arrived; none once there is a problem."""
        if self.problem:
            return []
        has_ended = self._has_ended()  # checked before reading, so that no last report is missed
        reports = self._receive()
        for report in reports:
            if "hello" in report:
                self.hello = report["hello"]
            self.waits = self.waits or "waits" in report
        if has_ended:
            self.problem = self._problem_of_end()
        elif self.hello and self._silence() > self._silent_seconds:
            self.problem = Problem(
                f"host {self.host} stopped responding ({self.carrier}: nothing received for "
                f"{self._silent_seconds:.0f} s)"
            )
        elif not self.hello and time.monotonic() > self._hello_deadline + (self._turn_seconds if self.waits else 0):
            self.problem = Problem(
                f"host {self.host} does not respond ({self.carrier}: nothing received for {self.hello_seconds:.0f} s)"
            )
        return reports

    @abstractmethod
    def send(self, order: Mapping[str, Any]) -> None:
        """Sends an order."""

    @abstractmethod
    def leave(self) -> None:
        """Starts `close` without waiting."""

    @abstractmethod
    def close(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Disconnects; the agent then stops its workers. Waits at most `seconds` for the other side."""

    @abstractmethod
    def _has_ended(self) -> bool:
        """Returns whether the connection has ended; reports may still be unread."""

    @abstractmethod
    def _receive(self) -> list[dict[str, Any]]:
        """Returns the reports that have arrived."""

    @abstractmethod
    def _silence(self) -> float:
        """Returns the seconds since the other side was heard."""

    @abstractmethod
    def _problem_of_end(self) -> Problem:
        """Returns why the connection has ended."""


def close_all(connections: Sequence[Connection]) -> None:
    """Closes connections in parallel."""
    for connection in connections:
        connection.leave()
    deadline = time.monotonic() + GOODBYE_SECONDS
    for connection in connections:
        connection.close(max(0.0, deadline - time.monotonic()))
