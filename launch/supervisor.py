"""Starts the workers, watches them and restarts them: the same for every engine, which only provides the start.

    supervisor = Supervisor(run, start, max_restarts=3, grace_seconds=60, screen=Screen.of_standard_output())
    exit_code = supervisor.run()

`start(files)` starts the workers of an attempt, with logs and error files as in `files`, and returns them.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.core.text import counted
from convoy.launch import history
from convoy.launch.history import Attempt
from convoy.launch.policy import (
    Cause,
    Kind,
    RestartPolicy,
    WorkerOutcome,
    cause_of,
    exit_code_after_signal,
    signal_name,
)
from convoy.launch.processes import WorkerExit
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import TICK_SECONDS, ShutdownPolicy, Signals

_START_RETRY_SECONDS = 3.0
_SHOWN_LINES = 15
_NO_LOG = (Kind.PREEMPTED, Kind.STOPPED, Kind.INTERRUPTED)  # the worker's last lines do not help with these


class StartError(Exception):
    """An attempt cannot be started now, but perhaps later. The message is the reason: which host does not answer."""


class Workers(Protocol):
    """The running workers of an attempt, whatever engine started them. See `processes.WorkerProcesses`."""

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call."""

    def send(self, number: int) -> None:
        """Sends a signal to every running worker."""

    def stopped(self) -> list[int]:
        """Returns the ranks of workers that are stopped and so cannot exit by themselves."""

    def kill(self) -> list[WorkerExit]:
        """Kills every running worker, waits until they are gone, and returns them."""


