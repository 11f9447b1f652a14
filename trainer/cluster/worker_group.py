"""The workers of a run in touch with each other beside TensorFlow: who has come, who is gone, what all agree on.

    with WorkerGroup(cluster, startup_seconds=300) as peers:
        peers.meet()                                  # returns when all are there, or names those that are not
        gathered = peers.exchange("step", 120)       # one JSON value a worker, by rank, on every worker
        peers.report(121, "training step")            # cheap; what the others say of this one when it is stuck
        ...
        peers.why_lost(seconds=2)                     # "worker 1 (host:port) is gone: its connection closed"

TensorFlow's collectives notice that something is wrong, but not with whom, and its strategy waits for a missing worker
with no word. So each worker keeps a connection of its own to the chief: newline-delimited JSON over TCP, on the very
port that TensorFlow listens on a moment later. Nothing that training computes travels here.
"""

import collections
import contextlib
import ipaddress
import json
import socket
import threading
import time
from typing import Any

from convoy.core.cluster import Cluster
from convoy.core.errors import ConvoyError
from convoy.core.exit_codes import RETRYABLE

_TICK_SECONDS = 1.0
_SILENT_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_PATIENCE_SECONDS = 15.0  # then the missing workers are named, again and again
_LONGEST_LINE = 2**24


class PeerLostError(ConvoyError):
    """A worker is missing, gone or stuck. The message names it."""

    exit_code = RETRYABLE


