"""How the workers of a run meet: each one calls the chief, which checks who it is before it counts.

    chief to worker   {"challenge": C}
    worker to chief   {"rank": 1, "tasks": [...], "run": ..., "challenge": D, ..., "proof": HMAC(key, C, all of this)}
    chief to worker   {"welcome": true, "proof": HMAC(key, C, D)} when all are there, or {"bye": reason, ...}

The port is open to port scanners, health checks, workers of other jobs and other users of the host. None of them delays
a worker, because callers are greeted side by side and within a total time limit; none takes a worker's place, because
it does not have the key, or, where no key was given, does not know the run's addresses and directory.
"""

import errno
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convoy.core.cluster import KEY_VARIABLE, Cluster, host_and_port
from convoy.core.errors import ConvoyError, UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.trainer.cluster.ports import listening_socket, port_problem
from convoy.trainer.cluster.transport import LONGEST_FIRST_LINE, Link, Listener, loopback_note

_GREETING_SECONDS = 5.0
_CALL_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_FAREWELL_SECONDS = 15.0  # for workers that come after the chief has found that the run cannot start
_CORRECTION_SECONDS = 30.0  # for the right worker, after one was refused that said it was this one
_REMINDER_SECONDS = 15.0  # between log lines that name the missing workers
_LONGEST_SHOWN = 1000  # characters of a text that another process sent
_MOST_WORKERS = 2**16
_SIGNED = ("rank", "tasks", "run", "problem", "challenge")


class PeerLostError(ConvoyError):
    """A worker is missing, gone or stuck. The message names it."""

    exit_code = RETRYABLE
    is_secondary = True


class PortTakenError(PeerLostError):
    """Another process uses this worker's port. The message names both."""

    is_secondary = False


