"""Liveness of the workers: what each one does, which are silent, and which are gone."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

SILENT_SECONDS = 5.0
_POLL_SECONDS = 0.1
TRAINING = "training step"  # the phase in which workers wait for each other


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
        self._table: list[list[Any]] = [[0, "starting", 0.0, 0.0] for _ in range(num_workers)]
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
        self._table[rank] = [*status, 0.0]

    def take_table(self, table: list[list[Any]]) -> None:
        """Records the chief's view of all workers. On the other workers."""
        self._table, self._table_time = table, time.monotonic()

    def mark_gone(self, rank: int, reason: str) -> str | None:
        """Records that a worker is gone; returns the full reason, or None if that was known already."""
        with self._changed:
            if rank in self._gone:
                return None
            step = self._table[rank][0]
            known = f"{reason}; it was last heard of at step {step}" if step and self._rank == 0 else reason
            self._gone[rank] = known
            self._gone_since = self._gone_since or time.monotonic()
            self._changed.notify_all()
        return known

    def table(self) -> list[tuple[int, str, float, float]]:
        """Returns for each worker its step, its phase, the seconds in it, and the seconds since its last message."""
        now = time.monotonic()
        since = now - self._table_time
        table = [(step, phase, seconds + since, age + since) for step, phase, seconds, age in self._table]
        if self._rank == 0:
            for rank, heard in self._heard.items():
                step, phase, seconds, _ = self._table[rank]
                table[rank] = (step, phase, seconds + now - heard, now - heard)
        elif len(table) > 1:
            # The chief is silent when its table does not arrive.
            table[0] = (*table[0][:3], since)
        for rank in list(self.left):  # silent, as expected
            table[rank] = (*table[rank][:3], 0.0)
        step, phase, seconds = self.status
        table[self._rank] = (step, phase, seconds, 0.0)
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
            silent = [(rank, age) for rank, (*_, age) in enumerate(self.table()) if age > SILENT_SECONDS]
            if silent:
                return " and ".join(f"{self._address(rank)} has been silent for {age:.0f} s" for rank, age in silent)
            if time.monotonic() >= deadline:
                return None
            with self._changed:
                self._changed.wait(_POLL_SECONDS)

    def describe_stall(self) -> str:
        """Returns which worker the others wait for, as far as their last reports show, and what each one does."""
        table = self.table()
        lines = [
            f"{self._address(rank)}: {phase}, step {step}, for {seconds:.0f} s"
            + (f", silent for {age:.0f} s" if age > SILENT_SECONDS else "")
            for rank, (step, phase, seconds, age) in enumerate(table)
        ]
        silent = [rank for rank, (*_, age) in enumerate(table) if age > SILENT_SECONDS]
        earliest = min(step for step, *_ in table)
        behind = [rank for rank, (step, *_) in enumerate(table) if step == earliest]
        elsewhere = [rank for rank in behind if table[rank][1] != TRAINING]
        # A list of all workers singles out none of them.
        suspects = next((ranks for ranks in (silent, elsewhere, behind) if 0 < len(ranks) < len(table)), [])
        who = f"stuck: {self.names(suspects)}. " if suspects else ""
        return who + "; ".join(lines)

    def names(self, ranks: Iterable[int]) -> str:
        """Returns the names of some workers, by rank."""
        return " and ".join(self._address(rank) for rank in sorted(ranks))