class WorkerGroup:
    """This process's connection to the other workers of its run. With no cluster it is alone, and all is trivial.

    Attributes:
      rank: of this process.
      num_workers: how many there are.
      is_chief: whether this is the one that writes what all share.
    """

    def __init__(self, cluster: Cluster | None, *, startup_seconds: float = 300.0):
        """Connects nothing yet.

        Args:
          cluster: None for a process that is alone.
          startup_seconds: how long workers may take to arrive, and to answer an exchange.
        """
        self._cluster = cluster
        self._deadline_seconds = startup_seconds
        self.rank = cluster.index if cluster else 0
        self.num_workers = cluster.num_workers if cluster else 1
        self.is_chief = self.rank == 0
        self._changed = threading.Condition()
        self._links: dict[int, _Link] = {}
        self._round = 0
        self._values: dict[int, dict[int, list]] = {}  # by round and rank: [name, value]
        self._answers: dict[int, list] = {}  # by round, what the chief sent back
        self._gone: dict[int, str] = {}
        self._gone_since: float | None = None
        self._left: set[int] = set()
        self._closing = threading.Event()
        now = time.monotonic()
        self._own = (0, "starting", now)
        self._table: list[list] = [[0, "starting", 0.0, 0.0] for _ in range(self.num_workers)]
        self._table_time = now
        self._heard: dict[int, float] = {}
        self._told: collections.deque = collections.deque()

    def __enter__(self) -> "WorkerGroup":
        """Returns itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Says goodbye, with the reason where there is an exception."""
        self.leave("" if error is None else f"{error}" or type(error).__name__)

    def address(self, rank: int) -> str:
        """Returns `worker RANK (HOST:PORT)`."""
        return f"worker {rank} ({self._cluster.addresses[rank]})" if self._cluster else f"worker {rank}"

    def meet(self) -> None:
        """Waits until every worker has come.

        Raises:
          PeerLostError: some have not within `startup_seconds`, or this worker's port is taken. Names them.
        """
        if not self._cluster:
            return
        deadline = time.monotonic() + self._deadline_seconds
        if self.is_chief:
            self._gather_workers(deadline)
        else:
            self._links[0] = self._reach_chief(deadline)
        for rank, link in self._links.items():
            self._heard[rank] = time.monotonic()
            threading.Thread(target=self._listen, args=(rank, link), daemon=True).start()
        self._table_time = time.monotonic()
        threading.Thread(target=self._tick, daemon=True).start()

    def missing(self) -> list[int]:
        """Returns, on the chief, the ranks of the workers that have not come yet."""
        return [rank for rank in range(self.num_workers) if rank != self.rank and rank not in self._links]

    def exchange(self, name: str, value: Any = None, *, seconds: float | None = None) -> list[Any]:  # noqa: ANN401
        """Returns every worker's value by rank. All workers must call it, in the same order; it is a barrier too.

        Args:
          name: what is exchanged, the same on every worker.
          value: any JSON value.
          seconds: how long to wait for the others; `startup_seconds` where left out.

        Raises:
          PeerLostError: a worker is gone, or did not answer in time.
        """
        if not self._cluster:
            return [value]
        number, self._round = self._round, self._round + 1
        if self.is_chief:
            self._take_value(0, number, name, value)
        else:
            self._links[0].send({"round": number, "name": name, "value": value})
        seconds = seconds or self._deadline_seconds
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                if self.is_chief and len(self._values.get(number, {})) == self.num_workers:
                    break
                if number in self._answers:
                    return self._answers.pop(number)
                if self._gone:
                    raise PeerLostError(self._describe_gone())
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    present = self._values.get(number, {})
                    raise PeerLostError(
                        f"no answer within {seconds:g} s to the exchange of {name!r}"
                        + (f" from {self._names(set(range(self.num_workers)) - present.keys())}." if present else ".")
                    )
            gathered = self._values.pop(number)
        names = {rank: given[0] for rank, given in gathered.items()}
        if len(set(names.values())) > 1:
            raise AssertionError(f"workers exchange different things: {names}")
        answer = [gathered[rank][1] for rank in range(self.num_workers)]
        self._send_to_all({"answer": number, "values": answer})
        return answer

    def report(self, step: int, phase: str) -> None:
        """Says what this worker does now: shown where another one waits for it."""
        self._own = (step, phase, time.monotonic())

    def tell(self, value: Any) -> None:  # noqa: ANN401
        """Tells the chief a JSON value, in its own time; the chief may tell itself."""
        if self.is_chief:
            self._told.append(value)
        else:
            self._links[0].send({"told": value})

    def told(self) -> list[Any]:
        """Returns, on the chief, what it was told since it last asked."""
        return [self._told.popleft() for _ in range(len(self._told))]

    @property
    def processes_here(self) -> int:
        """How many of the workers have this one's host in their address."""
        if not self._cluster:
            return 1
        hosts = [address.rpartition(":")[0] for address in self._cluster.addresses]
        return hosts.count(hosts[self.rank])

    @property
    def status(self) -> tuple[int, str, float]:
        """What was last reported: step, phase, and for how many seconds since."""
        step, phase, since = self._own
        return step, phase, time.monotonic() - since

    def lost_for(self) -> float:
        """Returns how many seconds ago a worker was found to be gone; 0 where none is."""
        return time.monotonic() - self._gone_since if self._gone_since is not None else 0.0

    def why_lost(self, seconds: float = 0.0) -> str | None:
        """Returns who is gone or silent and why, waiting up to `seconds` to learn it; None where nothing is known."""
        deadline = time.monotonic() + seconds
        while True:
            if self._gone:
                return self._describe_gone()
            silent = [(rank, age) for rank, (*_, age) in enumerate(self.table()) if age > _SILENT_SECONDS]
            if silent:
                return " and ".join(f"{self.address(rank)} has been silent for {age:.0f} s" for rank, age in silent)
            if time.monotonic() >= deadline:
                return None
            with self._changed:
                self._changed.wait(_RETRY_SECONDS)

    def table(self) -> list[tuple[int, str, float, float]]:
        """Returns for each worker its step, its phase, the seconds in it, and the seconds since it was last heard."""
        now = time.monotonic()
        since = now - self._table_time
        table = [(step, phase, seconds + since, age + since) for step, phase, seconds, age in self._table]
        if self.is_chief:
            for rank, heard in self._heard.items():
                step, phase, seconds, _ = self._table[rank]
                table[rank] = (step, phase, seconds + now - heard, now - heard)
        elif self._cluster:
            # The chief's own silence shows in the table that does not come.
            table[0] = (*table[0][:3], since)
        for rank in list(self._left):  # it said goodbye: that it is silent means nothing
            table[rank] = (*table[rank][:3], 0.0)
        step, phase, seconds = self.status
        table[self.rank] = (step, phase, seconds, 0.0)
        return table

    def describe_stall(self) -> str:
        """Returns who holds the others up, as far as the workers' last words tell, and what each one does."""
        table = self.table()
        lines = [
            f"{self.address(rank)}: {phase}, step {step}, for {seconds:.0f} s"
            + (f", silent for {age:.0f} s" if age > _SILENT_SECONDS else "")
            for rank, (step, phase, seconds, age) in enumerate(table)
        ]
        silent = [rank for rank, (*_, age) in enumerate(table) if age > _SILENT_SECONDS]
        earliest = min(step for step, *_ in table)
        behind = [rank for rank, (step, *_) in enumerate(table) if step == earliest]
        elsewhere = [rank for rank in behind if table[rank][1] != TRAINING]
        suspects = silent or (elsewhere if elsewhere != list(range(len(table))) else [])
        if len(behind) < len(table):
            suspects = suspects or behind
        who = f"stuck: {self._names(suspects)}. " if suspects and self.num_workers > 1 else ""
        return who + "; ".join(lines)

    def leave(self, reason: str = "") -> None:
        """Ends the connections, telling the others why. Does nothing the second time."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._send_to_all({"bye": reason})
        for link in self._links.values():
            link.close()

    def _gather_workers(self, deadline: float) -> None:
        port = int(self._cluster.addresses[0].rpartition(":")[2])
        try:
            listener = socket.create_server(("", port), backlog=self.num_workers)
        except OSError as error:
            raise PeerLostError(
                f"{self.address(0)} cannot listen on its port ({error.strerror}): another process has it. "
                "End that one, or give another port."
            ) from None
        with listener:
            while len(self._links) < self.num_workers - 1:
                listener.settimeout(min(_PATIENCE_SECONDS, max(0.01, deadline - time.monotonic())))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    missing = set(range(1, self.num_workers)) - self._links.keys()
                    if time.monotonic() < deadline:
                        left = deadline - time.monotonic()
                        print(f"Waiting for {self._names(missing)}, {left:.0f} s more.", flush=True)
                        continue
                    reason = f"{self._names(missing)} did not come within {self._deadline_seconds:g} s."
                    self._send_to_all({"bye": reason})
                    raise PeerLostError(f"{reason} Do they run, and do they reach {self.address(0)}?") from None
                self._welcome(_Link(connection))
        self._send_to_all({"welcome": True})

    def _welcome(self, link: "_Link") -> None:
        hello = link.receive(seconds=5.0)
        rank = hello.get("rank") if isinstance(hello, dict) else None
        if not isinstance(rank, int) or not 0 < rank < self.num_workers or hello.get("of") != self.num_workers:
            link.send({"bye": f"the cluster of {self.address(0)} has {self.num_workers} workers; who is {hello}?"})
            link.close()
        elif rank in self._links and not self._links[rank].is_closed_by_peer():
            link.send({"bye": f"there is a worker {rank} already: two processes have the same index."})
            link.close()
        else:
            self._links[rank] = link

    def _reach_chief(self, deadline: float) -> "_Link":
        host, _, port = self._cluster.addresses[0].rpartition(":")
        while True:
            try:
                link = _Link(socket.create_connection((host.strip("[]"), int(port)), timeout=5.0))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise PeerLostError(
                        f"{self.address(0)}, the chief, could not be reached within {self._deadline_seconds:g} s "
                        f"({error.strerror or error}). Does it run, and is its port open?{loopback_note(host)}"
                    ) from None
                time.sleep(_RETRY_SECONDS)
                continue
            link.send({"rank": self.rank, "of": self.num_workers})
            answer = link.receive(seconds=max(1.0, deadline + 5.0 - time.monotonic()))
            if isinstance(answer, dict) and answer.get("welcome"):
                return link
            link.close()
            if isinstance(answer, dict) and answer.get("bye"):
                raise PeerLostError(f"{self.address(0)} says: {answer['bye']}")
            if time.monotonic() > deadline:
                raise PeerLostError(
                    f"{self.address(0)}, the chief, did not answer within {self._deadline_seconds:g} s."
                    f"{loopback_note(host)}"
                )
            time.sleep(_RETRY_SECONDS)  # something else answered, or the chief went away and may come back

    def _listen(self, rank: int, link: "_Link") -> None:
        while (message := link.receive()) is not None:
            self._handle(rank, message)
        if not self._closing.is_set() and rank not in self._left:
            self._mark_gone(rank, "its connection closed")

    def _handle(self, rank: int, message: dict[str, Any]) -> None:
        self._heard[rank] = time.monotonic()
        if "round" in message:
            self._take_value(rank, message["round"], message["name"], message["value"])
        elif "answer" in message:
            with self._changed:
                self._answers[message["answer"]] = message["values"]
                self._changed.notify_all()
        elif "status" in message:
            self._table[rank] = [*message["status"], 0.0]
        elif "table" in message:
            self._table, self._table_time = message["table"], time.monotonic()
        elif "told" in message:
            self._told.append(message["told"])
        elif "gone" in message:
            self._mark_gone(message["gone"], message["why"])
        elif "bye" in message:
            self._left.add(rank)
            if message["bye"]:
                self._mark_gone(rank, f"it stopped: {message['bye'].rstrip('.')}")

    def _take_value(self, rank: int, number: int, name: str, value: Any) -> None:  # noqa: ANN401
        with self._changed:
            self._values.setdefault(number, {})[rank] = [name, value]
            self._changed.notify_all()

    def _mark_gone(self, rank: int, why: str) -> None:
        with self._changed:
            if rank in self._gone:
                return
            step = self._table[rank][0]
            self._gone[rank] = f"{why}; it was last heard of at step {step}" if step and self.is_chief else why
            self._gone_since = self._gone_since or time.monotonic()
            self._changed.notify_all()
        if self.is_chief:
            self._send_to_all({"gone": rank, "why": self._gone[rank]}, but=rank)

    def _tick(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            if self.is_chief:
                self._send_to_all({"table": [list(row) for row in self.table()]})
            else:
                self._links[0].send({"status": list(self.status)})

    def _send_to_all(self, message: dict[str, Any], but: int | None = None) -> None:
        for rank, link in list(self._links.items()):
            if rank != but:
                link.send(message)

    def _describe_gone(self) -> str:
        return " and ".join(f"{self.address(rank)} is gone: {why}" for rank, why in list(self._gone.items()))

    def _names(self, ranks: Any) -> str:  # noqa: ANN401 (any collection of ranks)
        return " and ".join(self.address(rank) for rank in sorted(ranks))


TRAINING = "training step"  # the phase in which workers wait for each other


def loopback_note(host: str) -> str:
    """Returns a sentence about a host name that means this very machine here; nothing for other names and addresses.

    Debian writes `127.0.1.1 NAME` to /etc/hosts: on the host of that name it is harmless, on another it is not.
    """
    if host == "localhost" or host.replace(".", "").isdigit():
        return ""
    try:
        addresses = {found[4][0] for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    loopback = sorted(address for address in addresses if ipaddress.ip_address(address.split("%")[0]).is_loopback)
    if not loopback:
        return ""
    return f" {host} is {loopback[0]} here, this machine itself: take that line out of /etc/hosts."


class _Link:
    """A connection that carries JSON objects, a line each. Sending to one that has closed does nothing."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Returns the next object; None where the other side has closed, or sends none within `seconds`."""
        try:
            self._connection.settimeout(seconds)
            line = self._file.readline(_LONGEST_LINE)
            self._connection.settimeout(None)
            value = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def is_closed_by_peer(self) -> bool:
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
