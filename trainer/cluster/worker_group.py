"""The workers of a run: rendezvous, exchange of small values, liveness.

    with WorkerGroup(cluster, startup_seconds=300) as worker_group:
        worker_group.rendezvous()                     # returns when all workers are there, or names the missing ones
        gathered = worker_group.exchange("step", 120) # one JSON value per worker, by rank, on every worker
        worker_group.report(121, "training step")     # cheap; shown by the others when this worker is stuck
        ...
        worker_group.liveness.failure_reason(2)       # "worker 1 (host:port) is gone: its connection closed"

TensorFlow's collectives detect that something is wrong, but not with which worker, and its strategy waits silently for
a missing one. So each worker keeps a connection of its own to the chief, on the same port that TensorFlow listens on
later. No training data travels over it.
"""

import collections
import threading
import time
from typing import Any

from convoy.core.cluster import Cluster, host_and_port
from convoy.core.files import logical_path
from convoy.trainer.cluster.liveness import Liveness
from convoy.trainer.cluster.rendezvous import Meeting, PeerLostError
from convoy.trainer.cluster.transport import Link

__all__ = ["PeerLostError", "WorkerGroup"]

_TICK_SECONDS = 1.0


class WorkerGroup:
    """The connection of this process to the other workers of its run. Without a cluster it has none.

    Attributes:
      cluster: the workers' addresses; None for a single process.
      rank: rank of this process.
      num_workers: number of workers.
      is_chief: whether this is worker 0, which writes the run directory.
      liveness: what the workers do, and which are silent or gone.
    """

    def __init__(self, cluster: Cluster | None, *, startup_seconds: float = 300.0, workdir: str = ""):
        """Does not connect yet.

        Args:
          cluster: None for a single process.
          startup_seconds: time limit of the rendezvous, and of exchanges by default.
          workdir: run directory, compared at the rendezvous; empty for workers that do not train.
        """
        self._workdir = workdir and logical_path(workdir)
        self._deadline_seconds = startup_seconds
        self.cluster = cluster
        self.rank = cluster.index if cluster else 0
        self.num_workers = cluster.num_workers if cluster else 1
        self.is_chief = self.rank == 0
        self._changed = threading.Condition()
        self.liveness = Liveness(self.rank, self.num_workers, self.address, self._changed)
        self._links: dict[int, Link] = {}
        self._round = 0
        self._values: dict[int, dict[int, tuple[str, Any]]] = {}  # by round and rank: name and value
        self._answers: dict[int, list[Any]] = {}  # by round, from the chief
        self._closing = threading.Event()
        self._received: collections.deque[Any] = collections.deque()

    def __enter__(self) -> "WorkerGroup":
        """Returns itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Closes the connections; the others are sent the exception, if any."""
        self.close("" if error is None else f"{error}" or type(error).__name__)

    def address(self, rank: int) -> str:
        """Returns `worker RANK (HOST:PORT)`."""
        return self.cluster.name(rank) if self.cluster else f"worker {rank}"

    def rendezvous(self, *, checks_port: bool = True) -> None:
        """Waits until every worker has connected, unless they are.

        Args:
          checks_port: whether a worker's port must be free. The chief's always must.

        Raises:
          PeerLostError: some have not within `startup_seconds`, or a worker's port is taken. Names them.
          UsageError: the workers were not started with the same cluster description and run directory.
        """
        if not self.cluster or self._links:
            return
        meeting = Meeting(self.cluster, self._workdir, self._deadline_seconds, self._links, self._changed)
        if self.is_chief:
            meeting.gather()
        else:
            meeting.reach_chief(checks_port=checks_port)
        for rank, link in self._links.items():
            self.liveness.heard(rank)
            threading.Thread(target=self._listen, args=(rank, link), daemon=True).start()
        self.liveness.start()
        threading.Thread(target=self._tick, daemon=True).start()

    def missing(self) -> list[int]:
        """Returns the ranks of the workers that have not connected yet. On the chief."""
        return [rank for rank in range(self.num_workers) if rank != self.rank and rank not in self._links]

    def exchange(self, name: str, value: Any = None, *, seconds: float | None = None) -> list[Any]:  # noqa: ANN401
        """Returns the values of all workers by rank. A barrier: all workers must call it, in the same order.

        Args:
          name: what is exchanged, the same on every worker.
          value: any JSON value.
          seconds: time limit; `startup_seconds` by default.

        Raises:
          PeerLostError: a worker is gone, or did not answer in time.
        """
        if not self.cluster:
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
                if self.liveness.has_lost:
                    raise PeerLostError(self.liveness.describe_gone())
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    present = self._values.get(number, {})
                    absent = set(range(self.num_workers)) - present.keys()
                    who = f" from {self.liveness.names(absent)}" if present else ""
                    raise PeerLostError(f"no answer within {seconds:g} s to the exchange of {name!r}{who}.")
            gathered = self._values.pop(number)
        names = {rank: given[0] for rank, given in gathered.items()}
        if len(set(names.values())) > 1:
            raise AssertionError(f"workers exchange different values: {names}")
        answer = [gathered[rank][1] for rank in range(self.num_workers)]
        self._send_to_all({"answer": number, "values": answer})
        return answer

    def report(self, step: int, phase: str) -> None:
        """Records what this worker does now, for the messages of workers that wait for it."""
        self.liveness.report(step, phase)

    def send_to_chief(self, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Sends a JSON value to the chief, which gets it from `receive`; the chief may send to itself."""
        if self.is_chief:
            self._received.append(value)
        else:
            self._links[0].send({"sent": value})

    def receive(self) -> list[Any]:
        """Returns the values sent to the chief since the last call. On the chief."""
        return [self._received.popleft() for _ in range(len(self._received))]

    @property
    def processes_here(self) -> int:
        """Number of workers with the same host in their address as this one."""
        if not self.cluster:
            return 1
        hosts = [host_and_port(address)[0] for address in self.cluster.addresses]
        return hosts.count(hosts[self.rank])

    def close(self, reason: str = "") -> None:
        """Closes the connections and sends the others the reason. Does nothing the second time."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._send_to_all({"bye": reason})
        for link in self._links.values():
            link.close()

    def _listen(self, rank: int, link: Link) -> None:
        while (message := link.receive()) is not None:
            self._handle(rank, message)
        if not self._closing.is_set() and rank not in self.liveness.left:
            self._mark_gone(rank, "its connection closed")

    def _handle(self, rank: int, message: dict[str, Any]) -> None:
        self.liveness.heard(rank)
        if "round" in message:
            self._take_value(rank, message["round"], message["name"], message["value"])
        elif "answer" in message:
            with self._changed:
                self._answers[message["answer"]] = message["values"]
                self._changed.notify_all()
        elif "status" in message:
            self.liveness.take_status(rank, message["status"])
        elif "table" in message:
            self.liveness.take_table(message["table"])
        elif "sent" in message:
            self._received.append(message["sent"])
        elif "gone" in message:
            self._mark_gone(message["gone"], message["why"])
        elif "bye" in message:
            self.liveness.left.add(rank)
            if message["bye"]:
                self._mark_gone(rank, f"it stopped: {message['bye'].rstrip('.')}")

    def _take_value(self, rank: int, number: int, name: str, value: Any) -> None:  # noqa: ANN401
        with self._changed:
            self._values.setdefault(number, {})[rank] = (name, value)
            self._changed.notify_all()

    def _mark_gone(self, rank: int, why: str) -> None:
        reason = self.liveness.mark_gone(rank, why)
        if reason and self.is_chief:
            self._send_to_all({"gone": rank, "why": reason}, but=rank)

    def _tick(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            if self.is_chief:
                self._send_to_all({"table": [list(row) for row in self.liveness.table()]})
            else:
                self._links[0].send({"status": list(self.liveness.status)})

    def _send_to_all(self, message: dict[str, Any], but: int | None = None) -> None:
        for rank, link in list(self._links.items()):
            if rank != but:
                link.send(message)