@dataclass
class Meeting:
    """The rendezvous of a worker.

    Attributes:
      cluster: the workers.
      run: the run directory, which must be the same on all workers; empty for `convoy doctor`.
      seconds: its time limit.
      links: connections by rank, filled as workers connect.
      changed: notified then.
    """

    cluster: Cluster
    run: str
    seconds: float
    links: dict[int, Link]
    changed: threading.Condition
    _is_over: bool = False
    _failure: ConvoyError | None = None
    _challenges: dict[int, tuple[str, str]] = field(default_factory=dict)  # own and the worker's, by rank
    _refused: dict[int, str] = field(default_factory=dict)  # why somebody was refused who called himself worker RANK

    def gather(self) -> None:
        """Waits, on the chief, until every worker has connected.

        Raises:
          PeerLostError: some have not in time, or this worker's port is taken. Names them.
          UsageError: a worker was started with another cluster description or run directory.
        """
        deadline = time.monotonic() + self.seconds
        try:
            listener = Listener(self._own_port, self._greet, expected=self.cluster.num_workers)
        except OSError as error:
            raise self._port_error(error) from None
        limit, since = self.seconds, time.monotonic()
        with listener, self.changed:
            while awaited := [rank for rank in self.missing() if not (self._failure and rank in self._refused)]:
                if self._limit(awaited) != limit:
                    limit, since = self._limit(awaited), time.monotonic()
                left = min(deadline, since + limit) - time.monotonic()
                if left <= 0:
                    self._failure = self._failure or self._timeout()
                    break
                if not self.changed.wait(min(_REMINDER_SECONDS, left)) and left > _REMINDER_SECONDS:
                    print(f"Waiting up to {left - _REMINDER_SECONDS:.0f} s for {self._names(awaited)}.", flush=True)
            self._is_over = True
        for rank, link in self.links.items():
            if self._failure:
                link.send({"bye": str(self._failure), "usage": isinstance(self._failure, UsageError)})
            else:
                link.send({"welcome": True, "proof": self._proof("".join(self._challenges[rank]), {})})
        if self._failure:
            raise self._failure

    def _limit(self, awaited: Iterable[int]) -> float:
        """Returns how long to wait for workers, from the time at which the limit changes to this one."""
        if self._failure:
            return _FAREWELL_SECONDS
        # Without a key, a worker of another job cannot be told from one of this run that was started wrongly.
        doubtful = not self.cluster.key and self._refused.keys() & set(awaited)
        return _CORRECTION_SECONDS if doubtful else self.seconds

    def missing(self) -> list[int]:
        """Returns the ranks of the workers that have not connected yet. On the chief."""
        return [rank for rank in range(1, self.cluster.num_workers) if rank not in self.links]

    def reach_chief(self, *, checks_port: bool) -> None:
        """Connects to the chief, and waits until every worker has.

        Args:
          checks_port: whether this worker's own port must be free.

        Raises:
          PeerLostError: the chief could not be reached in time, or this worker's port is taken.
          UsageError: this worker was started with another cluster description or run directory than the chief.
        """
        problem = self._port_error_of_worker() if checks_port else None
        deadline, reason = time.monotonic() + self.seconds, ""
        host, port = host_and_port(self.cluster.addresses[0])
        while True:
            try:
                seconds = min(_CALL_SECONDS, max(0.1, deadline - time.monotonic()))
                link = Link(socket.create_connection((host, port), timeout=seconds))
            except OSError as error:
                reason = f"could not be reached within {self.seconds:g} s ({error.strerror or error})"
            else:
                if self._introduce(link, deadline, problem):
                    self.links[0] = link
                    return
                link.close()  # another program answered, or the chief has exited and may be restarted
                reason = f"did not answer within {self.seconds:g} s"
            if time.monotonic() > deadline:
                raise problem or PeerLostError(
                    f"{self.cluster.name(0)}, the chief, {reason}. Check that it runs and its port is open."
                    f"{loopback_note(host)} {self.cluster.how_to_train_alone}"
                )
            time.sleep(_RETRY_SECONDS)

    @property
    def _own_port(self) -> int:
        return host_and_port(self.cluster.addresses[self.cluster.index])[1]

    def _port_error(self, error: OSError) -> ConvoyError:
        kind = UsageError if error.errno == errno.EACCES else PortTakenError  # another process may end soon
        return kind(f"{self.cluster.name(self.cluster.index)}: {port_problem(self._own_port, error)}.")

    def _port_error_of_worker(self) -> ConvoyError | None:
        try:
            listening_socket(self._own_port).close()
        except OSError as error:
            return self._port_error(error)
        return None

    def _introduce(self, link: Link, deadline: float, problem: ConvoyError | None) -> bool:
        """Returns whether the chief has welcomed this worker.

        Raises:
          ConvoyError: the chief refuses it; or `problem`, once the chief has got it.
        """
        seconds = min(_GREETING_SECONDS, max(0.1, deadline - time.monotonic()))
        greeting = link.receive(seconds, longest=LONGEST_FIRST_LINE) or {}
        challenge = greeting.get("challenge")
        if not isinstance(challenge, str):
            return False
        hello = {
            "rank": self.cluster.index,
            "tasks": self.cluster.tasks(),
            "run": self.run,
            "problem": str(problem or ""),
            "challenge": secrets.token_hex(16),
        }
        proof = {"proof": self._proof(challenge, hello)} if self.cluster.key else {}
        link.send({**hello, **proof})
        if problem:
            raise problem
        answer = link.receive(max(1.0, deadline + _CALL_SECONDS - time.monotonic()), longest=LONGEST_FIRST_LINE) or {}
        if reason := answer.get("bye"):
            kind = UsageError if answer.get("usage") else PeerLostError
            raise kind(f"{self.cluster.name(0)} refused: {_shown(reason)}")
        return answer.get("welcome") is True and (
            not self.cluster.key or self._has_proof(answer, f"{challenge}{hello['challenge']}", {})
        )

    def _greet(self, link: Link) -> bool:
        """Talks to a caller on the chief; returns whether it is one of the workers."""
        challenge = secrets.token_hex(16)
        link.send({"challenge": challenge})
        hello = link.receive(_GREETING_SECONDS, longest=LONGEST_FIRST_LINE)
        if not hello or not _is_hello(hello):
            return False
        rank = hello["rank"]
        with self.changed:
            if self._is_over:
                return False
            reason = self._reason_to_refuse(rank, hello, challenge)
            if reason:
                if self._is_ours(hello, challenge) and rank not in self.links:
                    self._failure = self._failure or UsageError(reason)
                elif rank < self.cluster.num_workers and rank not in self._refused:
                    print(f"Refused a worker: {reason}", flush=True)
                if rank < self.cluster.num_workers:
                    self._refused[rank] = reason
            elif hello["problem"]:
                self._refused[rank] = _shown(hello["problem"])
                self._failure = self._failure or PeerLostError(self._refused[rank])
            else:
                self.links[rank] = link
                self._challenges[rank] = challenge, hello["challenge"]
            self.changed.notify_all()
        if reason:
            link.send({"bye": reason, "usage": True})
        return not (reason or hello["problem"])

    def _reason_to_refuse(self, rank: int, hello: dict[str, Any], challenge: str) -> str:
        """Returns why a caller is not the worker of its rank; empty if it is."""
        tasks = self.cluster.tasks()
        chief, who = self.cluster.name(0), self.cluster.name(rank) if rank < len(tasks) else f"worker {rank}"
        if self.cluster.key and not self._is_ours(hello, challenge):
            return f"{who} has another {KEY_VARIABLE} than {chief}, or none. Set the same on all workers."
        if not self.cluster.key and "proof" in hello:
            return f"{who} has a {KEY_VARIABLE}, {chief} has none. Set the same on all workers."
        if hello["run"] != self.run:
            theirs, own = (_shown(run) if run else "none, as `convoy doctor` has" for run in (hello["run"], self.run))
            return f"{who} has --workdir {theirs}, {chief} has {own}. Pass the same --workdir on all workers."
        if len(hello["tasks"]) != len(tasks):
            return f"{who} was started for {len(hello['tasks'])} workers, {chief} for {len(tasks)} workers."
        for number, (theirs, own) in enumerate(zip(hello["tasks"], tasks, strict=True)):
            if theirs != own:
                return (
                    f"{who} has another address list than {chief}: entry {number} is '{_shown(theirs)}' instead of "
                    f"'{own}'. Start all workers with the same list in the same order."
                )
        if rank in self.links and not self.links[rank].is_closed_by_peer():
            return f"{who} is connected already: two processes have the same index. Give each its own."
        return ""

    def _is_ours(self, hello: dict[str, Any], challenge: str) -> bool:
        """Whether a caller belongs to this run: it has the key or, where there is none, the same run directory."""
        if self.cluster.key:
            return self._has_proof(hello, challenge, {name: hello[name] for name in _SIGNED})
        return hello["run"] == self.run and "proof" not in hello

    def _has_proof(self, message: dict[str, Any], challenge: str, content: Mapping[str, Any]) -> bool:
        given = str(message.get("proof")).encode(errors="replace")
        return hmac.compare_digest(given, self._proof(challenge, content).encode())

    def _proof(self, challenge: str, content: Mapping[str, Any]) -> str:
        text = json.dumps([challenge, content], sort_keys=True)
        return hmac.new(self.cluster.key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def _timeout(self) -> ConvoyError:
        missing, chief = self._names(self.missing()), self.cluster.name(0)
        if self._refused:
            return UsageError(f"{missing} did not connect. Refused: {' '.join(self._refused.values())}")
        return PeerLostError(
            f"{missing} did not connect within {self.seconds:g} s. Check that they run and can reach {chief}. "
            f"{self.cluster.how_to_train_alone}"
        )

    def _names(self, ranks: Iterable[int]) -> str:
        return " and ".join(map(self.cluster.name, ranks))


def _is_hello(message: dict[str, Any]) -> bool:
    """Whether a first message has the form of a worker's."""
    rank, tasks = message.get("rank"), message.get("tasks")
    texts = [message.get(name) for name in ("run", "problem", "challenge")]
    texts += tasks if isinstance(tasks, list) else [None]
    return type(rank) is int and 0 < rank < _MOST_WORKERS and all(isinstance(text, str) for text in texts)


def _shown(text: object) -> str:
    """Returns a text of another process for messages: short, and without control characters."""
    return "".join(character if character.isprintable() else "?" for character in str(text)[:_LONGEST_SHOWN])