class Supervisor:
    """One launch: attempt after attempt until the run is done or the policy gives up."""

    def __init__(
        self,
        run: RunFiles,
        start: Callable[[AttemptFiles], Workers],
        *,
        max_restarts: int,
        grace_seconds: float,
        screen: Screen,
        start_seconds: float = 300.0,
        trains: bool = True,
        facts: Mapping[str, Any] | None = None,
    ):
        """Starts nothing yet.

        Args:
          run: the run directory.
          start: starts the workers of an attempt; raises StartError if a retry may succeed.
          max_restarts: consecutive restarts allowed without a new checkpoint.
          grace_seconds: seconds from SIGTERM to SIGKILL.
          screen: for the chief's output and the launcher's own log lines.
          start_seconds: for how long a failing start is retried.
          trains: False for a command that only inspects: it is started once and leaves nothing in RUN.
          facts: additional fields of launch.json.
        """
        self._run = run
        self._start = start
        self._policy = RestartPolicy(max_restarts if trains else 0)
        self._start_seconds = start_seconds
        self._trains = trains
        self._grace_seconds = grace_seconds
        self._screen = screen
        self._facts = dict(facts or {})
        self._signals = Signals()
        self._attempts: list[Attempt] = []
        self._furthest_checkpoint = run.checkpoint_step()
        self._started = time.monotonic()
        self.ended_by: int | None = None  # number of the signal that ended the launch, if any

    @property
    def is_asked_to_end(self) -> bool:
        """Whether a signal is pending: a slow `start` should give up then."""
        return self._signals.pending

    def run(self) -> int:
        """Launches, and returns the exit code.

        Raises:
          UsageError, DataError: RUN cannot be used.
          ConvoyError: a worker cannot be started.
        """
        try:
            with self._signals:
                exit_code = None
                while exit_code is None:
                    exit_code = self._attempt()
        except ConvoyError as error:
            if self._attempts and self._trains:
                self._write_summary(error.exit_code)
            else:
                self._run.remove_made_folders()
            raise
        finally:
            self._screen.drain()
        return exit_code

    def _attempt(self) -> int | None:
        """Runs one attempt; returns the launch's exit code, or None if another attempt follows."""
        files, shutdown = self._run.new_attempt(), ShutdownPolicy(self._grace_seconds)
        workers = self._start_workers(files)
        if workers is None:
            return self._not_started()
        # Events up to here belong to the previous attempt: `start` may have waited for its end.
        first_event, started = self._run.events_end(), time.monotonic()
        log = Follower(files.log(0), prefix="[0] ")
        try:
            outcomes = self._watch(workers, shutdown, files, log, first_event)
        finally:
            workers.kill()
        self._screen.write(log.rest())
        events = self._run.events(first_event)

        def record(cause: str, step: int | None, log: str = "") -> None:
            exit_codes = tuple(outcome.exit_code for outcome in sorted(outcomes, key=lambda outcome: outcome.rank))
            seconds = time.monotonic() - started
            self._attempts.append(Attempt(files.number, seconds, cause, exit_codes, events, step, log))

        if all(outcome.succeeded for outcome in outcomes):
            record("done", history.end_step(events))
            return self._finish(0)
        cause = cause_of(outcomes, events)
        error_steps = [outcome.error.step for outcome in outcomes if outcome.error]
        step = history.end_step(events, cause.step, self._run.logged_step(), *error_steps)
        if shutdown.signals:
            record(f"ended by {signal_name(shutdown.signals[-1])}", step)
            return self._after_signal(outcomes, shutdown.signals[-1], step)
        if not self._trains:
            return self._after_failed_inspection(files, outcomes, cause)
        log_name = self._show_last_lines(files, cause)
        record(cause.text, step, log_name)
        return self._after_failure(files, cause, step)

    def _start_workers(self, files: AttemptFiles) -> Workers | None:
        """Starts an attempt, with retries while that is not possible; returns None if it failed for good."""
        deadline, last_reason = time.monotonic() + self._start_seconds, ""
        while not self._signals.pending:
            try:
                return self._start(files)
            except StartError as error:
                if self._signals.pending:
                    break
                left = deadline - time.monotonic()
                if left <= 0 or not self._trains:
                    outlook = f" Giving up. {self._how_to_resume()}" if self._trains else ""
                    self._screen.say(f"convoy: {error}{outlook}")
                    return None
                if last_reason != str(error):
                    last_reason = str(error)
                    self._screen.say(f"convoy: {error} Retrying for {left:.0f} s.")
            self._signals.wait(_START_RETRY_SECONDS, idle=self._screen.pump)
        return None

    def _not_started(self) -> int:
        exit_code = self._ended_by_pending_signal()
        if exit_code is None:
            exit_code = RETRYABLE if self._trains else UsageError.exit_code
        return self._finish(exit_code)

    def _ended_by_pending_signal(self) -> int | None:
        """Returns the exit code for a signal that arrived while no worker was running; None if there was none."""
        numbers = self._signals.take()
        if not numbers:
            return None
        self.ended_by = numbers[-1]
        self._screen.say(f"convoy: ended by {signal_name(numbers[-1])}. {self._how_to_resume()}")
        return 128 + numbers[-1]

    def _watch(
        self, workers: Workers, shutdown: ShutdownPolicy, files: AttemptFiles, log: Follower, first_event: int
    ) -> list[WorkerOutcome]:
        """Waits until all workers have ended; ends those that do not exit by themselves."""
        outcomes: list[WorkerOutcome] = []
        ended_as: dict[int, Kind] = {}

        def note(ended: Sequence[WorkerExit]) -> None:
            for rank, returncode, host_time, lost in ended:
                error, kind = files.error(rank), ended_as.get(rank)
                outcomes.append(WorkerOutcome(rank, returncode, time.time(), error, kind, lost, host_time))
                if not outcomes[-1].succeeded and self._trains:  # workers that only inspect end independently
                    # Workers that wait for others to join cannot know that some never will.
                    shutdown.worker_failed(in_startup=history.start_step(self._run.events(first_event)) is None)

        while workers.running():
            note(workers.poll())
            self._forward_signals(workers, shutdown)
            stopped = set(workers.stopped()) if shutdown.in_progress else set()
            if stopped and stopped == set(workers.running()):
                ended_as |= dict.fromkeys(stopped, Kind.STOPPED)
                note(workers.kill())
            elif shutdown.kill_is_due():
                if shutdown.signals:
                    self._screen.say(f"convoy: killing {_workers(workers.running())} that did not exit.")
                ended_as |= {rank: ended_as.get(rank, Kind.UNRESPONSIVE) for rank in workers.running()}
                note(workers.kill())
            elif shutdown.term_is_due():
                ended_as |= {rank: Kind.STOPPED if rank in stopped else Kind.UNRESPONSIVE for rank in workers.running()}
                workers.send(signal.SIGTERM)
            self._screen.follow(log)
            if workers.running():
                time.sleep(TICK_SECONDS)
        return outcomes

    def _forward_signals(self, workers: Workers, shutdown: ShutdownPolicy) -> None:
        for number in self._signals.take():
            if shutdown.signal_received(number):
                continue
            if not shutdown.kill_is_due() and workers.running():
                workers.send(number)
                self._screen.say(
                    f"convoy: {signal_name(number)}: forwarded to {_workers(workers.running())}. Workers still running "
                    f"in {self._grace_seconds:g} s will be killed; a second signal kills them now."
                )

    def _after_signal(self, outcomes: Sequence[WorkerOutcome], number: int, step: int | None) -> int:
        self.ended_by = number
        had_to_kill = any(outcome.ended_as for outcome in outcomes)
        exit_code = exit_code_after_signal(outcomes, number, had_to_kill=had_to_kill)
        self._screen.say(f"convoy: ended by {signal_name(number)}{_at(step)}. {self._how_to_resume()}")
        return self._finish(exit_code)

    def _after_failure(self, files: AttemptFiles, cause: Cause, step: int | None) -> int | None:
        checkpoint = self._run.checkpoint_step()
        is_new = checkpoint is not None and (
            self._furthest_checkpoint is None or checkpoint > self._furthest_checkpoint
        )
        if is_new:
            self._furthest_checkpoint = checkpoint
        decision = self._policy.decide(cause, new_checkpoint=is_new)
        if cause.kind is Kind.REFUSED and all(attempt.start_step is None for attempt in self._attempts):
            # The worker's own message is the last on the screen, and there is nothing to summarize.
            self._write_summary(decision.exit_code)
            self._run.remove_traces()
            return decision.exit_code
        failure = f"convoy: attempt {files.number} ended{_at(step)}: {cause.text.rstrip('.')}."
        if not decision.restart:
            self._screen.say(f"{failure} {decision.reason}.")
            return self._finish(decision.exit_code)
        self._screen.say(f"{failure} Restarting from step {checkpoint or 0} ({decision.reason}).")
        self._run.append_restart(files.number + 1, cause.text)
        exit_code = self._ended_by_pending_signal()
        if exit_code is not None:
            return self._finish(exit_code)
        self._write_summary(None)
        return None

    def _after_failed_inspection(self, files: AttemptFiles, outcomes: Sequence[WorkerOutcome], cause: Cause) -> int:
        """Shows the output of all workers: those that cannot reach the chief print their findings themselves."""
        for rank in sorted(outcome.rank for outcome in outcomes if outcome.rank):
            self._screen.write(Follower(files.log(rank), prefix=f"[{rank}] ").rest())
        if cause.kind is not Kind.REFUSED:
            self._screen.say(f"convoy: {cause.text.rstrip('.')}.")
        return self._finish(cause.exit_code)

    def _how_to_resume(self) -> str:
        step = self._run.checkpoint_step()
        if step is None:
            return "Rerun the same command to start from step 0 (no checkpoint found)."
        return f"Rerun the same command to resume from step {step}."

    def _show_last_lines(self, files: AttemptFiles, cause: Cause) -> str:
        """Shows the last lines of the worker that failed; returns its log relative to RUN, or nothing without any."""
        if cause.rank is None or cause.kind in _NO_LOG:
            return ""
        lines = files.last_lines(cause.rank, _SHOWN_LINES)
        if not lines:
            return ""
        log_name = os.path.relpath(files.log(cause.rank), self._run.path)
        if cause.rank:  # the chief's output is on the screen already
            self._screen.say(f"convoy: last lines of worker {cause.rank} ({log_name}):")
            self._screen.say("\n".join(f"[{cause.rank}] {line}" for line in lines))
        return log_name

    def _finish(self, exit_code: int) -> int:
        if not self._trains or not self._attempts:
            self._run.remove_made_folders()
            return exit_code
        self._write_summary(exit_code)
        self._screen.say(history.summary(self._attempts, time.monotonic() - self._started, self._run.checkpoint_step()))
        return exit_code

    def _write_summary(self, exit_code: int | None) -> None:
        content = history.as_json(self._attempts, time.monotonic() - self._started, self._run.checkpoint_step())
        self._run.write_summary({**self._facts, "exit_code": exit_code, **content})


def _at(step: int | None) -> str:
    return " before its first step" if step is None else f" at step {step}"


def _workers(ranks: Sequence[int]) -> str:
    return f"worker {ranks[0]}" if len(ranks) == 1 else counted(len(ranks), "worker")
