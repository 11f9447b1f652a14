"""Liveness of the workers: what each one does, which are silent, and which are gone."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

SILENT_SECONDS = 5.0
_POLL_SECONDS = 0.1
TRAINING = "training step"  # the phase in which workers wait for each other


class WorkerStatus(NamedTuple):
    """What a worker does.

    Attributes:
      step: step it is in.
      phase: part of the step.
      seconds: time in that phase.
      silence: seconds since its last message.
    """

    step: int
    phase: str
    seconds: float
    silence: float

    @property
    def is_silent(self) -> bool:
        """Whether the silence is long enough to count."""
        return self.silence > SILENT_SECONDS


class Liveness:
    """What this worker knows about all workers. Thread-safe.

    Attributes:
      left: ranks that have closed their connection in an orderly way.
    """

    def __init__(self, rank: int, num_workers: int, address: Callable[[int], str], changed: threading.Condition):
        """Starts with every worker at step 0.

        Args:
          rank: rank of this process.
          num_workers: 1 or more.
          address: returns the name of a worker by rank, for messages.
          changed: notified whenever a worker is lost.
        """
        now = time.monotonic()
        self._rank = rank
        self._address = address
        self._changed = changed
        self._gone: dict[int, str] = {}
        self._gone_since: float | None = None
        self._own = (0, "starting", now)
        self._table = [WorkerStatus(0, "starting", 0.0, 0.0) for _ in range(num_workers)]
        self._table_time = now
        self._heard: dict[int, float] = {}
        self.left: set[int] = set()

    @property
    def status(self) -> tuple[int, str, float]:
        """What this worker last reported: step, phase, and the seconds since."""
        step, phase, since = self._own
        return step, phase, time.monotonic() - since

    @property
    def has_lost(self) -> bool:
        """Whether a worker is known to be gone."""
        return bool(self._gone)

    def report(self, step: int, phase: str) -> None:
        """Records what this worker does now."""
        self._own = (step, phase, time.monotonic())

    def start(self) -> None:
        """Restarts all clocks: the rendezvous is complete."""
        self._table_time = time.monotonic()

    def heard(self, rank: int) -> None:
        """Records that a worker has sent something."""
        self._heard[rank] = time.monotonic()

    def take_status(self, rank: int, status: list[Any]) -> None:
        """Records a worker's own report: step, phase, seconds. On the chief."""
        step, phase, seconds = status
        self._table[rank] = WorkerStatus(step, phase, seconds, 0.0)

    def take_table(self, table: list[list[Any]]) -> None:
        """Records the chief's view of all workers. On the other workers."""
        self._table, self._table_time = [WorkerStatus(*row) for row in table], time.monotonic()

    def mark_gone(self, rank: int, reason: str) -> str | None:
        """Records that a worker is gone; returns the full reason, or None if that was known already."""
        with self._changed:
            if rank in self._gone:
                return None
            step = self._table[rank].step
            known = f"{reason}; it was last heard of at step {step}" if step and self._rank == 0 else reason
            self._gone[rank] = known
            self._gone_since = self._gone_since or time.monotonic()
            self._changed.notify_all()
        return known

    def table(self) -> list[WorkerStatus]:
        """Returns the status of all workers by rank, as far as this worker knows."""
        now = time.monotonic()
        since = now - self._table_time
        table = [row._replace(seconds=row.seconds + since, silence=row.silence + since) for row in self._table]
        if self._rank == 0:
            for rank, heard in self._heard.items():
                row, silence = self._table[rank], now - heard
                table[rank] = row._replace(seconds=row.seconds + silence, silence=silence)
        else:
            # The chief is silent when its table does not arrive.
            table[0] = table[0]._replace(silence=since)
        for rank in list(self.left):  # silent, as expected
            table[rank] = table[rank]._replace(silence=0.0)
        table[self._rank] = WorkerStatus(*self.status, 0.0)
        return table

    def seconds_since_failure(self) -> float:
        """Returns the seconds since a worker was found to be gone; 0 if none is."""
        return time.monotonic() - self._gone_since if self._gone_since is not None else 0.0

    def describe_gone(self) -> str:
        """Returns which workers are gone, with the reasons."""
        return " and ".join(f"{self._address(rank)} is gone: {why}" for rank, why in list(self._gone.items()))

    def failure_reason(self, seconds: float = 0.0) -> str | None:
        """Returns which worker is gone or silent and why, waiting up to `seconds`; None if nothing is known."""
        deadline = time.monotonic() + seconds
        while True:
            if self._gone:
                return self.describe_gone()
            silent = [(self._address(rank), row.silence) for rank, row in enumerate(self.table()) if row.is_silent]
            if silent:
                return " and ".join(f"{name} has been silent for {silence:.0f} s" for name, silence in silent)
            if time.monotonic() >= deadline:
                return None
            with self._changed:
                self._changed.wait(_POLL_SECONDS)

    def describe_stall(self) -> str:
        """Returns which worker the others wait for, as far as their last reports show, and what each one does."""
        table = self.table()
        lines = [
            f"{self._address(rank)}: {row.phase}, step {row.step}, for {row.seconds:.0f} s"
            + (f", silent for {row.silence:.0f} s" if row.is_silent else "")
            for rank, row in enumerate(table)
        ]
        silent = [rank for rank, row in enumerate(table) if row.is_silent]
        earliest = min(row.step for row in table)
        behind = [rank for rank, row in enumerate(table) if row.step == earliest]
        elsewhere = [rank for rank in behind if table[rank].phase != TRAINING]
        # A list of all workers singles out none of them.
        suspects = next((ranks for ranks in (silent, elsewhere, behind) if 0 < len(ranks) < len(table)), [])
        who = f"stuck: {self.names(suspects)}. " if suspects else ""
        return who + "; ".join(lines)

    def names(self, ranks: Iterable[int]) -> str:
        """Returns the names of some workers, by rank."""
        return " and ".join(self._address(rank) for rank in sorted(ranks))
