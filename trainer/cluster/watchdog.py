"""Ends a process that is stuck in a step, or that waits for a worker that is gone.

    with Watchdog(worker_group, deadlines, on_end=record):
        ...  # worker_group.report(step, phase) at each step

A collective operation waits forever for a missing worker, inside TensorFlow, where no Python signal handler runs.
Threads do run. So a thread checks what the main thread last reported, and ends the process with exit code 138, with all
stacks on standard error and the missing or stuck worker named; the launcher then restarts all workers.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from convoy.core.exit_codes import RETRYABLE
from convoy.trainer.cluster.worker_group import WorkerGroup

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Deadlines:
    """Time limits in seconds.

    Attributes:
      startup: for the rendezvous of the workers and the creation of the strategy.
      heartbeat: for the silence of another worker.
      step: for a step, an evaluated batch or a checkpoint.
    """

    startup: float = 300.0
    heartbeat: float = 30.0
    step: float = 600.0


class Watchdog:
    """A thread that monitors the main thread while the context is active."""

    def __init__(
        self,
        worker_group: WorkerGroup,
        deadlines: Deadlines,
        *,
        on_end: Callable[[str], None] = lambda message: None,
        end: Callable[[int], None] = os._exit,
    ):
        """Does not start yet.

        Args:
          worker_group: receives the main thread's reports.
          deadlines: `heartbeat` and `step` are used.
          on_end: called with the message before the process ends.
          end: ends the process with an exit code.
        """
        self._worker_group = worker_group
        self._deadlines = deadlines
        self._on_end = on_end
        self._end = end
        self._done = threading.Event()

    def __enter__(self) -> "Watchdog":
        """Starts the thread."""
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the thread."""
        self._done.set()

    def problem(self) -> str | None:
        """Returns a description of the problem, or None."""
        liveness, deadlines = self._worker_group.liveness, self._deadlines
        step, phase, seconds = liveness.status
        if seconds > deadlines.step:
            return f"no progress for {seconds:.0f} s (--step_timeout) in step {step}: {liveness.describe_stall()}"
        # TensorFlow reports a lost worker by itself, but not from within every GPU collective.
        longest_silence = max(row.silence for row in liveness.table())
        if liveness.seconds_since_failure() <= deadlines.heartbeat and longest_silence <= 2 * deadlines.heartbeat:
            return None
        reason = liveness.failure_reason()  # None if the silence is still too short to count
        return reason and f"{reason}; step {step} ({phase}) does not end"

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            if problem := self.problem():
                print(f"convoy: {problem}. All stacks:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)
                self._on_end(problem)
                self._end(RETRYABLE)
                return
